"""Data sets: folders of images and label maps; with what users of one need from `classes` and `images`."""

from ..classes import CAMVID as CAMVID
from ..classes import ClassList as ClassList
from ..classes import read_classes as read_classes
from ..images import UInt8Array as UInt8Array
from ..images import colorize as colorize
from ..images import overlay as overlay
from ..images import read_image as read_image
from ..images import resize_image as resize_image
from ..images import resize_labels as resize_labels
from .dataset import DataSet as DataSet
from .dataset import Part as Part
from .dataset import files_of as files_of
from .dataset import find_images as find_images
from .dataset import hold_out as hold_out
from .dataset import join as join
from .dataset import open_data as open_data
from .dataset import parts as parts
from .dataset import read_ahead as read_ahead
from .dataset import require_same_classes as require_same_classes
from .dataset import spread as spread
from .dataset import without as without
