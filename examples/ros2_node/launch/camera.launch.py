"""ros2 launch enet_segmentation camera.launch.py artifact:=/path/enet-fp16.engine image:=/camera/image_raw

The node and whatever is launched after it in the same launch get shared memory of 32 MB for their images. A camera
that is started elsewhere needs the variable too; this package's README says how.
"""

import os

from enet_segmentation.main import PROFILE, profile_variable
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    "backend": ("", "by default, the fastest that is installed"),
    "device": ("", "cpu, cuda or cuda:N; by default the backend's own"),
    "image_transport": ("raw", "raw or compressed"),
    "reliability": ("auto", "auto, reliable or best_effort"),
}
TOPICS = {  # as Nav2's semantic_segmentation_layer calls them
    "labels": "/segmentation/mask",
    "confidence": "/segmentation/confidence",
    "label_info": "/segmentation/label_info",
    "overlay": "/segmentation/overlay",
    "color_mask": "/segmentation/color_mask",
}


def generate_launch_description() -> LaunchDescription:
    variable = profile_variable()
    profile = SetEnvironmentVariable(variable, os.environ.get(variable, str(PROFILE)))
    arguments = [
        DeclareLaunchArgument("artifact", description="weights, a graph (.onnx) or an engine"),
        DeclareLaunchArgument("image", default_value="/camera/image_raw", description="topic of the images"),
        *(
            DeclareLaunchArgument(name, default_value=value, description=text)
            for name, (value, text) in ARGUMENTS.items()
        ),
        *(DeclareLaunchArgument(name, default_value=topic, description="topic") for name, topic in TOPICS.items()),
    ]
    node = Node(
        package="enet_segmentation",
        executable="segmentation",
        parameters=[
            {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in ("artifact", *ARGUMENTS)}
        ],
        remappings=[(f"~/{name}", LaunchConfiguration(name)) for name in ("image", *TOPICS)],
        output="screen",
    )
    return LaunchDescription([profile, *arguments, node])
