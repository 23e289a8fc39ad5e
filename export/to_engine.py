"""ONNX -> TensorRT engine, for users of this package; the builder lies beside the runner that loads what it builds."""

from enet_deploy.runners.tensorrt.builder import Build, BuildOptions, require_buildable, to_engine

__all__ = ["Build", "BuildOptions", "require_buildable", "to_engine"]
