# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass
from pathlib import Path
import subprocess
import sys

import pytest
import yaml

rclpy = pytest.importorskip('rclpy', reason='no rclpy: pip install ros-rclpy, or source a ROS 2 distribution')

from rclpy.parameter import Parameter  # noqa: E402

from lightseg_ros.nodes.parameters import (  # noqa: E402
    declare,
    parameter,
    ParameterError,
    warn_of_unused_files,
    watch,
)


@dataclass(frozen=True)
class Values:
    rate: float = parameter(15.0, 'Frames a second.', limits=(0.0, 100.0))
    width: int = parameter(0, 'Pixels.', limits=(0, 100))
    encoding: str = parameter('rgb8', 'Order.', choices=('rgb8', 'bgr8'))
    source: str = parameter('synthetic', 'Where from.', read_only=True)
    loop: bool = parameter(True, 'Again.')

    def __post_init__(self):
        if self.width == 13:
            raise ValueError('13 pixels bring bad luck')


@pytest.fixture
def node_of():
    """Make a node in a context of its own, given the overrides as a dict."""
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    nodes = []

    def make(**given):
        node = rclpy.create_node('n', context=context, start_parameter_services=False,
                                 parameter_overrides=[Parameter(k, value=v) for k, v in given.items()])
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_declares_every_field_with_its_description_and_range(node_of):
    node = node_of(width=7.0, rate=10, source=0)  # numbers of another type, where nothing is lost
    assert declare(node, Values) == Values(width=7, rate=10.0, source='0')
    assert node.get_parameter('rate').value == 10.0 and node.get_parameter('loop').value is True
    rate, width = node.describe_parameter('rate'), node.describe_parameter('width')
    assert rate.description == 'Frames a second.' and rate.floating_point_range[0].to_value == 100.0
    assert width.integer_range[0].to_value == 100
    assert node.describe_parameter('source').read_only
    assert "'bgr8'" in node.describe_parameter('encoding').additional_constraints


@pytest.mark.parametrize('given, words', [
    ({'width': 101}, "'width' is 101; expected 0 to 100"),
    ({'rate': -1.0}, "'rate' is -1.0; expected 0.0 to 100.0"),
    ({'encoding': 'rgb9'}, "'encoding' is 'rgb9'; expected one of 'rgb8', 'bgr8'"),
    ({'width': 1.5}, "'width' is 1.5 .float.; expected int, such as 0"),
    ({'loop': 2}, "'loop' is 2 .int.; expected bool"),
    ({'loop': 'maybe'}, "'loop' is 'maybe' .str.; expected bool"),
    ({'qos_overrides./image.publisher.reliability': 'relaible'},
     "'qos_overrides./image.publisher.reliability' is 'relaible'; expected reliable or best_effort; did you "
     "mean 'reliable'"),
    ({'qos_overrides./image.publisher.history': 3}, "history' is 3; expected keep_last or keep_all"),
    ({'qos_overrides./image.publisher.depth': 'five'}, "depth' is 'five'; expected a whole number"),
    ({'qos_overrides./image.publisher.depth': -3}, "depth' is -3; expected a whole number"),
    ({'width': 13}, 'bad luck')])
def test_a_wrong_value_is_an_error_that_says_what_is_expected(node_of, given, words):
    with pytest.raises(ParameterError, match=words):
        declare(node_of(**given), Values)


def test_a_change_is_validated_applied_or_rejected(node_of):
    node = node_of()
    seen = []

    def apply(new):
        if new.rate == 99.0:
            raise ValueError('99 is too much to ask')
        seen.append(new)

    watch(node, declare(node, Values), apply)

    def change(**values):
        return node.set_parameters_atomically([Parameter(k, value=v) for k, v in values.items()])

    assert change(rate=5.0, width=3).successful
    assert change(encoding='bgr8').successful
    assert seen == [Values(rate=5.0, width=3), Values(rate=5.0, width=3, encoding='bgr8')]
    for wrong, words in (({'rate': 200.0}, 'out of range'), ({'encoding': 'x'}, 'expected one of'),
                         ({'source': 'y'}, 'read-only'), ({'width': 13}, 'bad luck'),
                         ({'rate': 99.0}, 'too much'), ({'rate': 9.0, 'width': 13}, 'bad luck')):
        result = change(**wrong)
        assert not result.successful and words in result.reason
    assert node.get_parameter('rate').value == 5.0 and len(seen) == 2
    assert change(loop=False).successful
    assert not change(loop=2).successful and not change(width=2.5).successful
    assert seen[-1] == Values(rate=5.0, width=3, encoding='bgr8', loop=False)


def test_numbers_of_another_type_are_stored_as_the_parameter_s_own(node_of):
    node = node_of()
    values = declare(node, Values)
    seen = []
    watch(node, values, seen.append)
    for name, value, stored in (('rate', 5, 5.0), ('width', 3.0, 3), ('rate', 7.5, 7.5)):
        assert node.set_parameters([Parameter(name, value=value)])[0].successful
        assert (found := node.get_parameter(name).value) == stored and type(found) is type(stored)
    assert seen[-1] == Values(rate=7.5, width=3) and type(seen[-1].width) is int
    refused, = node.set_parameters([Parameter('rate', value=200)])
    assert not refused.successful and 'range' in refused.reason


