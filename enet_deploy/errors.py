"""What can go wrong, as one tree.

EnetError
├── InputError        an argument or a frame is not what was asked for (also a ValueError)
├── DataError         a data set is incomplete, inconsistent or unreadable
├── ArtifactError     weights, an ONNX file or an engine is missing, damaged or not ours
├── BackendError      a backend, device or precision cannot be had on this machine
├── ParityError       an exported file does not compute what the weights compute
└── RequirementError  a benchmark's figures, or a data set, are not what was required

Every message names the value, what was expected and how to mend it; the command lines print it on one line and
exit with 2, with 1 for the last.
"""


class EnetError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 2  # of a command that ends with it


class InputError(EnetError, ValueError):
    """An argument or a frame is not what was asked for."""


class DataError(EnetError):
    """A data set is incomplete, inconsistent or unreadable."""


class ArtifactError(EnetError):
    """Weights, an ONNX file or an engine is missing, damaged or not ours."""


class BackendError(EnetError):
    """A backend, device or precision cannot be had on this machine."""


class ParityError(EnetError):
    """An exported file does not compute what the weights compute."""


class RequirementError(EnetError):
    """A benchmark's figures, or a data set, are not what was required."""

    exit_code = 1


# module -> the extra of this package that brings it
EXTRAS = {
    **dict.fromkeys(("torch", "safetensors", "onnx", "onnxscript"), "torch"),
    **dict.fromkeys(("onnxruntime", "openvino"), "cpu"),
    **dict.fromkeys(("jinja2", "matplotlib", "rich", "psutil"), "report"),
    "av": "video",
    "pillow_heif": "heic",
    "rosbags": "ros",
    "tensorrt": "trt",
    "tensorrt_rtx": "rtx",
}


def missing(module: str) -> str:
    """How to get a module that is not installed."""
    return f"the package '{module}' is not installed; pip install 'enet-deploy[{EXTRAS[module]}]'"
