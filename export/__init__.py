"""Weights -> deploy form -> verified ONNX -> int8 and TensorRT engines. Installed as `enet_deploy.export`.

`unpool` has the exportable max-unpooling, `deploy` the deploy form, `to_onnx` the export, `graph` its clean-up, `int8`
the quantised graph, `record` the calibration record that it is made from,
`engines` TensorRT's engines, `html` a page, `triton` a model repository.
"""
