"""ENet semantic segmentation, from trained weights to the fastest correct engine on the robot's chip.

    from enet_deploy import open_runner

    with open_runner("enet-fp32.onnx") as runner:
        labels = runner.segment(image)          # (h, w, 3) uint8 BGR -> (h, w) uint8 class ids

Importing this package loads numpy and opencv only; each backend's library is imported when one of its runners opens.
"""

import logging
import os

from .artifacts import BUNDLED_WEIGHTS
from .bundled import SAMPLE
from .classes import CAMVID, ClassList
from .errors import ArtifactError, BackendError, DataError, EnetError, InputError, ParityError
from .images import colorize
from .runners import BACKENDS, Runner, Spec, open_runner

__version__ = "0.1.0"

# ONNX Runtime reads it when it is imported. By default it looks up a host of its maker's, and leaves an id in the home
# folder and a file in the one for temporary files. Whoever has set it keeps his choice
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until the application configures logging

__all__ = [
    "BACKENDS",
    "BUNDLED_WEIGHTS",
    "CAMVID",
    "SAMPLE",
    "ArtifactError",
    "BackendError",
    "ClassList",
    "DataError",
    "EnetError",
    "InputError",
    "ParityError",
    "Runner",
    "Spec",
    "colorize",
    "open_runner",
]
