"""Frames from whatever has some, and what is made of them to files: images, videos, cameras, pipes, ROS bags."""
