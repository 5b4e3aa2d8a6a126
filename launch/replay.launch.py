# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Start the segmentation node, play a bag to it, score the labels, and exit.

ros2 launch lightseg_ros replay.launch.py bag:=drive image_topic:=/camera/image_raw report:=out/replay
"""
from pathlib import Path

from ament_index_python.packages import get_package_prefix, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)

SHARE = Path(get_package_share_directory('lightseg_ros'))
# Arguments of "lightseg replay" with a value. An empty one is not passed on.
OPTIONS = {
    'model': ('laanet', 'packaged network to run'),
    'weights': ('', 'path of a weights file, instead of a packaged network'),
    'resolution': ('', 'size of the image that the network sees: WIDTHxHEIGHT, or native. Empty: as trained'),
    'device': ('auto', 'auto, cpu, cuda, cuda:N or openvino:GPU'),
    'image_topic': ('/camera/image_raw', 'image topic in the bag. CompressedImage if it ends in /compressed'),
    'label_topic': ('', 'topic of the ground truth in the bag, mono8'),
    'label_dir': ('', 'folder of label images named by their stamps, instead of label_topic'),
    'rate': ('1.0', 'playback speed relative to the recording'),
    'deadline': ('0.1', 'seconds after which a label counts as late'),
    'report': ('', 'folder to write report.html and result.json to'),
    'json': ('', 'file to write the result to'),
}
CHOICES = {
    'player': ('own', "player: 'own' accounts for every frame, 'ros2' uses ros2 bag play", ['own', 'ros2']),
    'use_sim_time': ('false', 'true: publish /clock and keep the stamps of the bag', None),
    'log_level': ('info', 'lowest level of log messages', ['debug', 'info', 'warn', 'error', 'fatal']),
}


def actions(context: LaunchContext) -> list[IncludeLaunchDescription | ExecuteProcess]:
    """Create the node and the player; when the player ends, the launch ends."""
    value = dict(context.launch_configurations)
    topic = value['image_topic']
    node = {name: value[name] for name in ('model', 'weights', 'resolution', 'device', 'use_sim_time',
                                           'log_level')}
    node |= {'image_topic': topic.removesuffix('/compressed'),
             'image_transport': 'compressed' if topic.endswith('/compressed') else 'raw'}
    command = [str(Path(get_package_prefix('lightseg_ros'), 'lib', 'lightseg_ros', 'lightseg')), 'replay',
               value['bag'], '--node', '/segmentation', '--player', value['player']]
    given = {name: value[name] for name in OPTIONS if value[name] and name != 'weights'}
    given['model'] = value['weights'] or value['model']
    for name, text in given.items():
        command += [f'--{name.replace("_", "-")}', text]
    if value['use_sim_time'].lower() in ('true', '1', 'yes', 'on'):
        command.append('--use-sim-time')
    return [
        IncludeLaunchDescription(str(SHARE / 'launch' / 'segment.launch.py'), launch_arguments=node.items()),
        ExecuteProcess(cmd=command, output='screen', on_exit=Shutdown(reason='the bag has been played'))]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and pass them on."""
    return LaunchDescription([
        DeclareLaunchArgument('bag', description='bag to play: a folder, .mcap, .db3, or ROS 1 .bag'),
        *(DeclareLaunchArgument(name, default_value=default, description=text)
          for name, (default, text) in OPTIONS.items()),
        *(DeclareLaunchArgument(name, default_value=default, description=text, choices=choices)
          for name, (default, text, choices) in CHOICES.items()),
        OpaqueFunction(function=actions),
    ])
