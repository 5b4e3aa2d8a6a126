# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import tracemalloc

import numpy as np
import pytest

from lightseg_ros import labels
from lightseg_ros.labels import LabelError, LabelSet


def test_packaged_sets():
    assert labels.available() == ['camvid', 'cityscapes']
    camvid, cityscapes = labels.load('camvid'), labels.load('cityscapes')
    assert (len(camvid), len(cityscapes)) == (11, 19)
    assert camvid.names[3] == 'road' and camvid.colors[3] == (128, 64, 128)
    assert cityscapes.names[13] == 'car' and cityscapes.source_ids[13] == (26,)
    assert camvid.group_ids('traversable') == (3, 4) and camvid.group_ids('car') == (8,)


def test_palette_is_black_where_no_class_is():
    palette = labels.load('camvid').palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert palette[3].tolist() == [128, 64, 128] and not palette[11:].any()


def test_source_ids_become_class_ids():
    cityscapes = labels.load('cityscapes')
    # Every labelId of the data set is either one of the 19 classes or void.
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    out = cityscapes.from_source(ids)
    assert out.dtype == np.uint8 and out.shape == ids.shape
    assert out.flat[7] == 0 and out.flat[33] == 18 and out.flat[0] == 255
    assert (out != 255).sum() == 19
    assert labels.load('camvid').from_source(np.array([0, 10, 11, 255])).tolist() == [0, 10, 255, 255]


def test_several_ids_become_one_class(tmp_path):
    path = tmp_path / 'own.yaml'
    path.write_text("""
        name: yard
        void_source_ids: 3
        classes:
          - {name: ground, color: [1, 2, 3], source_id: [0, 7, 65535]}
          - {name: crack, color: [4, 5, 6], source_id: 255}
    """)
    yard = labels.load(path)
    assert yard.source_ids == ((0, 7, 65535), (255,)) and yard.void_source_ids == (3,)
    assert yard.from_source(np.array([0, 7, 65535, 255, 3], np.uint16)).tolist() == [0, 0, 0, 1, 255]
    assert LabelSet.from_dict(yard.to_dict()) == yard
    # The node's label_info says more.
    assert LabelSet.from_dict(yard.to_dict() | {'threshold': 0.5}) == yard
    # 255 is a class here, so it isn't listed as void.
    with pytest.raises(LabelError, match=r'ids \[1\] .* knows \[0, 7, 255, 65535\] and, as void, \[3\]'):
        yard.from_source(np.array([1], np.uint8))


def test_foreign_ids_are_an_error():
    with pytest.raises(LabelError, match=r'ids \[12, 33\] are not in label set'):
        labels.load('camvid').from_source(np.array([[0, 12], [33, 1]], np.uint8))


def test_round_trip():
    for name in labels.available():
        label_set = labels.load(name)
        assert LabelSet.from_dict(label_set.to_dict()) == label_set


@pytest.mark.parametrize(('text', 'message'), [
    ('- 1', 'not a label set'),
    ('name: [', 'is not YAML'),
    ('{name: x, classes: [{id: 1, name: a, color: [0, 0, 0]}]}', r'class ids are \[1\]'),
    ('{name: x, classes: [{id: 0, name: a, color: [0, 300, 0]}]}', 'three numbers from 0 to 255'),
    ('{name: x, classes: [{id: 0, name: a, color: [0, 0, 0]}, {id: 1, name: a, color: [0, 0, 0]}]}',
     'names a more than once'),
    ('{name: x, classes: [{id: 0, name: 1, color: [0, 0, 0]}]}', 'name 1; expected a text'),
    ('{name: x, classes: [{id: 0, name: "\\e[2J", color: [0, 0, 0]}]}', 'printable characters'),
    ('{name: x, classes: [{id: 0, name: a, color: [0, 0, 0]}], void_source_ids: [-1]}', 'from 0 to 65535'),
    ('{name: 2020-99-99, classes: []}', 'is not YAML'),
    ('[' * 5000, 'is not YAML'),
    ('#' * (1 << 20) + '#', 'longer than 1048576 bytes'),
    ('{name: x, classes: [{id: 0, name: a, color: [0, 0, 0]}], groups: {g: [b]}}', 'which is no class'),
    ('{name: x, ignore_id: 0, classes: [{id: 0, name: a, color: [0, 0, 0]}]}', 'ignore_id is 0'),
    ('{name: x, ignore_id: 300, classes: [{name: a, color: [0, 0, 0]}]}', 'ignore_id is 300; .* 1 to 255'),
    ('{name: x, classes: [{name: a, color: [0, 0, 0], source_id: -1}]}',
     r"source_id of class 'a' is \[-1\]; expected a number from 0 to 65535"),
    ('{name: x, classes: [{name: a, color: [0, 0, 0], source_id: [1, 65536]}]}',
     r"source_id of class 'a' is \[1, 65536\]; expected a number from 0 to 65535, or a list"),
    ('{name: x, classes: [{name: a, color: [0, 0, 0], source_id: on}]}',
     r"source_id of class 'a' is \[True\]"),
    ('{name: x, classes: [{name: a, color: [0, 0, 0], source_id: []}]}', 'an empty list; expected one id'),
    ('{name: x, classes: [{name: a, color: [0, 0, 0], source_ids: [1]}]}',
     "'source_ids', which looks like 'source_id'; expected id, name, color, source_id"),
    ('{name: x, classes: [{name: a, color: [0, 0, 0]}], void_ids: [3]}', "has the field 'void_ids'"),
    ('{name: x, classes: [{name: a, color: red}]}', "color of class 'a' is 'red'; expected three numbers"),
    ('{name: x, classes: [{name: a}]}', 'class 0 has no color; expected name and color'),
    ('{name: x, classes: [{name: a, colour: [0, 0, 0]}]}',
     "class 0 \\('a'\\) has the field 'colour', which looks like 'color'; expected id, name, color"),
    ('{name: x, Clases: [{name: a, color: [0, 0, 0]}]}', "the field 'Clases', which looks like 'classes'"),
    ('{name: off, classes: [{name: a, color: [0, 0, 0]}]}', 'has the name False; .* quote numbers, on, off'),
    ('{name: ../../x, classes: [{name: a, color: [0, 0, 0]}]}', 'expected one without /'),
    ('{name: .x, classes: [{name: a, color: [0, 0, 0]}]}', 'no dot at its beginning'),
    ('{name: x, classes: [{name: a, color: [0, 0, 0]}], groups: {off: [a]}}', 'has the name False'),
    ('{name: x, classes: [{name: a, color: [0, 0, 0]}], groups: {g: a}}', 'groups is a dict; expected lines'),
    ('{name: x, classes: [{name: a, color: [0, 0, 0], source_id: 7}, {name: b, color: [0, 0, 0], '
     'source_id: [8, 7]}]}', "7 is in source_id of class 'a' and in source_id of class 'b'"),
    ('{name: x, classes: [{name: a, color: [0, 0, 0], source_id: 2}], void_source_ids: 2}',
     "2 is in source_id of class 'a' and in void_source_ids"),
])
def test_bad_files(tmp_path, text, message):
    path = tmp_path / 'own.yaml'
    path.write_text(text)
    with pytest.raises(LabelError, match=message):
        labels.load(path)


