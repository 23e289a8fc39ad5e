"""Data sets: folders of images and label maps."""

from .dataset import DataSet as DataSet
from .dataset import Part as Part
from .dataset import find_images as find_images
from .dataset import hold_out as hold_out
from .dataset import join as join
from .dataset import open_data as open_data
from .dataset import parts as parts
from .dataset import read_ahead as read_ahead
from .dataset import require_same_classes as require_same_classes
from .dataset import spread as spread
from .dataset import without as without
