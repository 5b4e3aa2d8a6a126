# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The parameters of a node are the fields of one frozen dataclass.

    @dataclass(frozen=True)
    class CameraParameters:
        rate: float = parameter(15.0, 'Frames per second.', limits=(0.0, 1000.0))

    values = declare(node, CameraParameters)
    watch(node, values, apply)
"""
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import difflib
from pathlib import Path
import re
import textwrap
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter
import yaml

from ..texts import error_line

T = TypeVar('T')
# Whether rclpy lets a node convert values before it checks their types, which Humble's cannot.
CONVERTS = hasattr(Node, 'add_pre_set_parameters_callback')
# Parameters that rclpy declares itself, some of them later (QoS overrides, with their topic).
FOREIGN = ('use_sim_time', 'start_type_description_service', 'qos_overrides.')
# How people write booleans: YAML 1.1, Python, and the numbers of launch files.
BOOLEANS = dict.fromkeys(('true', 'yes', 'on', 'y', '1'), True) | dict.fromkeys(
    ('false', 'no', 'off', 'n', '0'), False)
# The values of QoS overrides that are names, for topics of ours; the others are numbers.
QOS_NAMES = {'reliability': ('reliable', 'best_effort'), 'history': ('keep_last', 'keep_all')}


class ParameterError(ValueError):
    """A parameter with an invalid value; the text names the parameter and the values that are valid."""


def parameter(default: Any, description: str, *, limits: tuple[Any, Any] | None = None,
              choices: tuple[str, ...] = (), read_only: bool = False, any_type: bool = False) -> Any:
    """
    Return a dataclass field that is a ROS parameter; its type (bool, int, float, str) is the default's.

    `limits`: lowest and highest valid value; `choices`: the valid values of a string; `read_only`: cannot be
    set while the node runs; `any_type`: a string that may also be set as a boolean. For other checks, the
    dataclass raises a ValueError in `__post_init__`.

    Whoever sets a parameter may write `5` for a float, `5.0` for a whole number, a number or a list for a
    string, and any spelling of a boolean (`True`, `yes`, `1`): it is stored as the parameter's own type.
    """
    return dataclasses.field(default=default, metadata={
        'description': description, 'limits': limits, 'choices': choices, 'read_only': read_only,
        # YAML reads the choices true and false as booleans.
        'any_type': any_type or 'true' in choices})


def declare(node: Node, cls: type[T]) -> T:
    """
    Declare every field of the dataclass `cls` as a parameter; return an instance with the given values.

    Values of another type are converted where nothing is lost (`rate:=10`). A given parameter that is not a
    field is reported as a warning with the nearest name; rclpy would ignore it silently. It is not an
    error, because one parameter file may serve several nodes. `ParameterError` if a type, a range, a choice,
    a QoS override or the check of the class fails.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    given = node._parameter_overrides  # rclpy has no public access to values that were given but not declared
    values = {}
    for field in fields:
        value = _converted(field, given[field.name].value if field.name in given else field.default)
        if type(value) is not type(field.default):
            raise ParameterError(f'parameter {field.name!r} is {value!r} ({type(value).__name__}); expected '
                                 f'{type(field.default).__name__}, such as {field.default!r}: '
                                 + field.metadata['description'])
        try:
            node.declare_parameter(field.name, value, _descriptor(field), ignore_override=True)
        except ParameterException as e:
            raise ParameterError(f'parameter {field.name!r} is {value!r}; {_expected(field)} ({e})') from e
        values[field.name] = value
    for name, override in given.items():
        _check_qos_override(name, override.value)
    names = [field.name for field in fields]
    for name in given:
        if name not in names and not name.startswith(FOREIGN):
            if name == 'image_topic':  # the name of the launch argument
                node.get_logger().warning(f'unknown parameter {name!r} is ignored; topics are remapped: '
                                          '-r image:=/your/topic')
                continue
            near = difflib.get_close_matches(name, names, 1)
            node.get_logger().warning(
                f'unknown parameter {name!r} is ignored'
                + (f'; did you mean {near[0]!r}?' if near else f'; this node has {", ".join(names)}'))
    return _build(cls, values)


