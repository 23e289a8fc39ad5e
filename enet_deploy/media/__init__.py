"""Frames from images, videos, cameras, pipes and ROS bags; their labels to files, pipes and windows."""