@pytest.mark.parametrize('written, value', [
    ('True', True), ('TRUE', True), ('yes', True), ('on', True), ('y', True), ('1', True), (1, True),
    (True, True), ('False', False), ('OFF', False), ('n', False), (0, False), ('0', False)])
def test_a_boolean_in_every_spelling(node_of, written, value):
    """For booleans, and for texts whose choices are true, false and others."""
    @dataclass(frozen=True)
    class Both:
        loop: bool = parameter(not value, 'Again.')
        lazy: str = parameter('subscription', 'When.', choices=('true', 'false', 'subscription'))

    expected = Both(value, str(value).lower())
    assert declare(node_of(loop=written, lazy=written), Both) == expected
    node, seen = node_of(), []
    watch(node, declare(node, Both), seen.append)
    for name, stored in (('loop', value), ('lazy', expected.lazy)):
        assert node.set_parameters([Parameter(name, value=written)])[0].successful
        assert node.get_parameter(name).value == stored
    assert seen[-1] == expected


def test_a_choice_in_any_case(node_of):
    assert declare(node_of(encoding='BGR8', **{'qos_overrides./image.publisher.reliability': 'BEST_EFFORT'}),
                   Values).encoding == 'bgr8'


@pytest.mark.parametrize('namespace', ['', '/ns', '/a/ns'])
def test_a_file_is_taken_for_a_node_as_rclpy_takes_it(tmp_path, capfd, namespace):
    """And a warning names the file exactly if rclpy takes nothing from it."""
    path, taken = tmp_path / 'p.yaml', []
    for keys in ('/**', '/*', '**', 'seg', '/seg', '/ns/*', '/ns/**', '/**/seg', '/*/seg', 'ns/seg',
                 '/ns/seg', 'ns:seg', '/**/ns/seg', 'segmentation_node', 'other seg', 'other ns/seg /a/**'):
        tree = {}
        for key in keys.split():
            *above, last = key.split(':')
            (tree.setdefault(above[0], {}) if above else tree)[last] = {'ros__parameters': {'x': 1}}
        path.write_text(yaml.safe_dump(tree))
        context, arguments = rclpy.Context(), ['--ros-args', '--params-file', str(path)]
        rclpy.init(context=context, args=arguments)
        node = rclpy.create_node('seg', namespace=namespace, context=context, start_parameter_services=False)
        taken.append(bool(node._parameter_overrides))
        warn_of_unused_files(node, ['node', *arguments])
        said = capfd.readouterr().err
        assert (f'{path} is ignored' in said) != taken[-1], (keys, said)
        node.destroy_node()
        rclpy.shutdown(context=context)
    assert {True, False} == set(taken)


def test_an_unknown_name_is_reported_with_the_nearest_known(tmp_path):
    for_others, for_all = tmp_path / 'p.yaml', tmp_path / 'q.yaml'
    for_others.write_text('the_node:\n  ros__parameters: {rate: 3.0}\na:\n  n:\n    ros__parameters: {}')
    for_all.write_text('/**:\n  ros__parameters: {rate: 4.0}')
    code = ('import sys; sys.path.insert(0, "test"); from test_parameters import *\n'
            'from lightseg_ros.nodes.lifetime import run\n'
            'def make():\n    node = rclpy.create_node("n")\n    declare(node, Values)\n    return node\n'
            'sys.exit(run(make, lambda node: True))')
    out = subprocess.run([sys.executable, '-c', code, '--ros-args', '-p', 'widht:=3', '-p', 'zzz:=1',
                          '--params-file', str(for_others), '--params-file', str(for_all),
                          '-p', 'use_sim_time:=false', '-p', 'image_topic:=/x',
                          '-p', 'qos_overrides./image.publisher.depth:=2'],
                         capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    assert out.returncode == 0, out.stderr
    assert "unknown parameter 'widht' is ignored; did you mean 'width'?" in out.stderr
    assert "unknown parameter 'zzz' is ignored; this node has rate, width" in out.stderr
    assert "'image_topic' is ignored; topics are remapped: -r image:=" in out.stderr
    assert out.stderr.count('unknown parameter') == 3
    assert ('p.yaml is ignored: it has parameters for /the_node, /a/n, but none for this node, /n; write /n '
            'or /** as the key above ros__parameters') in out.stderr
    assert 'q.yaml' not in out.stderr


def test_a_preview_checks_types_as_rclpy_does_later(node_of):
    node = node_of()
    preview = watch(node, declare(node, Values), lambda new: None)
    assert preview([Parameter('rate', value=5)]).rate == 5.0
    for name, value in (('encoding', None), ('encoding', True), ('rate', 'x'), ('width', [1])):
        with pytest.raises(ParameterError, match=f'{name!r} is a .*; expected '):
            preview([Parameter(name, value=value)])


@pytest.mark.parametrize('error', [OSError(36, 'File name too long'), KeyError('a'), MemoryError()])
def test_whatever_applying_raises_is_an_answer(node_of, error):
    """Rclpy passes an error of the callback on to the executor, which ends the node."""
    def apply(new):
        if new.width == 5:
            raise error
        applied.append(new)

    applied, node = [], node_of()
    watch(node, declare(node, Values), apply)
    refused, = node.set_parameters([Parameter('width', value=5)])
    assert not refused.successful and refused.reason and '\n' not in refused.reason
    assert node.get_parameter('width').value == 0
    assert node.set_parameters([Parameter('rate', value=1.0)])[0].successful
    assert applied == [Values(rate=1.0)]
