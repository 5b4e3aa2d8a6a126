# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Start the segmentation node and, on request, a camera node.

ros2 launch lightseg_ros segment.launch.py model:=laanet resolution:=1024x512 image_topic:=/camera/image_raw
"""
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
import re
from typing import Any

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.logging import get_logger
from launch.substitutions import EnvironmentVariable
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
import yaml

SHARE = Path(get_package_share_directory('lightseg_ros'))
MODELS = sorted(path.stem.rsplit('-', 1)[0] for path in (SHARE / 'weights').glob('*.safetensors'))
# Parameters of the segmentation node that are launch arguments too. An empty argument leaves the value of the
# params_file.
PARAMETERS = {
    'model': ('packaged network to run; by default laanet', ['', *MODELS]),
    'weights': ('path of a weights file, instead of a packaged network', None),
    'resolution': ('size of the image that the network sees: WIDTHxHEIGHT, or native for the size of the '
                   'camera image; by default the size that the weights were trained at', None),
    'device': ('auto, cpu, cuda, cuda:N or openvino:GPU; by default auto', None),
    'backend': ('library that runs the network on a CPU, such as openvino; by default auto', None),
    'precision': ('float32, float16 or bfloat16; by default float32 on a CPU, float16 on a GPU', None),
    'cameras': ('names of several cameras, separated by commas or spaces; by default one camera '
                'without a name', None),
    'image_transport': ('transport of the images; by default raw', ['', 'raw', 'compressed']),
    'image_size': ('sizes of the images to prepare for, such as 1280x720; by default 640x480', None),
    'lazy': ('true: do not segment without a subscriber; subscription: also unsubscribe from the images; '
             'false: segment always. By default true', None),
}
NUMBERS = {
    'smoothing': 'share of the earlier images in the labels, so that they flicker less, such as 0.1; '
                 'by default 0',
}
BOOLEANS = {
    'autostart': 'true: configure and activate the node; false: a lifecycle manager does. By default true',
}
OTHERS = {
    'image_topic': ('image', 'image topic; with several cameras, {camera} stands for the name of each. With '
                    'image_transport:=compressed, /compressed is appended', None),
    'compressed_topic': ('', 'topic of compressed images (CompressedImage) with any name, instead of '
                         'image_topic', None),
    'depth_topic': ('', 'topic of depth that is registered to the image, with {camera} as above. If given, '
                    'labelled points are published. May end in /compressedDepth', None),
    'camera_info_topic': ('', 'camera_info topic of the camera. Empty: camera_info in the namespace of the '
                          'depth topic or, without one, of the image topic', None),
    'params_file': (str(SHARE / 'config' / 'segmentation.yaml'), 'YAML file with parameters', None),
    'namespace': ('', 'namespace of the nodes', None),
    'use_sim_time': ('false', 'true: take the time from /clock', None),
    'log_level': ('info', 'lowest level of log messages', ['debug', 'info', 'warn', 'error', 'fatal']),
    'use_respawn': ('false', 'true: restart the segmentation node when it dies', None),
    'camera': ('none', "source of an additional camera node: 'synthetic', a folder of images, a video, a "
               "bag, or a device such as /dev/video0. 'none': do not start a camera node", None),
    'camera_topic': ('', 'image topic that the camera node plays, if a bag has several', None),
    'rviz': ('false', 'true: start RViz with overlay, class colours and points; needs the package rviz2',
             None),
    'rviz_frame': ('world', 'fixed frame of RViz, for the points; the depth of camera:=synthetic comes with '
                   'a transform to world', None),
}
# What rviz/segmentation.rviz shows.
SHOWN = ('overlay', 'label_color', 'points')


def topic_of(camera: str, topic: str, kind: str = 'image') -> str:
    """Return the topic of one camera; `camera` is empty if there is only one, `kind` its default topic."""
    if not camera:
        return topic
    if '{camera}' not in topic and topic != kind:
        raise ValueError(f'{kind}_topic is {topic!r}; expected {{camera}} in it, because there are '
                         'several cameras')
    return topic.replace('{camera}', camera) if '{camera}' in topic else f'{camera}/{kind}'


def depth_topics(camera: str, value: dict[str, str]) -> list[tuple[str, str]]:
    """Return the remappings of the depth, if it was given, and of the camera_info of one camera."""
    depth, info = value['depth_topic'], value['camera_info_topic']
    depth = depth.removesuffix('/compressedDepth')
    if not info:
        beside = depth or (value['compressed_topic'] or value['image_topic']).removesuffix('/compressed')
        info = '/'.join([*beside.split('/')[:-1], 'camera_info'])
    pairs = [(kind, topic_of(camera, topic, kind))
             for kind, topic in (('depth', depth), ('camera_info', info)) if topic]
    # A remapping of depth does not include depth/compressedDepth.
    return pairs + [(f'{kind}/compressedDepth', f'{topic}/compressedDepth') for kind, topic in pairs
                    if kind == 'depth']


def is_installed(package: str) -> bool:
    """Return whether ROS knows a package."""
    try:
        return bool(get_package_share_directory(package))
    except PackageNotFoundError:
        return False


def rviz(value: dict[str, str], cameras: list[str], parameters: dict[str, Any]) -> Node:
    """Create RViz; it shows the first camera."""
    if not is_installed('rviz2'):
        raise ValueError('rviz is true, but the package rviz2 is not installed: sudo apt install '
                         'ros-$ROS_DISTRO-rviz2')
    node = full_name(value['namespace'], 'segmentation')
    prefix = f'{cameras[0]}/' if cameras[0] else ''
    return Node(
        package='rviz2', executable='rviz2', name='rviz', output='screen',
        arguments=['-d', str(SHARE / 'rviz' / 'segmentation.rviz'), '-f', value['rviz_frame']],
        parameters=[parameters], remappings=[(f'/segmentation/{output}', f'{node}/{prefix}{output}')
                                      for output in SHOWN])


def level(value: dict[str, str], parameters: dict[str, Any]) -> list[Node]:
    """Return what publishes the pose of the built-in street's camera: 1.5 m above the ground, level."""
    if not is_installed('tf2_ros'):  # PyPI does not have it
        return []
    return [Node(package='tf2_ros', executable='static_transform_publisher', name='camera_pose',
                 namespace=value['namespace'], parameters=[parameters], arguments=[
                     '--frame-id', 'world', '--child-frame-id', 'camera', '--z', '1.5',
                     '--roll', '-1.5707963', '--yaw', '-1.5707963'])]


