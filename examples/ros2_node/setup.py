from setuptools import setup

name = "enet_segmentation"
setup(
    name=name,
    version="0.2.0",
    packages=[name],
    package_data={name: ["fastdds.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{name}"]),
        (f"share/{name}", ["package.xml"]),
        (f"share/{name}/launch", ["launch/camera.launch.py"]),
        (f"share/{name}/config", ["config/nav2_costmap.yaml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    license="Apache-2.0",
    entry_points={"console_scripts": [f"segmentation = {name}.main:main"]},
)