def _check_qos_override(name: str, value: Any) -> None:
    """
    Raise a `ParameterError` if a parameter is a QoS override with a value that no topic of ours takes.

    rclpy sees that too, but only when the topic is created, and without naming the parameter.
    """
    policy = name.rpartition('.')[2]
    if not name.startswith('qos_overrides.'):
        return
    if policy in QOS_NAMES and str(value).lower() not in (*QOS_NAMES[policy], 'system_default',
                                                          'best_available'):
        near = difflib.get_close_matches(str(value).lower(), QOS_NAMES[policy], 1)
        raise ParameterError(f'parameter {name!r} is {value!r}; expected {" or ".join(QOS_NAMES[policy])}'
                             + (f'; did you mean {near[0]!r}?' if near else ''))
    if policy == 'depth' and not (type(value) is int and 0 <= value < 1 << 31):
        raise ParameterError(f'parameter {name!r} is {value!r}; expected a whole number of messages')


def warn_of_unused_qos_overrides(node: Node) -> None:
    """Warn of QoS overrides for topics or policies that the node does not have."""
    taken = [name for name in node._parameters if name.startswith('qos_overrides.')]
    topics = {name.rsplit('.', 2)[0] for name in taken}
    for name in node._parameter_overrides:
        # What belongs to a topic that is not in use yet, such as a lazy subscription, may still be taken.
        if name.startswith('qos_overrides.') and name not in taken:
            near = difflib.get_close_matches(name, taken, 1)
            node.get_logger().warning(
                f'{name} is ignored' + (f'; did you mean {near[0]}?' if near else
                                        f'; this node takes them for {", ".join(sorted(topics))}'))


def warn_of_unused_files(node: Node, arguments: Sequence[str]) -> None:
    """
    Warn of each parameter file among the arguments of a process that has nothing for its only node.

    rclpy ignores such a file silently. Usually its key is the name of the executable, or lacks the namespace.
    """
    name = node.get_fully_qualified_name()
    for option, path in zip(arguments, arguments[1:]):
        if option != '--params-file':
            continue
        try:
            tree = yaml.safe_load(Path(path).read_text())
        except (OSError, ValueError, yaml.YAMLError):  # gone, or YAML that only rclpy's parser takes
            continue
        keys = list(_node_keys(tree if isinstance(tree, dict) else {}))
        if not any(_is_for(key, name) for key in keys):
            node.get_logger().warning(
                f'{path} is ignored: it has '
                + (f'parameters for {", ".join(keys)}, but none for ' if keys else 'no ros__parameters for ')
                + f'this node, {name}; write {name} or /** as the key above ros__parameters')


def _node_keys(tree: dict, above: str = '') -> Iterator[str]:
    """Yield the full names of the nodes, with wildcards, that a parameter file is for."""
    for key, value in tree.items():
        if key == 'ros__parameters':
            yield above
        elif isinstance(value, dict):
            yield from _node_keys(value, f'{above}/{str(key).strip("/")}')


def _is_for(key: str, name: str) -> bool:
    """Whether rclpy gives a node what a file holds for `key`: * is one name, ** any number of them."""
    pattern = ''.join({'**': '(/[^/]+)*', '*': '/[^/]+'}.get(part, '/' + re.escape(part))
                      for part in key.strip('/').split('/'))
    return re.fullmatch(pattern, name) is not None


def watch(node: Node, values: T, apply: Callable[[T], None]) -> Callable[[list[Parameter]], T]:
    """
    Call `apply(new)` with a new instance whenever parameters are set while the node runs.

    All changes of one atomic request arrive in one call. If a check fails, or `apply` raises an error,
    the request is refused with the text of the error, and nothing changes. Returns a function that builds the
    instance that a request would lead to; ValueError if a check fails.
    """
    current = values
    fields = {field.name: field for field in dataclasses.fields(values)}  # type: ignore[arg-type]

    def preview(parameters: list[Parameter]) -> T:
        # rclpy refuses these too, but only after whatever the preview is for.
        if fixed := [p.name for p in parameters if p.name in fields and fields[p.name].metadata['read_only']]:
            raise ParameterError(f'parameter {fixed[0]!r} cannot change while the node runs')
        changes = {p.name: _converted(fields[p.name], p.value) for p in parameters if p.name in fields}
        return _build(type(current), {**dataclasses.asdict(current), **changes})  # type: ignore[call-overload]

    def convert(parameters: list[Parameter]) -> list[Parameter]:
        return [Parameter(p.name, value=_converted(fields[p.name], p.value)) if p.name in fields else p
                for p in parameters]

    def on_set(parameters: list[Parameter]) -> SetParametersResult:
        nonlocal current
        if any(p.name in fields for p in parameters):
            try:
                new = preview(parameters)
                apply(new)
            except Exception as e:  # rclpy would pass it to the executor, which ends the node
                return SetParametersResult(successful=False, reason=error_line(e))
            current = new
        return SetParametersResult(successful=True)

    if CONVERTS:
        node.add_pre_set_parameters_callback(convert)
    node.add_on_set_parameters_callback(on_set)
    return preview