@pytest.mark.parametrize('place', ['name: *i', 'classes: [{id: *i, name: a, color: [0, 0, 0]}]',
                                   'classes: [{id: 0, name: *i, color: [0, 0, 0]}]',
                                   'classes: [{id: 0, name: a, color: *i}]', 'groups: {a: *i}', 'groups: *i',
                                   'classes: *i', 'ignore_id: *i', 'void_source_ids: *i'])
def test_aliases_do_not_become_text(tmp_path, place):
    """A list of lists of aliases, 400 bytes, is 50 MB once it is spelled out."""
    rows = '[&a [x,x,x,x,x,x,x,x], ' + ', '.join(
        f'&{new} [{",".join(["*" + old] * 8)}]' for old, new in zip('abcdefgh', 'bcdefghi')) + ']'
    fine = {'name': 'name: x', 'classes': 'classes: [{id: 0, name: a, color: [0, 0, 0]}]'}
    fine[place.partition(':')[0]] = place
    (tmp_path / 'own.yaml').write_text(f'x: {rows}\n' + '\n'.join(fine.values()))
    tracemalloc.start()
    try:
        with pytest.raises(LabelError) as error:
            labels.load(tmp_path / 'own.yaml')
        assert tracemalloc.get_traced_memory()[1] < 2e6 and len(str(error.value)) < 2000
    finally:
        tracemalloc.stop()


def test_unknown_name_lists_the_known():
    with pytest.raises(LabelError, match='packaged: camvid, cityscapes'):
        labels.load('kitti')


def test_groups_become_a_label_set_and_a_table():
    camvid = labels.load('camvid')
    groups, table = camvid.grouped(camvid.choose_groups(''))
    # The fourth group, vulnerable, shares its classes with dynamic.
    assert groups.names == ('traversable', 'static', 'dynamic') and groups.colors[0] == (128, 64, 128)
    ids = np.array([camvid.names.index(n) for n in ('road', 'sidewalk', 'tree', 'car', 'pedestrian', 'sky')])
    assert table[ids].tolist() == [0, 0, 1, 2, 2, 255]
    assert table.shape == (256,) and table.dtype == np.uint8 and (table[11:] == 255).all()
    assert list(camvid.choose_groups('vulnerable, traversable')) == ['vulnerable', 'traversable']
    # Names with spaces need commas.
    cityscapes = labels.load('cityscapes')
    assert cityscapes.choose_groups('traffic light, road') == {'traffic light': ('traffic light',),
                                                               'road': ('road',)}


def test_groups_of_a_file(tmp_path):
    path = tmp_path / 'groups.yaml'
    camvid = labels.load('camvid')
    for text in ('free: [road]\nrest: [car, tree]', 'groups: {free: [road], rest: [car, tree]}'):
        path.write_text(text)
        groups, table = camvid.grouped(camvid.choose_groups(str(path)))
        assert groups.names == ('free', 'rest') and table[[3, 8, 5, 0]].tolist() == [0, 1, 1, 255]


@pytest.mark.parametrize(('text', 'message'), [
    ('free: [raod]', "'free' holds 'raod', which is no class of label set 'camvid'; classes: sky"),
    ('a: [road]\nb: [road]', "'road' is in the groups 'a' and 'b'"),
    ('a: [road, road]', "'road' is named twice in the group 'a'"),
    ('a: []', "group 'a' has no classes"),
    ('a: road', 'holds no groups; expected lines such as'),
    ('[road]', 'holds no groups'),
    ('a: [', 'is not YAML'),
    ('a: {b: [road]}', 'holds no groups'),
    ('off: [road]', 'holds no groups; .* off, yes, no in quotes'),
])
def test_bad_groups(tmp_path, text, message):
    path = tmp_path / 'groups.yaml'
    path.write_text(text)
    camvid = labels.load('camvid')
    with pytest.raises(LabelError, match=message):
        camvid.grouped(camvid.choose_groups(str(path)))


def test_groups_that_do_not_exist():
    camvid = labels.load('camvid')
    with pytest.raises(LabelError, match='cannot be read: No such file'):
        camvid.choose_groups('none.yaml')
    with pytest.raises(LabelError, match="unknown group or class 'walkable'"):
        camvid.choose_groups('walkable')
