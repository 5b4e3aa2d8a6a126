# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Start the segmentation node and, on request, a camera node.

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
# Parameters of the segmentation node that are launch arguments too. An empty argument leaves the value of the
# params_file.
PARAMETERS = {
    'model': ('packaged network to run (default in params_file: laanet)', ['', *MODELS]),
    'weights': ('path of a weights file, instead of a packaged network', None),
    'resolution': ('size of the image that the network sees: WIDTHxHEIGHT, or native for the size of the '
                   'camera image (default: the size that the weights were trained at)', None),
    'device': ('auto, cpu, cuda, cuda:N or openvino:GPU (default: auto)', None),
    'backend': ('library that runs the network on a CPU, such as openvino (default: auto)', None),
    'precision': ('float32, float16 or bfloat16 (default: auto, float32 on a CPU, float16 on a GPU)', None),
    'cameras': ('names of several cameras, separated by spaces (default: one camera without a name)', None),
    'image_transport': ('transport of the images (default: raw)', ['', 'raw', 'compressed']),
}
OTHERS = {
    'image_topic': ('image', 'image topic; with several cameras, {camera} stands for the name of each. For '
                    'compressed images /compressed is appended', None),
    'depth_topic': ('', 'topic of depth that is registered to the image, with {camera} as above. If given, '
                    'labelled points are published', None),
    'camera_info_topic': ('', 'camera_info topic of the depth. Empty: camera_info in the namespace of '
                          'the depth topic', None),
    'params_file': (str(SHARE / 'config' / 'segmentation.yaml'), 'YAML file with parameters', None),
    'namespace': ('', 'namespace of the nodes', None),
    'use_sim_time': ('false', 'take the time from /clock', ['true', 'false']),
    'log_level': ('info', 'lowest level of log messages', ['debug', 'info', 'warn', 'error', 'fatal']),
    'use_respawn': ('false', 'restart the segmentation node when it dies', ['true', 'false']),
    'camera': ('none', "source of an additional camera node: 'synthetic', a folder of images, a video, a "
               "bag, or a device such as /dev/video0. 'none': do not start a camera node", None),
    'camera_topic': ('', 'image topic that the camera node plays, if a bag has several', None),
}


def topic_of(camera: str, topic: str, kind: str = 'image') -> str:
    """Return the topic of one camera; `camera` is empty if there is only one, `kind` its default topic."""
    if not camera:
        return topic
    if '{camera}' not in topic and topic != kind:
        raise ValueError(f'{kind}_topic is {topic!r}; expected {{camera}} in it, because there are '
                         'several cameras')
    return topic.replace('{camera}', camera) if '{camera}' in topic else f'{camera}/{kind}'


def depth_topics(camera: str, value: dict[str, str]) -> list[tuple[str, str]]:
    """Return the remappings of the depth and camera_info of one camera, if they were given."""
    depth, info = value['depth_topic'], value['camera_info_topic']
    if depth and not info:
        info = '/'.join([*depth.split('/')[:-1], 'camera_info'])
    return [(kind, topic_of(camera, topic, kind)) for kind, topic in (('depth', depth), ('camera_info', info))
            if topic]


def nodes(context: LaunchContext) -> list[Node]:
    """Create the nodes; only arguments that were given override the params_file."""
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
    """Declare the arguments and pass them to the nodes."""
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value='', description=text, choices=choices)
          for name, (text, choices) in PARAMETERS.items()),
        *(DeclareLaunchArgument(name, default_value=default, description=text, choices=choices)
          for name, (default, text, choices) in OTHERS.items()),
        # Images need a larger shared-memory segment than Fast DDS's default. A profile that the user has set
        # is kept.
        SetEnvironmentVariable('FASTDDS_DEFAULT_PROFILES_FILE', EnvironmentVariable(
            'FASTDDS_DEFAULT_PROFILES_FILE', default_value=str(SHARE / 'config' / 'fastdds.xml'))),
        OpaqueFunction(function=nodes),
    ])
