"""All errors that this package raises on purpose, as one tree.

EnetError
├── InputError        an argument or a frame is not what the call expects (also a ValueError)
├── DataError         a data set is incomplete, inconsistent or unreadable
├── ArtifactError     weights, an ONNX file or an engine is missing, damaged or not from this package
├── BackendError      a backend, device or precision is not available on this machine
├── ParityError       an exported file does not compute what the weights compute
└── RequirementError  a benchmark or a data set misses a stated requirement

Every message names the value, what was expected and how to fix it. The command lines print it on one line and exit
with code 2; RequirementError exits with code 1.
"""


class EnetError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 2  # of a command that ends with this error


class InputError(EnetError, ValueError):
    """An argument or a frame is not what the call expects."""


class DataError(EnetError):
    """A data set is incomplete, inconsistent or unreadable."""


class ArtifactError(EnetError):
    """Weights, an ONNX file or an engine is missing, damaged or not from this package."""


class BackendError(EnetError):
    """A backend, device or precision is not available on this machine."""


class ParityError(EnetError):
    """An exported file does not compute what the weights compute."""


class RequirementError(EnetError):
    """A benchmark or a data set misses a stated requirement."""

    exit_code = 1


# module -> the extra of this package that installs it
EXTRAS = {
    **dict.fromkeys(("torch", "safetensors", "onnx", "onnxscript"), "torch"),
    **dict.fromkeys(("onnxruntime", "openvino"), "cpu"),
    **dict.fromkeys(("jinja2", "matplotlib", "rich", "psutil"), "report"),
    "tensorboard": "tensorboard",
    "av": "video",
    "pillow_heif": "heic",
    "rosbags": "ros",
    "shtab": "completion",
    "tritonclient": "triton",
    **dict.fromkeys(("ray", "pyarrow", "fsspec"), "ray"),
    "tensorrt": "trt",
    "tensorrt_rtx": "rtx",
}


def missing(module: str) -> str:
    """Return the message for a module that is not installed: its name and the pip command."""
    return f"the package '{module}' is not installed; pip install 'enet-deploy[{EXTRAS[module]}]'"


# What libraries say of too little memory in errors of other types: C++ and pybind11, ONNX Runtime, PyTorch and its
# oneDNN, cuDNN and cuBLAS, OpenCV, Python's threads, the dynamic loader
_OUT_OF_MEMORY = (
    *("bad_alloc", "bad allocation", "out of memory", "Out of memory", "Failed to allocate memory"),
    *("can't allocate memory", "could not create a primitive", "ALLOC_FAILED", "Insufficient memory"),
    *("can't start new thread", "Cannot allocate memory", "failed to map segment"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had too little memory, for this error or for the one during which it was raised."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(error, EnetError) and any(sign in str(error) for sign in _OUT_OF_MEMORY):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)
