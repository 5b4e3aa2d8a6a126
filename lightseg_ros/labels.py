# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Label sets: class names, colours, groups and the id that means "unlabeled", from YAML files."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from . import share_dir
from .files import read_small
from .texts import one_line

MAX_NAME = 100  # characters of a name
MAX_FILE = 1 << 20  # bytes of a file
MAX_ID = (1 << 16) - 1  # of a label file: its pixels have 16 bits at most
CLASS_FIELDS = ('id', 'name', 'color', 'source_id')
FIELDS = ('name', 'classes', 'groups', 'ignore_id', 'void_source_ids')


class LabelError(ValueError):
    """A label set that is not well formed, or a label image with ids that it does not know."""


@dataclass(frozen=True)
class LabelSet:
    """
    The classes of a data set. Class i of the network is `names[i]`, its id in a label image is i.

    `colors`: RGB, 0-255. `groups`: name -> class names (what a costmap or a planner asks for).
    `ignore_id`: "unlabeled" in our label images. `source_ids[i]`: the ids that become class i, in the data
    set's own label files; `void_source_ids`: the ids there that mean "unlabeled", and so does `ignore_id`
    unless it is a class's source id.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignore_id: int = 255
    source_ids: tuple[tuple[int, ...], ...] = ()
    void_source_ids: tuple[int, ...] = ()

    def __post_init__(self):
        n, title = len(self.names), f'label set {_shown(self.name)}'
        if not 1 <= n <= 255:
            raise LabelError(f'{title} has {n} classes; expected 1 to 255')
        if not self.source_ids:
            object.__setattr__(self, 'source_ids', tuple((i,) for i in range(n)))
        for text in (self.name, *self.names, *self.groups):
            if not (isinstance(text, str) and 0 < len(text) <= MAX_NAME and text.isprintable()):
                raise LabelError(f'{title} has the name {_shown(text)}; expected a text of 1 to {MAX_NAME} '
                                 'printable characters (in YAML, quote numbers, on, off, yes, no)')
        if self.name.startswith('.') or {*self.name} & {*'/\\'}:
            raise LabelError(f'{title}: files are called after the name of a label set; expected one without '
                             '/ and \\, and no dot at its beginning')
        doubled = sorted({x for x in self.names if self.names.count(x) > 1})
        if doubled:
            raise LabelError(f'{title} names {", ".join(doubled)} more than once')
        if len(self.colors) != n or len(self.source_ids) != n:
            raise LabelError(f'{title} has {n} names, {len(self.colors)} colours and {len(self.source_ids)} '
                             'source ids; expected one of each for every class')
        for name, c in zip(self.names, self.colors):
            if len(c) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in c):
                raise LabelError(f'{title}: color of class {name!r} is {_shown(list(c))}; expected three '
                                 'numbers from 0 to 255, red, green and blue')
        if not (type(self.ignore_id) is int and n <= self.ignore_id <= 255):
            raise LabelError(f'{title}: ignore_id is {_shown(self.ignore_id)}; expected a number from {n} to '
                             '255, no class id')
        owner: dict[int, str] = {}
        for field_name, ids in [*((f'source_id of class {name!r}', ids)
                                  for name, ids in zip(self.names, self.source_ids)),
                                ('void_source_ids', self.void_source_ids)]:
            for v in ids:
                if not (type(v) is int and 0 <= v <= MAX_ID):
                    raise LabelError(f'{title}: {field_name} is {_shown(list(ids))}; expected a number from '
                                     f'0 to {MAX_ID}, or a list of them')
                if owner.setdefault(v, field_name) != field_name:
                    raise LabelError(f'{title}: {v} is in {owner[v]} and in {field_name}; expected each id '
                                     'of the label files in one place')
            if not ids and field_name != 'void_source_ids':
                raise LabelError(f'{title}: {field_name} is an empty list; expected one id or more')
        for group, members in self.groups.items():
            unknown = [_shown(m) for m in members if m not in self.names]
            if unknown:
                raise LabelError(f'{title}: group {group!r} holds {", ".join(unknown)}, which is no class; '
                                 f'classes: {", ".join(self.names)}')

    def __len__(self) -> int:
        return len(self.names)

    def palette(self) -> np.ndarray:
        """Colour of every id, (256, 3) uint8 RGB; black where an id is no class."""
        out = np.zeros((256, 3), np.uint8)
        out[:len(self)] = self.colors
        return out

    def group_ids(self, group: str) -> tuple[int, ...]:
        """Class ids of a group; a class name is a group of its own."""
        if group in self.groups:
            return tuple(self.names.index(m) for m in self.groups[group])
        if group in self.names:
            return (self.names.index(group),)
        raise LabelError(f'unknown group or class {group!r} in label set {self.name!r}; groups: '
                         f'{", ".join(self.groups) or "none"}; classes: {", ".join(self.names)}')

    def choose_groups(self, text: str) -> dict[str, tuple[str, ...]]:
        """
        Return groups by what a user wrote: name -> classes.

        `text`: names of groups or classes, separated by commas or, if there is no comma, by spaces; or the
        path of a YAML file that maps names to lists of classes, at its top or below the key `groups`. Empty:
        the groups of the label set, without those that share a class with an earlier one.
        """
        if Path(text).suffix in ('.yaml', '.yml'):
            return _read_groups(Path(text).expanduser())
        if text.strip():
            names = [name.strip() for name in (text.split(',') if ',' in text else text.split())]
            return {name: tuple(self.names[i] for i in self.group_ids(name)) for name in names if name}
        chosen: dict[str, tuple[str, ...]] = {}
        for name, members in self.groups.items():
            if members and not {m for others in chosen.values() for m in others} & set(members):
                chosen[name] = tuple(members)
        return chosen

    def grouped(self, groups: Mapping[str, Sequence[str]]) -> tuple['LabelSet', np.ndarray]:
        """
        Return a label set with one class for each group, and the table that turns our ids into its ids.

        The table is (256,) uint8: 255 for classes in no group and for ids that are no class. A group has the
        colour of its first class. `LabelError` if there is no group, a group is empty, or a class is unknown
        or in two groups.
        """
        table = np.full(256, 255, np.uint8)
        for i, (group, members) in enumerate(groups.items()):
            if not members:
                raise LabelError(f'group {group!r} has no classes')
            for member in members:
                if member not in self.names:
                    raise LabelError(f'group {group!r} holds {member!r}, which is no class of label set '
                                     f'{self.name!r}; classes: {", ".join(self.names)}')
                at = self.names.index(member)
                if table[at] == i:
                    raise LabelError(f'class {member!r} is named twice in the group {group!r}')
                if table[at] != 255:
                    raise LabelError(f'class {member!r} is in the groups {list(groups)[table[at]]!r} and '
                                     f'{group!r}; expected each class in one group at most')
                table[at] = i
        colors = tuple(self.colors[self.names.index(members[0])] for members in groups.values())
        return LabelSet(f'{self.name} groups', tuple(groups), colors), table

    def from_source(self, ids: np.ndarray) -> np.ndarray:
        """
        Turn the data set's own ids (uint8 or uint16, any shape) into class ids, void into `ignore_id`.

        `LabelError` where an id is neither: the file belongs to another label set.
        """
        table = np.full(1 << 16, -1, np.int16)
        table[list(self.void_source_ids) + [self.ignore_id]] = self.ignore_id
        for i, own in enumerate(self.source_ids):
            table[list(own)] = i
        out = table[ids]
        if (out < 0).any():
            found = np.unique(ids[out < 0]).tolist()
            known = sorted(v for own in self.source_ids for v in own)
            raise LabelError(f'ids {found[:10]} are not in label set {self.name!r}; it knows {known} and, as '
                             f'void, {sorted({*self.void_source_ids, self.ignore_id} - {*known})}')
        return out.astype(np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Return the form of the YAML files and of the weights' metadata."""
        return {
            'name': self.name, 'ignore_id': self.ignore_id,
            'void_source_ids': list(self.void_source_ids),
            'classes': [{'id': i, 'source_id': s[0] if len(s) == 1 else list(s), 'name': n,
                         'color': list(c)} for i, (n, c, s) in
                        enumerate(zip(self.names, self.colors, self.source_ids))],
            'groups': {k: list(v) for k, v in self.groups.items()}}

    @classmethod
    def from_dict(cls, d: Any, *, strict: bool = False) -> 'LabelSet':
        """
        Build a label set from `to_dict`'s form; `LabelError` names the field that does not fit.

        A class without `id` has its place in the list as id; one without `source_id` has its id. `strict`:
        fields with unknown names are an error, as in a file that a user writes; else they are passed over.
        """
        what = 'expected name, classes (name, color, and optionally id, source_id), and optionally groups, ' \
            'ignore_id, void_source_ids'
        if strict and isinstance(d, dict):
            _no_others(f'label set {_shown(d.get("name"))}', d, FIELDS)
        if not isinstance(d, dict) or not isinstance(d.get('classes'), list):
            raise LabelError(f'not a label set: no list of classes; {what}')
        rows, groups = d['classes'], d.get('groups') or {}
        title = f'label set {_shown(d.get("name"))}'
        for i, row in enumerate(rows[:256]):
            if not isinstance(row, dict):
                raise LabelError(f'{title}: class {i} is {_shown(row)}; expected name and color')
            if strict:
                which = f' ({_shown(row["name"])})' if 'name' in row else ''
                _no_others(f'{title}: class {i}{which}', row, CLASS_FIELDS)
            if missing := [key for key in ('name', 'color') if key not in row]:
                raise LabelError(f'{title}: class {i} has no {" and no ".join(missing)}; expected '
                                 'name and color')
            if not isinstance(row['color'], (list, tuple)):
                raise LabelError(f'{title}: color of class {_shown(row["name"])} is {_shown(row["color"])}; '
                                 'expected three numbers from 0 to 255, red, green and blue')
        ids = [row.get('id', i) for i, row in enumerate(rows[:256])]
        if any(type(v) is not int for v in ids) or ids != list(range(len(rows))):
            raise LabelError(f'{title}: class ids are [{", ".join(map(_shown, ids))}]; expected 0 to '
                             f'{len(rows) - 1} in order (source_id is the number in the label files)')
        if not isinstance(groups, dict) or not all(isinstance(v, (list, tuple)) for v in groups.values()):
            raise LabelError(f'{title}: groups is {_shown(groups)}; expected lines such as "traversable: '
                             '[road, sidewalk]"')
        return cls(
            name=d.get('name', ''), names=tuple(row['name'] for row in rows),
            colors=tuple(tuple(row['color'][:4]) for row in rows),
            groups={k: tuple(v) for k, v in groups.items()}, ignore_id=d.get('ignore_id', 255),
            source_ids=tuple(_ids(row.get('source_id', i)) for i, row in enumerate(rows)),
            void_source_ids=_ids(d.get('void_source_ids', ())))


