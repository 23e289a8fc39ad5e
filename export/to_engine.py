"""ONNX -> TensorRT engine: the public import path.

The builder itself is in `runners.tensorrt`, beside the runner that loads its engines."""

from enet_deploy.runners.tensorrt.builder import Build, BuildOptions, require_buildable, to_engine

__all__ = ["Build", "BuildOptions", "require_buildable", "to_engine"]
