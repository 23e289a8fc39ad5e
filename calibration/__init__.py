"""INT8: ranges from images, the record of them, Q/DQ graphs, sensitivity. Installed as `enet_deploy.calibration`."""
