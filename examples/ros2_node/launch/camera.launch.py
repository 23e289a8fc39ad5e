"""ros2 launch enet_segmentation camera.launch.py artifact:=/path/enet-fp16.engine image:=/camera/image_raw"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("artifact", description="weights, a graph (.onnx) or an engine"),
            DeclareLaunchArgument("image", default_value="/camera/image_raw", description="topic of the images"),
            DeclareLaunchArgument("backend", default_value="", description="by default, the fastest that is installed"),
            Node(
                package="enet_segmentation",
                executable="segmentation",
                parameters=[{name: LaunchConfiguration(name) for name in ("artifact", "backend")}],
                remappings=[("~/image", LaunchConfiguration("image"))],
                output="screen",
            ),
        ]
    )