def _ids(value: Any) -> tuple[Any, ...]:
    """Return a number, or a list of numbers, as a tuple; whether they are numbers is checked later."""
    return tuple(value[:MAX_ID + 2]) if isinstance(value, (list, tuple)) else (value,)


def _no_others(title: str, found: dict[Any, Any], known: tuple[str, ...]) -> None:
    """Raise `LabelError` where a field has an unknown name: a misspelt one would be without effect."""
    others = [key for key in found if key not in known]
    if others:
        near = get_close_matches(str(others[0])[:MAX_NAME].lower(), known, 1)
        like = f', which looks like {near[0]!r}' if near else ''
        raise LabelError(f'{title} has the field {_shown(others[0])}{like}; expected {", ".join(known)}')


def _shown(value: Any) -> str:
    """
    Spell a value from a file for an error.

    Not repr() of just anything: YAML's aliases make a text of many megabytes from a list in a short file.
    """
    if isinstance(value, list) and all(isinstance(v, (int, float)) for v in value[:9]):
        value = value if len(value) < 9 else [*value[:8], '...']
        return one_line(str(value), 200)
    if value is None or isinstance(value, (str, int, float)):
        return one_line(repr(value), 80)
    return f'a {type(value).__name__}'


def _read_groups(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        tree = yaml.safe_load(read_small(path, MAX_FILE).decode())
    except OSError as e:
        raise LabelError(f'groups file {_shown(str(path))} cannot be read: {e.strerror or e}') from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise LabelError(f'groups file {one_line(path, 300)!r} is not YAML: {one_line(e)}') from e
    groups = tree.get('groups', tree) if isinstance(tree, dict) else None
    if not isinstance(groups, dict) or not all(
            isinstance(name, str) and isinstance(members, list) and all(isinstance(m, str) for m in members)
            for name, members in groups.items()):
        raise LabelError(f'groups file {_shown(str(path))} holds no groups; expected lines such as '
                         '"traversable: [road, sidewalk]", names of numbers, on, off, yes, no in quotes')
    return {name: tuple(members) for name, members in groups.items()}


def available() -> list[str]:
    """Names of the packaged label sets."""
    return sorted(p.stem for p in (share_dir() / 'config' / 'labels').glob('*.yaml'))


def load(name: str | Path) -> LabelSet:
    """Load a packaged label set by name ('camvid'), or one's own from the path of a YAML file."""
    path = Path(name)
    if path.suffix not in ('.yaml', '.yml'):
        path = share_dir() / 'config' / 'labels' / f'{name}.yaml'
    try:
        text = read_small(path, MAX_FILE).decode()
    except (OSError, ValueError) as e:
        why = getattr(e, 'strerror', '') or e
        raise LabelError(f'no label set {one_line(name, 300)!r}: {why}; packaged: '
                         f'{", ".join(available())}, or give the path of a YAML file') from e
    try:
        return LabelSet.from_dict(yaml.safe_load(text), strict=True)
    except LabelError as e:
        raise LabelError(f'{path}: {e}') from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # a date that is none is a ValueError
        raise LabelError(f'{path} is not YAML: {one_line(e)}') from e
