"""A robot's loop: camera frame in, labels out, a decision. python examples/camera_loop.py enet-fp32.onnx [CAMERA]"""

import sys

import cv2

from enet_deploy import open_runner

source = sys.argv[2] if len(sys.argv) > 2 else "0"  # a camera's number, a video file or a URL
camera = cv2.VideoCapture(int(source) if source.isdecimal() else source)
camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # where the driver can: a frame that waited is a frame too late
with open_runner(sys.argv[1]) as runner:
    road = runner.spec.classes.names.index("road")
    there, frame = camera.read()
    while there:
        labels = runner.segment(frame)  # (h, w) uint8 class ids, of the frame's size
        ahead = labels[labels.shape[0] // 2 :, labels.shape[1] // 3 : labels.shape[1] * 2 // 3]
        free = (ahead == road).mean()
        print(f"road ahead {free:4.0%}:", "go" if free > 0.5 else "stop", flush=True)
        there, frame = camera.read()
