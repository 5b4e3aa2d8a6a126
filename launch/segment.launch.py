# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Start the segmentation node and, if asked, a camera node.

ros2 launch lightseg_ros segment.launch.py model:=laanet resolution:=1024x512 image_topic:=/camera/image_raw
"""
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory('lightseg_ros'))
MODELS = sorted(path.stem.split('-')[0] for path in (SHARE / 'weights').glob('*.safetensors'))
ARGUMENTS = {
    'model': ('laanet', 'network whose packaged weights are run', MODELS),
    'weights': ('', 'path of a weights file; empty takes the packaged one of the model', None),
    'resolution': ('', 'size that the network sees: WIDTHxHEIGHT, native, or empty for that of the weights', None),
    'device': ('auto', 'auto, cpu, cuda or cuda:N', None),
    'image_topic': ('image', 'image topic; with image_transport:=compressed, /compressed is added to it', None),
    'image_transport': ('raw', 'how images come', ['raw', 'compressed']),
    'params_file': (str(SHARE / 'config' / 'segmentation.yaml'), "YAML file of the node's parameters", None),
    'namespace': ('', 'namespace of the nodes', None),
    'use_sim_time': ('false', 'take the time from /clock', ['true', 'false']),
    'log_level': ('info', 'level of what the nodes log', ['debug', 'info', 'warn', 'error', 'fatal']),
    'use_respawn': ('false', 'start the segmentation node again when it ends with an error', ['true', 'false']),
    'camera': ('none', "also start a camera node on this source: 'synthetic', a folder of images, a video, a bag, "
               "a device such as /dev/video0; 'none' for the camera that you have", None),
}


def generate_launch_description() -> LaunchDescription:
    """Pass the arguments on to the nodes; nothing else happens here."""
    value = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    image = value['image_topic']
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)
          for name, (default, description, choices) in ARGUMENTS.items()),
        # Images need a larger shared-memory segment than Fast DDS's own; a profile that the user set stays.
        SetEnvironmentVariable('FASTDDS_DEFAULT_PROFILES_FILE', EnvironmentVariable(
            'FASTDDS_DEFAULT_PROFILES_FILE', default_value=str(SHARE / 'config' / 'fastdds.xml'))),
        Node(package='lightseg_ros', executable='segmentation_node', name='segmentation',
             namespace=value['namespace'], output='screen', emulate_tty=True,
             respawn=value['use_respawn'], respawn_delay=2.0,
             arguments=['--ros-args', '--log-level', value['log_level']],
             remappings=[('image', image), ('image/compressed', [image, '/compressed'])],
             parameters=[value['params_file'], {
                 'use_sim_time': ParameterValue(value['use_sim_time'], value_type=bool),
                 **{name: ParameterValue(value[name], value_type=str)
                    for name in ('model', 'weights', 'resolution', 'device', 'image_transport')}}]),
        Node(package='lightseg_ros', executable='camera_node', name='camera',
             namespace=value['namespace'], output='screen', emulate_tty=True,
             condition=IfCondition(NotEqualsSubstitution(value['camera'], 'none')),
             arguments=['--ros-args', '--log-level', value['log_level']],
             remappings=[('image', image), ('image/compressed', [image, '/compressed'])],
             parameters=[{
                 'source': ParameterValue(value['camera'], value_type=str), 'loop': True,
                 'image_transport': ParameterValue(value['image_transport'], value_type=str),
                 'use_sim_time': ParameterValue(value['use_sim_time'], value_type=bool)}]),
    ])
