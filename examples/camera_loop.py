"""A robot's loop: camera frame in, labels out, a decision. python examples/camera_loop.py enet-fp32.onnx 0 road"""

import sys

import cv2

from enet_deploy import open_runner

if len(sys.argv) != 4:
    raise SystemExit("usage: camera_loop.py ARTIFACT SOURCE CLASS; SOURCE is a camera's number, a video or a URL")
artifact, source, name = sys.argv[1:]
camera = cv2.VideoCapture(int(source) if source.isdecimal() else source)
camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # if the driver can: a frame that waited comes too late
with open_runner(artifact) as runner:
    if name not in runner.spec.classes.names:
        raise SystemExit(f"no class {name} among {', '.join(runner.spec.classes.names)}")
    there, frame = camera.read()
    if not there:
        raise SystemExit(f"no frame from {source}")
    while there:
        labels = runner.segment(frame)  # (h, w) uint8 class ids, of the frame's size
        ahead = labels[labels.shape[0] // 2 :, labels.shape[1] // 3 : labels.shape[1] * 2 // 3]
        free = (ahead == runner.spec.classes.names.index(name)).mean()
        print(f"{name} ahead {free:4.0%}:", "go" if free > 0.5 else "stop", flush=True)
        there, frame = camera.read()
