# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What `lightseg data check` counts and refuses, what its sheet shows, and that training asks it first."""
from pathlib import Path
import shutil

import cv2
import numpy as np
import pytest
from training_runs import arguments
import yaml

from lightseg_ros import cli, contact_sheet, data_check, datasets

COLORS = ([120, 160, 230], [90, 90, 90], [220, 40, 30])


def write(root: Path, split: str, count: int, label=lambda ids: ids, classes=('sky', 'road', 'box')) -> Path:
    """Write images of 48x64: sky, road below, void at the left, and a box in the first two."""
    rng = np.random.default_rng(count)
    for i in range(count):
        ids = np.zeros((48, 64), np.uint8)
        ids[20:] = 1
        if i < 2:
            ids[30:38, 20:36] = 2
        image = np.clip(np.array(COLORS)[ids] + rng.normal(0, 9, (48, 64, 3)), 0, 255).astype(np.uint8)
        ids[:, :4] = 255
        for kind, pixels in (('images', image[..., ::-1]), ('labels', label(ids))):
            path = root / kind / split / f'{split or "x"}_{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    (root / 'labels.yaml').write_text(yaml.safe_dump({'name': 'yard', 'classes': [
        {'name': n, 'color': c} for n, c in zip(classes, COLORS)]}))
    return root


def check(root: Path, split: str = 'all') -> data_check.Report:
    faults = datasets.Faults()
    return data_check.check(datasets.folder(split, root, faults), faults=faults)


def test_pixels_and_images_of_each_class(tmp_path):
    report = check(write(tmp_path, '', 4))
    assert report.pixels.tolist() == [4 * 20 * 60, 4 * 28 * 60 - 256, 256]
    assert report.present.tolist() == [4, 4, 2] and report.void == 4 * 48 * 4
    assert report.total == 4 * 48 * 64 and report.sizes == {(64, 48): 4}
    assert report.problems == report.empty == []
    assert report.warnings == ['class box is rare: 2.2 % of the labelled pixels, in 2 of 4 images; label '
                               'more of it, or merge it with another class']
    rows = data_check.table([report]).splitlines()
    assert rows[0].split('  ')[0] == 'class' and 'images of 4' in rows[0]
    assert rows[3].split() == ['box', '2', '2.2', '%', '2']
    assert rows[4].split() == ['void,', 'of', 'all', 'pixels', '6.2', '%', '4']


def test_a_split_of_one_image(tmp_path):
    """No class is called rare only because there is but one image."""
    report = check(write(tmp_path, '', 1))
    assert report.warnings == ['a split of 1 image: scores on it say little, and training on it teaches '
                               'little']


@pytest.mark.parametrize('label, classes, expected', [
    # A tool's mask of one class; 255 would be void, and the network would learn one class only.
    (lambda ids: np.where(ids == 1, 255, 0).astype(np.uint8), ('other', 'road'),
     'class road has no pixel: label pictures hold 0 and 255; 255 is void: give class road source_id: '),
    (lambda ids: np.minimum(ids, 1), ('sky', 'road', 'box'),
     'class box has no pixel: label pictures hold 0 and 1, its id is 2: correct its source_id, or take'),
])
def test_a_class_without_a_pixel_stops_training(tmp_path, capsys, label, classes, expected):
    root = write(tmp_path / 'a', '', 4, label, classes)
    assert check(root).empty[0].startswith(expected)
    assert cli.main(arguments(root, tmp_path / 'run') + ['--split', 'all']) == 1
    error = capsys.readouterr().err
    assert expected in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()
    assert data_check.before_training(datasets.folder('all', root), allow_empty=True)


def test_a_part_of_a_split_may_lack_a_class(tmp_path):
    root = write(tmp_path, 'train', 5)
    for kind in ('images', 'labels'):
        for i in (2, 3, 4):
            (root / kind / f'train/train_{i}.png').rename(root / kind / f'train/other_{i}.png')
    warnings = data_check.before_training(datasets.load('folder', 'train:other', root))
    assert 'class box has no pixel' in warnings[0]
    with pytest.raises(datasets.DataError, match='class box has no pixel.*--allow-empty-classes'):
        held = datasets.load('folder', 'train:other', root)
        data_check.before_training(datasets.DataSet(held.name, 'train', held.pairs, held.labels))