def boolean(name: str, text: str) -> bool:
    """Return the value of a boolean argument, in any spelling of YAML, Python or Nav2."""
    lowered = text.strip().lower()
    if lowered in ('true', '1', 'yes', 'on', 'y'):
        return True
    if lowered in ('false', '0', 'no', 'off', 'n', ''):
        return False
    raise ValueError(f'{name} is {text!r}; expected true or false')


def number(name: str, text: str) -> float:
    """Return the value of an argument that is a number."""
    try:
        return float(text)
    except ValueError as e:
        raise ValueError(f'{name} is {text!r}; expected a number, such as 0.1') from e


def camera_names(text: str) -> list[str]:
    """Split names at commas and spaces; a YAML list is accepted too. One camera has the name ''."""
    return re.sub('[][,"\']', ' ', text).split() or ['']


def read_parameters(path: str) -> dict[str, dict[str, Any]]:
    """Return the parameters that a file holds for each node, by its name with wildcards; or ValueError."""
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except OSError as e:
        raise ValueError(f'params_file {path!r} cannot be read: {e.strerror}') from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f'params_file {path!r} is not YAML: {" ".join(str(e).split())}') from e
    return dict(of_nodes(tree if isinstance(tree, dict) else {}))


def of_nodes(tree: dict, above: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the full names of the nodes, with wildcards, and the parameters that a file has for them."""
    for key, value in tree.items():
        if key == 'ros__parameters':
            yield above, value if isinstance(value, dict) else {}
        elif isinstance(value, dict):
            yield from of_nodes(value, f'{above}/{str(key).strip("/")}')


def full_name(namespace: str, name: str) -> str:
    """Return the full name of a node."""
    return f'/{namespace.strip("/")}/{name}'.replace('//', '/')


def is_for(key: str, name: str) -> bool:
    """Return whether a node gets what a file holds for a key: * is one name, ** any number of them."""
    pattern = ''.join({'**': '(/[^/]+)*', '*': '/[^/]+'}.get(part, '/' + re.escape(part))
                      for part in key.strip('/').split('/'))
    return re.fullmatch(pattern, name) is not None


def of_camera(found: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """
    Return the parameters that a file has for a camera node under its own name.

    What a file has for all nodes is meant for the segmentation node.
    """
    parameters: dict[str, Any] = {}
    for key, values in found.items():
        if '*' not in key.rpartition('/')[2] and is_for(key, name):
            parameters |= {k: ParameterValue(v, value_type=str) if isinstance(v, str) else v
                           for k, v in values.items()}
    return parameters


def warn_of_misspelt(given: dict[str, str]) -> None:
    """
    Warn of arguments that this file does not have and whose names are almost those of its own.

    launch ignores them silently. Others may belong to a launch file that includes this one.
    """
    known = [*PARAMETERS, *NUMBERS, *BOOLEANS, *OTHERS]
    for name in given:
        if name not in known and (near := get_close_matches(name, known, 1, 0.8)):
            get_logger('segment.launch.py').warning(
                f'unknown argument {name!r} is ignored; did you mean {near[0]!r}?')


def image_remappings(value: dict[str, str], camera: str) -> list[tuple[str, str]]:
    """Return the remappings of the images of one camera."""
    names = [f'{camera}/{name}'.lstrip('/') for name in ('image', 'image/compressed')]
    if value['compressed_topic']:
        return [(names[1], topic_of(camera, value['compressed_topic'], 'compressed'))]
    topic = topic_of(camera, value['image_topic'].removesuffix('/compressed'))
    return [(names[0], topic), (names[1], f'{topic}/compressed')]


def nodes(context: LaunchContext) -> list[Node]:
    """Create the nodes; only arguments that were given override the params_file."""
    value = context.launch_configurations
    warn_of_misspelt(value)
    value['params_file'] = str(Path(value['params_file']).expanduser())
    in_file = read_parameters(value['params_file'])
    ours = full_name(value['namespace'], 'segmentation')
    if not value['cameras']:  # the topics depend on them
        value['cameras'] = str(next((values['cameras'] for key, values in in_file.items()
                                     if is_for(key, ours) and values.get('cameras')), ''))
    if value['compressed_topic'] or value['image_topic'].endswith('/compressed'):
        value['image_transport'] = 'compressed'
    cameras = camera_names(value['cameras'])
    value['cameras'] = ' '.join(cameras)
    sources = {camera: full_name(value['namespace'], f'camera_{camera}'.rstrip('_'))
               for camera in cameras if value['camera'] != 'none'}
    if not any(is_for(key, node) for key in in_file for node in (ours, *sources.values())):
        raise ValueError(f'params_file {value["params_file"]!r} has no parameters for {ours}: it holds '
                         + (f'ros__parameters for {", ".join(in_file)}' if in_file else 'no ros__parameters')
                         + f'; expected the key {ours} or /**')
    given: dict[str, Any] = {name: ParameterValue(value[name], value_type=str)
                             for name in PARAMETERS if value[name]}
    given |= {name: number(name, value[name]) for name in NUMBERS if value[name]}
    given |= {name: boolean(name, value[name]) for name in BOOLEANS if value[name]}
    use_sim_time = {'use_sim_time': boolean('use_sim_time', value['use_sim_time'])}
    # First those of the images: an error names what was given.
    images = {camera: image_remappings(value, camera) for camera in cameras}
    depths = {camera: depth_topics(camera, value) for camera in cameras}
    points: dict[str, Any] = {'publish_points': True} if value['depth_topic'] else {}
    if value['depth_topic'].endswith('/compressedDepth'):
        points['depth_transport'] = 'compressedDepth'
    common = {
        'package': 'lightseg_ros', 'namespace': value['namespace'], 'output': 'screen', 'emulate_tty': True,
        'sigterm_timeout': '15',  # freeing the network takes more than the usual 5 s on a busy machine
        'arguments': ['--ros-args', '--log-level', value['log_level']]}
    started = [Node(
        executable='segmentation_node', name='segmentation',
        respawn=boolean('use_respawn', value['use_respawn']), respawn_delay=2.0,
        parameters=[value['params_file'], {**given, **points, **use_sim_time}],
        remappings=[*(pair for pairs in images.values() for pair in pairs),
                    *((f'{camera}/{kind}'.lstrip('/'), topic) for camera, pairs in depths.items()
                      for kind, topic in pairs)], **common)]
    if sources:
        source: dict[str, Any] = {'source': ParameterValue(value['camera'], value_type=str)}
        if value['camera_topic']:
            source['topic'] = ParameterValue(value['camera_topic'], value_type=str)
        own_depth = value['camera'] == 'synthetic' and bool(points) and 'depth_transport' not in points
        if own_depth:
            source['depth'] = True
        transport = {name: given[name] for name in ('image_transport',) if name in given}
        started += [Node(
            executable='camera_node', name=node.rpartition('/')[2],
            parameters=[{'loop': True, **of_camera(in_file, node), **source, **transport, **use_sim_time}],
            remappings=[*((name.removeprefix(f'{camera}/'), topic)
                          for name, topic in images[camera]),
                        *depth_topics(camera, value if own_depth else {**value, 'depth_topic': ''})],
            **common) for camera, node in sources.items()]
        if own_depth:
            started += level(value, use_sim_time)
    if boolean('rviz', value['rviz']):
        started.append(rviz(value, cameras, use_sim_time))
    return started


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and pass them to the nodes."""
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value='', description=text, choices=choices)
          for name, (text, choices) in PARAMETERS.items()),
        *(DeclareLaunchArgument(name, default_value='', description=text)
          for name, text in (NUMBERS | BOOLEANS).items()),
        *(DeclareLaunchArgument(name, default_value=default, description=text, choices=choices)
          for name, (default, text, choices) in OTHERS.items()),
        # Images need a larger shared-memory segment than Fast DDS's default. A profile that the user has set
        # is kept.
        SetEnvironmentVariable('FASTDDS_DEFAULT_PROFILES_FILE', EnvironmentVariable(
            'FASTDDS_DEFAULT_PROFILES_FILE', default_value=str(SHARE / 'config' / 'fastdds.xml'))),
        OpaqueFunction(function=nodes),
    ])
