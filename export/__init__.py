"""Train form -> deploy form -> ONNX, verified. Installed as `enet_deploy.export`.

`unpool` has the exportable max-unpooling, `deploy` the deploy form, `to_onnx` the export.
"""