def test_every_fault_is_named_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / 'yard', '', 13)
    images, marks = root / 'images', root / 'labels'
    (images / 'x_2.png').write_bytes((images / 'x_2.png').read_bytes()[:900])
    (marks / 'x_3.png').write_bytes((marks / 'x_3.png').read_bytes()[:60])
    for i in (4, 5, 6, 7):
        cv2.imwrite(str(marks / f'x_{i}.png'), np.full((48, 64), 7, np.uint8))
    for i in (8, 12):
        cv2.imwrite(str(marks / f'x_{i}.png'), np.zeros((24, 32), np.uint8))
    (marks / 'x_9.tif').write_bytes(b'x')
    (marks / 'x_10.png').rename(marks / 'y.png')
    shutil.copy(images / 'x_0.png', images / 'x_11.png')
    assert cli.main(['data', 'check', 'yard']) == 1
    out = capsys.readouterr().out
    problems = [line for line in out.splitlines() if line.startswith('PROBLEM: ')]
    for expected in ('images/x_2.png is not a readable image: PNG of 900 bytes is cut short',
                     'labels/x_3.png is not a label picture: PNG of 60 bytes is cut short',
                     "x_4.png, x_5.png, x_6.png and 1 more: ids [7] are not in label set 'yard'",
                     'labels/x_12.png, x_8.png: each is 32x24, its image 64x48',
                     'labels/x_9.png and x_9.tif have the same stem',
                     '1 images in yard/images have no label of the same stem in yard/labels, the first is '
                     'x_10.png'):
        assert sum(expected in line for line in problems) == 1, (expected, problems)
    assert len(problems) == 6
    assert '1 labels in yard/labels have no image, the first is y.png' in out
    assert '1 images are copies of others, the first is yard/images/x_11.png of yard/images/x_0.png' in out
    assert 'next: correct 6 problems; training refuses to start' in out
    assert cv2.imread('yard-check.png').shape[1] == 940


def test_what_comes_next(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path('yard'), 'train', 6)
    assert cli.main(['data', 'check', 'yard']) == 0
    assert 'next: lightseg data import yard NEW_FOLDER --split 0.8' in capsys.readouterr().out
    write(Path('yard'), 'val', 3, np.zeros_like)  # no road, no box: not trained on, so only a warning
    shutil.copy('yard/images/train/train_0.png', 'yard/images/val/val_0.png')
    assert cli.main(['data', 'check', 'yard', '--sheet', 'sheet.png']) == 0
    out = capsys.readouterr().out
    assert 'warning: val: class road has no pixel' in out
    assert 'warning: 1 images are in train and in val, the first is yard/images/train/train_0.png' in out
    assert '--data folder --data-root yard --split train --validate val' in out.splitlines()[-1]
    assert Path('sheet.png').is_file()
    shutil.copytree('yard', 'my yard')
    assert cli.main(['data', 'check', 'my yard']) == 0
    assert "--data-root 'my yard' --split train" in capsys.readouterr().out
    cv2.imwrite('yard/labels/train/train_0.png', np.full((48, 64, 3), (1, 2, 3), np.uint8))
    assert cli.main(['data', 'check', 'yard', '--split', 'train']) == 1
    assert 'next: lightseg data import yard NEW_FOLDER converts such labels' in capsys.readouterr().out


