"""Train form -> deploy form -> ONNX, verified. Installed as `enet_deploy.export`."""

from .deploy import to_deploy
from .to_onnx import Export, to_onnx
from .unpool import MaxPool2x2, MaxUnpool2x2, with_exportable_unpooling

__all__ = ["Export", "MaxPool2x2", "MaxUnpool2x2", "to_deploy", "to_onnx", "with_exportable_unpooling"]
