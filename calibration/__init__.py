"""INT8: ranges measured on images, accuracy and sensitivity of int8 graphs. Installed as `enet_deploy.calibration`."""