def test_images_of_several_sizes_get_one_size_from_check_and_train(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write(Path('yard'), 'train', 6)
    write(root, 'val', 3)
    for split, number, size in (('train', 0, (128, 96)), ('train', 1, (128, 96)), ('val', 1, (80, 64)),
                                ('val', 2, (80, 64))):
        for path in root.glob(f'*/{split}/*_{number}.png'):
            cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), size,
                                              interpolation=cv2.INTER_NEAREST))
    assert cli.main(['data', 'check', 'yard']) == 0
    out = capsys.readouterr().out
    assert 'warning: train: images of 2 sizes: 64x48 (4), 128x96 (2)\n' in out
    assert 'warning: val: images of 2 sizes: 80x64 (2), 64x48 (1)\n' in out
    assert '--validate val --size 64x48 (or another size: images are scaled' in out.splitlines()[-1]
    assert out.count('--size') == 1
    assert cli.main(arguments(root, tmp_path / 'run') + ['--split', 'train']) == 1
    error = capsys.readouterr().err
    assert 'train: images of 2 sizes: 64x48 (4), 128x96 (2); expected one size: give --size 64x48' in error
    assert not any('sizes' in text for text in data_check.before_training(
        datasets.folder('train', root), scaled=True))


def test_a_folder_of_images_that_is_no_split(tmp_path, capsys, monkeypatch):
    """A link to other pictures, say; the splits beside it are checked."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'yard', '', 4)
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'yard' / 'images' / 'raw').symlink_to(tmp_path / 'raw')
    assert cli.main(['data', 'check', 'yard']) == 0
    said = capsys.readouterr().out
    assert 'all: of labelled' in said and 'warning: images/raw is left out: there is no labels/raw' in said


def test_classes_of_one_colour_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / 'yard', '', 4)
    tree = yaml.safe_load((root / 'labels.yaml').read_text())
    tree['name'] = 'export'
    for row in tree['classes'][1:]:
        row['color'] = [255, 0, 0]
    (root / 'labels.yaml').write_text(yaml.safe_dump(tree))
    assert cli.main(['data', 'check', str(root)]) == 0
    assert 'warning: road and box have the same color [255, 0, 0] in labels.yaml' in capsys.readouterr().out
    # By the folder: every import of one export has the same name in its labels.yaml.
    assert (tmp_path / 'yard-check.png').is_file() and not (tmp_path / 'export-check.png').exists()


def test_the_sheet_shows_rare_classes_in_their_colours(tmp_path):
    report = check(write(tmp_path, '', 9))
    chosen = contact_sheet._rarest_first([report], 4)
    shown = [(report.pairs[i].image.stem, report.dataset.labels.names[c]) for _, i, c in chosen]
    assert shown[0] == ('x_0', 'box') and {name for _, name in shown[:3]} == {'sky', 'road', 'box'}
    contact_sheet.write([report], tmp_path / 'sheet.png', 4)
    sheet = cv2.imread(str(tmp_path / 'sheet.png'))[..., ::-1]
    pane = contact_sheet.PANE
    # The labels of the first image: its second pane, the road in the middle of its lower part.
    top = int(np.argmax((sheet == COLORS[1]).all(2).sum(1) > 200))
    assert sheet[top + 10, contact_sheet.GAP * 2 + pane + pane // 2].tolist() == COLORS[1]
    for color in COLORS:
        assert (sheet == color).all(2).sum() > 300, color
    with pytest.raises(datasets.DataError, match='no image to show'):
        contact_sheet.write([data_check.Report(report.dataset)], tmp_path / 'none.png')


def test_names_are_drawn_in_the_letters_there_are():
    assert contact_sheet._ascii('Büsche, 道') == 'Busche, ?'
    out = np.full((30, 100, 3), 255, np.uint8)
    contact_sheet._text(out, 'a very long name of a class', (0, 20), (0, 0, 0), 60)
    assert (out[:, 62:] == 255).all() and (out[:, :60] < 255).any()


def test_an_export_is_to_be_imported(tmp_path, capsys):
    (tmp_path / 'JPEGImages').mkdir()
    assert cli.main(['data', 'check', str(tmp_path)]) == 1
    assert f'lightseg data import {tmp_path} NEW_FOLDER' in capsys.readouterr().err
