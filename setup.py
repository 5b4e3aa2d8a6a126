# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ament_python package, which is also an ordinary Python package."""
from pathlib import Path
import sys

from setuptools import find_packages, setup

NAME = 'lightseg_ros'
# What pip installs. package.xml names the same things for a ROS distribution, where rosdep installs them.
REQUIRED = [
    'numpy',
    'opencv-python-headless>=4.8,<5',  # OpenCV 5 renumbered its type constants, which breaks cv_bridge
    # ONNX files, their check, and the backend onnxruntime; a tenth of what torch takes.
    'onnx',
    'onnxruntime',
    'onnxscript',
    'pyyaml',
    'safetensors',
    'simplejpeg>=1.8',  # decodes JPEGs strictly; without it OpenCV repairs damaged ones in silence
    'torch>=2.4',
    'tqdm',
]
EXTRAS = {
    # OpenVINO runs the networks two to four times faster than torch on a CPU; Numba makes the labels faster.
    'cpu': ['numba', 'openvino'],
    # Learning curves, and the plot of `lightseg bench`.
    'train': ['matplotlib'],
    # Bags; av decodes H.264 and H.265 in them. rosbags needs lz4 and zstd too.
    'eval': ['av', 'backports.zstd; python_version < "3.14"', 'lz4', 'rosbags>=0.11'],
    # ROS 2 Kilted from PyPI: x86-64 Linux, CPython 3.10 to 3.14.
    'ros': ['ros-rclpy[fastrtps]', 'ros-ament-index-python', 'ros-diagnostic-msgs', 'ros-lifecycle-msgs',
            'ros-rosgraph-msgs', 'ros-sensor-msgs', 'ros-std-msgs', 'ros-std-srvs'],
}
EXTRAS['all'] = sorted({name for names in EXTRAS.values() for name in names} - set(EXTRAS['ros']))
# colcon, bloom and ament call `setup.py install` or `setup.py develop`; pip calls neither. The scripts that
# these write check the requirements as soon as something imports pkg_resources. apt's packages do not have
# pip's names, so with requirements the scripts would not start.
INSTALLED_BY_ROS = not {'install', 'develop'}.isdisjoint(sys.argv)


def data_files() -> list[tuple[str, list[str]]]:
    """What launch, config, weights, rviz and foxglove hold goes to the same folders of share/lightseg_ros."""
    folders: dict[str, list[str]] = {
        'share/ament_index/resource_index/packages': [f'resource/{NAME}'],
        f'share/{NAME}': ['package.xml'],
    }
    for pattern in ('launch/*.py', 'config/**/*.yaml', 'config/*.xml', 'weights/*.safetensors',
                    'rviz/*.rviz', 'foxglove/*.json'):
        for path in sorted(Path().glob(pattern)):
            folders.setdefault(f'share/{NAME}/{path.parent}', []).append(str(path))
    return sorted(folders.items())


setup(
    name=NAME,
    version='0.1.0',
    description='Real-time semantic segmentation of camera topics with lightweight networks',
    license='Apache-2.0',
    maintainer='lightseg_ros maintainers',
    maintainer_email='maintainers@lightseg.dev',
    packages=find_packages(exclude=['test', 'test.*']),
    data_files=data_files(),
    zip_safe=False,
    python_requires='>=3.10',
    install_requires=[] if INSTALLED_BY_ROS else REQUIRED,
    extras_require=EXTRAS,
    entry_points={
        'console_scripts': [
            'segmentation_node = lightseg_ros.nodes:segmentation_node',
            'camera_node = lightseg_ros.nodes:camera_node',
            'lightseg = lightseg_ros.cli:main',
        ],
    },
)