def _converted(field: dataclasses.Field, value: Any) -> Any:
    """Return a value as the field's type and as one of its choices, if nothing is lost by that."""
    value = _of_type(field, value)
    return _chosen(field, value) if field.metadata['choices'] and type(value) is str else value


def _of_type(field: dataclasses.Field, value: Any) -> Any:
    """Return a value as the field's type if nothing is lost: numbers, booleans, and others as strings."""
    kind = type(field.default)
    if type(value) is bool and kind is str and field.metadata['any_type']:
        return str(value).lower()
    if kind is bool and type(value) in (int, str):
        return BOOLEANS.get(str(value).strip().lower(), value)
    if isinstance(value, (list, tuple)) and kind is str:
        return ' '.join(map(str, value))
    if type(value) is int and kind in (float, str):
        return kind(value)
    if type(value) is float and (kind is str or kind is int and value.is_integer()):
        return kind(value)
    return value


def _chosen(field: dataclasses.Field, value: str) -> str:
    """Return the choice that a text means: in any case, and booleans in any spelling."""
    lowered, choices = value.strip().lower(), field.metadata['choices']
    if 'true' in choices and lowered in BOOLEANS:
        return str(BOOLEANS[lowered]).lower()
    return next((choice for choice in choices if choice.lower() == lowered), value)


def _build(cls: type[T], values: dict[str, Any]) -> T:
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        choices = field.metadata['choices']
        limits = field.metadata['limits']
        # rclpy compares types only after the checks that are begun here.
        if type(values[field.name]) is not type(field.default):
            raise ParameterError(f'parameter {field.name!r} is a {type(values[field.name]).__name__}; '
                                 f'expected {type(field.default).__name__}')
        # rclpy compares only values of the declared type with the limits, and Humble's may be of another.
        if choices and values[field.name] not in choices or \
                limits and not limits[0] <= values[field.name] <= limits[1]:
            raise ParameterError(f'parameter {field.name!r} is {values[field.name]!r}; {_expected(field)}')
    try:
        return cls(**values)
    except ParameterError:
        raise
    except ValueError as e:
        raise ParameterError(str(e)) from e


def _expected(field: dataclasses.Field) -> str:
    if field.metadata['choices']:
        return f'expected one of {", ".join(map(repr, field.metadata["choices"]))}'
    if field.metadata['limits']:
        return 'expected {} to {}'.format(*field.metadata['limits'])
    return f'expected {type(field.default).__name__}'


def _descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    metadata = field.metadata
    descriptor = ParameterDescriptor(description=metadata['description'], read_only=metadata['read_only'],
                                     dynamic_typing=not CONVERTS and type(field.default) is not int)
    if metadata['choices']:
        descriptor.additional_constraints = _expected(field)
    if metadata['limits']:
        low, high = metadata['limits']
        if isinstance(field.default, float):
            span = FloatingPointRange(from_value=float(low), to_value=float(high))
            descriptor.floating_point_range = [span]
        else:
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return descriptor


def usage(about: str, cls: type, example: str) -> str:
    """Return what `--help` prints: what a node is, an example of a call, and the parameters of `cls`."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return '\n'.join([about, '', f'example: {example}', '', 'parameters, each with its default:', *(
        textwrap.fill(f'{field.name} ({field.default!r}): {field.metadata["description"]}', 110,
                      initial_indent='  ', subsequent_indent='      ') for field in fields)])
