# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Start the segmentation node and, if asked, a camera node.

ros2 launch lightseg_ros segment.launch.py model:=laanet resolution:=1024x512 image_topic:=/camera/image_raw
"""
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory('lightseg_ros'))
MODELS = sorted(path.stem.split('-')[0] for path in (SHARE / 'weights').glob('*.safetensors'))
# Parameters of the segmentation node that are arguments too; one left empty is the params_file's to say.
PARAMETERS = {
    'model': ('network whose packaged weights are run (params_file: laanet)', ['', *MODELS]),
    'weights': ('path of a weights file, instead of a packaged one', None),
    'resolution': ('size that the network sees: WIDTHxHEIGHT, or native (params_file: as trained)', None),
    'device': ('auto, cpu, cuda or cuda:N (params_file: auto)', None),
    'backend': ('what runs the network on a processor, such as openvino (params_file: auto)', None),
    'precision': ('float32, float16 or bfloat16, as the device has it (params_file: auto)', None),
    'cameras': ('names of several cameras, separated by spaces (params_file: one, without a name)', None),
    'image_transport': ('how images come (params_file: raw)', ['', 'raw', 'compressed']),
}
OTHERS = {
    'image_topic': ('image', 'image topic, with {camera} for the name of each of several; compressed images '
                    'come on it with /compressed added', None),
    'depth_topic': ('', 'depth image, registered to the image, with {camera} as above; with it, labelled '
                    'points are published', None),
    'camera_info_topic': ('', 'camera_info of the depth; empty: camera_info beside it', None),
    'params_file': (str(SHARE / 'config' / 'segmentation.yaml'), "YAML of the node's parameters", None),
    'namespace': ('', 'namespace of the nodes', None),
    'use_sim_time': ('false', 'take the time from /clock', ['true', 'false']),
    'log_level': ('info', 'level of what the nodes log', ['debug', 'info', 'warn', 'error', 'fatal']),
    'use_respawn': ('false', 'start the segmentation node again when it dies', ['true', 'false']),
    'camera': ('none', "also start a camera node on this source: 'synthetic', a folder of images, a video, "
               "a bag, a device such as /dev/video0; 'none': you have a camera", None),
    'camera_topic': ('', 'image topic that the camera node plays of a bag which has several', None),
}


def topic_of(camera: str, topic: str, kind: str = 'image') -> str:
    """Return the topic of that kind of a camera; `camera` is empty where there is only one."""
    if not camera:
        return topic
    if '{camera}' not in topic and topic != kind:
        raise ValueError(f'{kind}_topic is {topic!r}; expected {{camera}} in it, since there are several')
    return topic.replace('{camera}', camera) if '{camera}' in topic else f'{camera}/{kind}'


def depth_topics(camera: str, value: dict[str, str]) -> list[tuple[str, str]]:
    """Return the remappings of a camera's depth and camera_info, of those that were given."""
    depth, info = value['depth_topic'], value['camera_info_topic']
    if depth and not info:
        info = '/'.join([*depth.split('/')[:-1], 'camera_info'])
    return [(kind, topic_of(camera, topic, kind)) for kind, topic in (('depth', depth), ('camera_info', info))
            if topic]


def nodes(context: LaunchContext) -> list[Node]:
    """Make the nodes; only arguments that were given override the params_file."""
    value = context.launch_configurations
    given = {name: ParameterValue(value[name], value_type=str) for name in PARAMETERS if value[name]}
    use_sim_time = {'use_sim_time': value['use_sim_time'] == 'true'}
    topics = {camera: topic_of(camera, value['image_topic']) for camera in value['cameras'].split() or ['']}
    depths = {camera: depth_topics(camera, value) for camera in topics}
    points = {'publish_points': True} if value['depth_topic'] else {}
    common = {
        'package': 'lightseg_ros', 'namespace': value['namespace'], 'output': 'screen', 'emulate_tty': True,
        'arguments': ['--ros-args', '--log-level', value['log_level']]}
    started = [Node(
        executable='segmentation_node', name='segmentation', respawn=value['use_respawn'] == 'true',
        respawn_delay=2.0, parameters=[value['params_file'], {**given, **points, **use_sim_time}],
        remappings=[*((f'{camera}/image{kind}'.lstrip('/'), topic + kind) for camera, topic in topics.items()
                      for kind in ('', '/compressed')),
                    *((f'{camera}/{kind}'.lstrip('/'), topic) for camera, pairs in depths.items()
                      for kind, topic in pairs)], **common)]
    if value['camera'] != 'none':
        source = {'source': ParameterValue(value['camera'], value_type=str), 'loop': True,
                  'topic': ParameterValue(value['camera_topic'], value_type=str)}
        own_depth = value['camera'] == 'synthetic' and bool(points)
        if own_depth:
            source['depth'] = True
        transport = {name: given[name] for name in ('image_transport',) if name in given}
        started += [Node(
            executable='camera_node', name=f'camera_{camera}'.rstrip('_'),
            parameters=[{**source, **transport, **use_sim_time}],
            remappings=[('image', topic), ('image/compressed', f'{topic}/compressed'),
                        *(depths[camera] if own_depth else
                          [('camera_info', f'{camera}/camera_info')] if camera else [])],
            **common) for camera, topic in topics.items()]
    return started


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and pass them on to the nodes."""
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value='', description=text, choices=choices)
          for name, (text, choices) in PARAMETERS.items()),
        *(DeclareLaunchArgument(name, default_value=default, description=text, choices=choices)
          for name, (default, text, choices) in OTHERS.items()),
        # Images need a larger shared-memory segment than Fast DDS's own; a profile that the user set stays.
        SetEnvironmentVariable('FASTDDS_DEFAULT_PROFILES_FILE', EnvironmentVariable(
            'FASTDDS_DEFAULT_PROFILES_FILE', default_value=str(SHARE / 'config' / 'fastdds.xml'))),
        OpaqueFunction(function=nodes),
    ])
