# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What annotation tools export becomes a data set: every layout gives the same labels."""
import base64
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
import zipfile

import cv2
import numpy as np
import pytest
import simplejpeg
import yaml

from lightseg_ros import cli, data_import, datasets, labels, pictures, polygons
from lightseg_ros.annotations import AnnotationError

NAMES = ('background', 'road', 'car')
COLORS = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142]], np.uint8)
STEMS = [f'{drive}_{i:04}' for drive in ('a', 'b') for i in range(3)]
SIZE = 40, 64  # height, width


def truth(i: int) -> np.ndarray:
    """Labels of image i: road below, a car on it, which moves."""
    ids = np.zeros(SIZE, np.uint8)
    ids[20:] = 1
    ids[16:28, 4 + 5 * i:24 + 5 * i] = 2
    return ids


def number(stem: str) -> int:
    return STEMS.index(stem) if stem in STEMS else 0


def write_images(folder: Path, stems=STEMS, ends=('', '.jpg')) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        rgb = np.ascontiguousarray(200 - COLORS[truth(number(stem))])
        (folder / f'{stem}{ends[0]}{ends[1]}').write_bytes(simplejpeg.encode_jpeg(rgb, quality=95))


def write_masks(folder: Path, encode, stems=STEMS, end='') -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / f'{stem}{end}.png').write_bytes(encode(truth(number(stem))))


def grey(ids: np.ndarray) -> bytes:
    return cv2.imencode('.png', ids)[1].tobytes()


def rgb(ids: np.ndarray) -> bytes:
    return cv2.imencode('.png', COLORS[ids][..., ::-1])[1].tobytes()


def palette(ids: np.ndarray) -> bytes:
    return pictures.encode_labels(ids, COLORS)


def label_yaml(root: Path, **more) -> None:
    (root / 'labels.yaml').write_text(yaml.safe_dump({'name': 'yard', 'classes': [
        {'name': n, 'color': c.tolist()} for n, c in zip(NAMES, COLORS)], **more}))


def labelmap(root: Path) -> None:
    rows = ''.join(f'{n}:{",".join(map(str, c))}::\n' for n, c in zip(NAMES, COLORS))
    (root / 'labelmap.txt').write_text('# label:color_rgb:parts:actions\n' + rows)


def palette_folder(root):
    write_images(root / 'images')
    write_masks(root / 'labels', palette)
    label_yaml(root)


def ids_of_16_bits(root):
    write_images(root / 'images')
    write_masks(root / 'labels', lambda ids: grey(ids.astype(np.uint16) * 300))
    label_yaml(root, classes=[{'name': n, 'color': c.tolist(), 'source_id': 300 * i}
                              for i, (n, c) in enumerate(zip(NAMES, COLORS))])


def rgb_masks(root):
    write_images(root / 'train/images', STEMS[:3])
    write_images(root / 'valid/images', STEMS[:3])  # the same names in another split
    write_masks(root / 'train/masks', rgb, STEMS[:3])
    write_masks(root / 'valid/masks', rgb, STEMS[:3])
    label_yaml(root)


def voc(root):
    write_images(root / 'JPEGImages')
    write_masks(root / 'SegmentationClass', rgb)  # CVAT's is RGB
    write_masks(root / 'SegmentationObject', rgb)
    labelmap(root)
    lists = root / 'ImageSets/Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('\n'.join(STEMS[:4]) + '\n')
    (lists / 'val.txt').write_text('\n'.join(STEMS[4:]) + '\n')


def voc_palette(root):
    write_images(root / 'JPEGImages')
    # Indices in another order than labelmap.txt: the colours tell.
    write_masks(root / 'SegmentationClass', lambda ids: pictures.encode_labels(2 - ids, COLORS[::-1]))
    labelmap(root)


def roboflow(root):
    for split, stems in (('train', STEMS[:4]), ('valid', STEMS[4:])):
        write_images(root / split, stems, ('_jpg.rf.0a1b', '.jpg'))
        write_masks(root / split, grey, stems, '_jpg.rf.0a1b_mask')
        (root / split / '_classes.csv').write_text('Pixel Value, Class\n0, background\n1, road\n2, car\n')


def cityscapes(root):
    ids = np.array([3, 7, 26], np.uint8)  # void, road, car
    for split, stems in (('train', STEMS[:4]), ('val', STEMS[4:])):
        write_images(root / 'leftImg8bit' / split / 'ulm', stems, ('_leftImg8bit', '.jpg'))
        write_masks(root / 'gtFine' / split / 'ulm', lambda x: grey(ids[x]), stems, '_gtFine_labelIds')
        write_masks(root / 'gtFine' / split / 'ulm', rgb, stems, '_gtFine_color')


def cvat_cityscapes(root):
    write_images(root / 'imgsFine/leftImg8bit/default', ends=('_leftImg8bit', '.jpg'))
    write_masks(root / 'gtFine/default', grey, end='_gtFine_labelIds')
    (root / 'label_colors.txt').write_text(''.join(
        f'{" ".join(map(str, c))} {n}\n' for n, c in zip(NAMES, COLORS)))


def segnet(root):
    write_images(root / 'train')
    write_masks(root / 'trainannot', grey)
    (root / 'classes.txt').write_text('background\nroad\ncar\n')


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def runs(mask: np.ndarray) -> list[int]:
    """COCO's run lengths, worked out pixel by pixel."""
    counts, last = [0], 0
    for v in mask.T.ravel().tolist():
        if v != last:
            counts.append(0)
            last = v
        counts[-1] += 1
    return counts


def compressed(counts: list[int]) -> str:
    """Write run lengths as pycocotools does: base 32, differences to the last but one."""
    out = []
    for i, n in enumerate(counts):
        x = n - (counts[i - 2] if i > 2 else 0)
        more = True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            out.append(chr((c | 0x20 if more else c) + 48))
    return ''.join(out)


def coco_tree(stems, segment) -> dict:
    shapes = []
    for i in range(len(stems)):
        shapes += [{'id': 2 * i, 'image_id': i, 'category_id': 7, 'segmentation': segment(truth(i) == 2, i)},
                   {'id': 2 * i + 1, 'image_id': i, 'category_id': 3, 'segmentation': [box(0, 20, 64, 40)]}]
    return {'images': [{'id': i, 'file_name': f'{s}.jpg', 'height': SIZE[0], 'width': SIZE[1]}
                       for i, s in enumerate(stems)],
            'categories': [{'id': 3, 'name': 'road'}, {'id': 7, 'name': 'car'}, {'id': 9, 'name': 'ghost'}],
            'annotations': shapes}


def coco_polygons(root):
    write_images(root / 'images')
    (root / 'annotations').mkdir()
    # The car comes first: it must not vanish below the road.
    tree = coco_tree(STEMS, lambda _, i: [box(4 + 5 * i, 16, 24 + 5 * i, 28)])
    (root / 'annotations/instances_default.json').write_text(json.dumps(tree))


def coco_runs(root):
    for split, stems in (('train', STEMS[:3]), ('valid', STEMS[:3])):
        write_images(root / split, stems)
        tree = coco_tree(stems, lambda mask, i: {
            'size': list(SIZE), 'counts': runs(mask) if i % 2 else compressed(runs(mask))})
        (root / split / '_annotations.coco.json').write_text(json.dumps(tree))


def labelme(root):
    write_images(root)
    for i, stem in enumerate(STEMS):
        car = [[4 + 5 * i, 16], [24 + 5 * i, 28]]
        mask = base64.b64encode(grey(np.ones((12, 20), np.uint8))).decode()
        shapes = [{'label': 'car', 'shape_type': 'rectangle', 'points': car} if i % 2 else
                  {'label': 'car', 'shape_type': 'mask', 'points': car, 'mask': mask},
                  {'label': 'road', 'points': [[0, 20], [64, 20], [64, 40], [0, 40]]}]
        (root / f'{stem}.json').write_text(json.dumps({
            'version': '5.5.0', 'imagePath': f'..\\x\\{stem}.jpg', 'imageHeight': SIZE[0],
            'imageWidth': SIZE[1], 'shapes': shapes}))


@pytest.mark.parametrize('write, kind, splits', [
    (palette_folder, 'folders of images and masks, classes of a YAML file', {'all': 6}),
    (ids_of_16_bits, 'folders of images and masks, classes of a YAML file', {'all': 6}),
    (rgb_masks, 'folders of images and masks, classes of a YAML file', {'train': 3, 'val': 3}),
    (voc, 'Pascal VOC with labelmap.txt, as CVAT exports', {'train': 4, 'val': 2}),
    (voc_palette, 'Pascal VOC with labelmap.txt, as CVAT exports', {'all': 6}),
    (roboflow, 'Roboflow masks with _classes.csv', {'train': 4, 'val': 2}),
    (cityscapes, 'Cityscapes-style folders, ids as in Cityscapes', {'train': 4, 'val': 2}),
    (cvat_cityscapes, 'Cityscapes-style folders with label_colors.txt', {'all': 6}),
    (segnet, 'folders of images and masks with classes.txt', {'train': 6}),
    (coco_polygons, 'COCO', {'all': 6}),
    (coco_runs, 'COCO', {'train': 3, 'val': 3}),
    (labelme, 'Labelme', {'all': 6}),
])
def test_every_layout_gives_the_same_labels(tmp_path, write, kind, splits):
    source, out = tmp_path / 'source', tmp_path / 'out'
    source.mkdir()
    write(source)
    (source / 'Thumbs.db').write_bytes(b'x')
    (source / '._a_0000.jpg').write_bytes(b'x')
    done = data_import.convert(source, out)
    assert (done.kind, done.counts, done.left_out) == (kind, splits, [])
    city = write is cityscapes
    names = NAMES[1:] if city else ('background', 'car', 'road') if write is labelme else NAMES
    assert done.labels.names == names
    if write not in (coco_polygons, coco_runs, labelme, segnet, roboflow):
        assert done.labels.colors == tuple(map(tuple, COLORS[int(city):].tolist()))
    for split in splits:
        dataset = datasets.load('folder', split, out)
        assert dataset.labels == labels.LabelSet.from_dict(done.labels.to_dict())
        for i, pair in enumerate(dataset.pairs):
            image, ids = dataset.read(i)
            stem = pair.image.stem.replace('.rf.0a1b', '').removeprefix('ulm_').removeprefix('default_')
            want = truth(STEMS.index(stem))
            # Ids of the new files by those of `truth`; void in Cityscapes.
            table = np.array([255, 0, 1] if city else [names.index(n) for n in NAMES], np.uint8)
            assert np.array_equal(ids, table[want]), pair
            # The image that belongs to it, not another one.
            assert np.abs(image.astype(int) - (200 - COLORS[want])).mean() < 12


def test_a_car_s_shape_is_filled_to_half_a_pixel():
    """A polygon with fractions of pixels: a pixel belongs to it if most of the pixel lies in it."""
    canvas = polygons._polygon([box(2.4, 3.6, 10.6, 7.4)], np.zeros((12, 16), np.uint8))
    want = np.zeros((12, 16), np.uint8)
    want[4:7, 2:11] = 1
    assert np.array_equal(canvas, want)
    outside = polygons._polygon([box(-5, -5, 4, 4), box(30, 30, 40, 40)], np.zeros((12, 16), np.uint8))
    assert outside.sum() == 16 and outside[:4, :4].all()


def test_a_zip_and_images_from_elsewhere(tmp_path, capsys):
    """CVAT exports masks without images unless it is told to; the frames are still there."""
    source = tmp_path / 'source'
    source.mkdir()
    voc(source)
    (source / 'JPEGImages').rename(tmp_path / 'frames')
    with zipfile.ZipFile(tmp_path / 'export.zip', 'w') as packed:
        for path in source.rglob('*'):
            packed.write(path, path.relative_to(source))
    out = str(tmp_path / 'out')
    assert cli.main(['data', 'import', str(tmp_path / 'export.zip'), out]) == 1
    error = capsys.readouterr().err
    assert 'nothing of it can be converted' in error and 'no image a_0000' in error
    assert cli.main(['data', 'import', str(tmp_path / 'export.zip'), out, '--images',
                     str(tmp_path / 'frames')]) == 0
    assert 'Pascal VOC with labelmap.txt' in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ['export.zip', 'frames', 'out', 'source']
    (tmp_path / 'cut.zip').write_bytes((tmp_path / 'export.zip').read_bytes()[:900])
    with pytest.raises(AnnotationError, match='cut.zip is no zip file that can be read'):
        data_import.convert(tmp_path / 'cut.zip', tmp_path / 'other')


def test_masks_of_0_and_255_are_two_classes(tmp_path):
    write_images(tmp_path / 'a/images')
    write_masks(tmp_path / 'a/masks', lambda ids: grey((ids > 0).astype(np.uint8) * 255))
    done = data_import.convert(tmp_path / 'a', tmp_path / 'plain')
    assert done.labels.names == ('background', 'foreground') and 'no file names the classes' in done.notes[0]
    done = data_import.convert(tmp_path / 'a', tmp_path / 'named', names=('floor', 'crack'))
    assert done.labels.names == ('floor', 'crack')
    _, ids = datasets.load('folder', 'all', tmp_path / 'named').read(0)
    assert np.array_equal(ids, truth(0) > 0)
    with pytest.raises(AnnotationError, match=r'2 ids or colours: class_0, class_255; --classes names 3'):
        data_import.convert(tmp_path / 'a', tmp_path / 'wrong', names='xyz')
    (tmp_path / 'a/labels.yaml').write_text('{name: crack, classes: [{name: floor, color: [9, 9, 9]}, '
                                            '{name: crack, color: [255, 0, 0]}]}')
    done = data_import.convert(tmp_path / 'a', tmp_path / 'yaml')
    assert done.notes == ['masks hold 0 and 255: 255 was taken for class crack']
    assert np.array_equal(datasets.load('folder', 'all', tmp_path / 'yaml').read(0)[1], truth(0) > 0)


def test_ids_in_three_channels_are_ids(tmp_path):
    write_images(tmp_path / 'a/images')
    write_masks(tmp_path / 'a/masks', lambda ids: grey(ids[..., None].repeat(3, 2)))
    label_yaml(tmp_path / 'a')
    data_import.convert(tmp_path / 'a', tmp_path / 'out')
    assert np.array_equal(datasets.load('folder', 'all', tmp_path / 'out').read(1)[1], truth(1))


def test_what_is_not_converted_is_said(tmp_path, capsys):
    source = tmp_path / 'source'
    source.mkdir()
    voc(source)
    cut = source / 'JPEGImages/a_0001.jpg'
    cut.write_bytes(cut.read_bytes()[:300])
    mask = source / 'SegmentationClass'
    (mask / 'b_0000.tif').write_bytes((mask / 'b_0000.png').read_bytes())
    cv2.imwrite(str(mask / 'a_0002.png'), np.zeros((8, 8, 3), np.uint8))
    strange = COLORS[truth(0)].copy()
    strange[0] = 1, 2, 3
    cv2.imwrite(str(mask / 'a_0000.png'), strange[..., ::-1])
    write_images(source / 'JPEGImages', ['c_0000'])
    assert cli.main(['data', 'import', str(source), str(tmp_path / 'out')]) == 3
    said = capsys.readouterr().out
    for part in ('a_0001.jpg is not a readable image: JPEG of 300 bytes is cut short',
                 'b_0000.png and ', 'b_0000.tif: two labels of one image',
                 'a_0002.jpg is 64x40, its label 8x8',
                 'images without a label, the first is', 'of no class, so void: color_010203 (0.83 %)',
                 '1 images in train, 2 images in val'):
        assert part in said, part
    assert (datasets.load('folder', 'train', tmp_path / 'out').read(0)[1][0] == 255).all()


def test_an_image_turned_by_exif_turns_its_label(tmp_path):
    """The label was drawn on the stored picture, which viewers show turned."""
    (tmp_path / 'a/images').mkdir(parents=True)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(COLORS[truth(0)]), quality=95)
    exif = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    block = b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif
    (tmp_path / 'a/images/x.jpg').write_bytes(jpeg[:2] + block + jpeg[2:])
    write_masks(tmp_path / 'a/labels', grey, ['x'])
    label_yaml(tmp_path / 'a')
    with pytest.raises(datasets.DataError, match='EXIF orientation 6 turns the image.*data import'):
        datasets.load('folder', 'all', tmp_path / 'a').read(0)
    data_import.convert(tmp_path / 'a', tmp_path / 'out')
    image, ids = datasets.load('folder', 'all', tmp_path / 'out').read(0)
    assert image.shape[:2] == ids.shape == (64, 40)
    assert np.array_equal(ids, np.rot90(truth(0), -1))
    assert np.abs(image.astype(int) - COLORS[ids]).mean() < 12


def test_a_split_keeps_neighbours_together(tmp_path):
    stems = [f'frame{i}' for i in range(40)]
    write_images(tmp_path / 'a/images', stems[:1])
    for i, stem in enumerate(stems):
        (tmp_path / f'a/images/{stem}.jpg').write_bytes((tmp_path / 'a/images/frame0.jpg').read_bytes())
        path = tmp_path / f'a/labels/{stem}.png'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(grey(np.where(truth(0) == 2, 2 if i < 4 else 1, truth(0)).astype(np.uint8)))
    label_yaml(tmp_path / 'a')
    held = []
    for name, seed in (('x', 1), ('y', 1), ('z', 2)):
        done = data_import.convert(tmp_path / 'a', tmp_path / name, share=0.8, seed=seed)
        assert done.counts == {'train': 32, 'val': 8}
        held.append(sorted(int(p.stem[5:]) for p in (tmp_path / name / 'images/val').iterdir()))
    assert held[0] == held[1] != held[2]
    for numbers in held:
        # Two blocks of four; frames 0 to 3, which alone show class car, are in train.
        assert len({n // 4 for n in numbers}) == 2 and 0 not in {n // 4 for n in numbers}
    # Whole drives where there are enough of them.
    drives = [f'{d}_{i}' for d in 'vwxyz' for i in range(3)]
    split = data_import._split(drives, [{0}] * 15, 0.8, 0, [])
    assert split.count('val') == 3 and len({d[0] for d, s in zip(drives, split) if s == 'val'}) == 1


def test_nothing_half_made_is_left(tmp_path, monkeypatch):
    source = tmp_path / 'source'
    source.mkdir()
    palette_folder(source)
    (tmp_path / 'there').mkdir()
    with pytest.raises(AnnotationError, match='there exists: choose another name'):
        data_import.convert(source, tmp_path / 'there')

    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(data_import.shutil, 'copyfile', full)
    with pytest.raises(OSError, match='No space left'):
        data_import.convert(source, tmp_path / 'new/folder/out')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['source', 'there']


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_half_made(tmp_path, number, code):
    source = tmp_path / 'source'
    for kind in ('images', 'labels'):
        (source / kind).mkdir(parents=True)
        content = grey(np.zeros((1000, 1000), np.uint8))
        for i in range(500):
            (source / kind / f'{i}.png').write_bytes(content)
    with subprocess.Popen([sys.executable, '-m', 'lightseg_ros.cli', 'data', 'import', source, 'new/out'],
                          cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(Path(cli.__file__).parents[2])},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        while not list(tmp_path.glob('new/.out.*')):
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(number)
        assert run.communicate(timeout=60) == (b'', None) and run.returncode == code
    assert os.listdir(tmp_path) == ['source']


def test_options_that_do_not_go_with_the_source_are_refused(tmp_path, capsys):
    for write in (palette_folder, voc, coco_polygons, labelme):
        (tmp_path / write.__name__).mkdir()
        write(tmp_path / write.__name__)
    for name, *options, message in (
            ('palette_folder', '--unlabeled', 'void', '--unlabeled is for polygons'),
            ('coco_polygons', '--classes', 'a', 'b', 'COCO, which names its classes itself; --classes is'),
            ('labelme', '--labels', str(tmp_path / 'palette_folder/labels.yaml'), '--labels is for masks'),
            ('palette_folder', '--seed', '1', '--seed is of --split')):
        assert cli.main(['data', 'import', str(tmp_path / name), str(tmp_path / 'out'), *options]) == 1
        assert message in capsys.readouterr().err
    done = data_import.convert(tmp_path / 'voc', tmp_path / 'out', names=('x', 'y', 'z'))
    assert done.labels.names == ('x', 'y', 'z')  # not those of labelmap.txt


def test_an_annotation_of_an_unknown_category_is_left_out(tmp_path):
    tmp_path.joinpath('a').mkdir()
    coco_polygons(tmp_path / 'a')
    path = tmp_path / 'a/annotations/instances_default.json'
    tree = json.loads(path.read_text())
    tree['annotations'][0]['category_id'] = 99
    path.write_text(json.dumps(tree))
    done = data_import.convert(tmp_path / 'a', tmp_path / 'out')
    assert done.counts and done.left_out == [
        '1 annotations of category 99, which instances_default.json does not name']


def test_images_that_share_an_id_are_left_out(tmp_path):
    """As after two COCO files were joined: their annotations would be drawn on both images."""
    tmp_path.joinpath('a').mkdir()
    coco_polygons(tmp_path / 'a')
    path = tmp_path / 'a/annotations/instances_default.json'
    tree = json.loads(path.read_text())
    first, second, *_ = tree['images']
    second['id'] = first['id']
    path.write_text(json.dumps(tree))
    before = len(tree['images'])
    done = data_import.convert(tmp_path / 'a', tmp_path / 'out')
    assert sum(done.counts.values()) == before - 2
    assert '2 images that have the id of another one in instances_default.json' in done.left_out
    assert any('annotations of images that instances_default.json does not list' in t for t in done.left_out)


def test_digits_that_are_no_numbers_split(tmp_path):
    """A superscript two is a digit to Python, and not to int()."""
    tmp_path.joinpath('a').mkdir()
    palette_folder(tmp_path / 'a')
    for path in [*tmp_path.glob('a/**/*.png'), *tmp_path.glob('a/**/*.jpg')]:
        path.rename(path.with_name(f'1\u00b2{path.name}'))
    assert data_import.convert(tmp_path / 'a', tmp_path / 'out', share=0.5).counts.keys() == {'train', 'val'}


def test_names_of_classes_differ(tmp_path):
    palette_folder(tmp_path / 'a')
    with pytest.raises(AnnotationError, match="--classes names 'road' twice"):
        data_import.convert(tmp_path / 'a', tmp_path / 'out', names=['road', 'road', 'car'])


@pytest.mark.parametrize('change, message', [
    (lambda t: t['categories'][0].pop('name'), 'is damaged COCO'),
    (lambda t: t['images'][0].update(height='x'), 'is damaged COCO'),
])
def test_damaged_coco_is_named(tmp_path, change, message):
    tmp_path.joinpath('a').mkdir()
    coco_polygons(tmp_path / 'a')
    path = tmp_path / 'a/annotations/instances_default.json'
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(AnnotationError, match=message):
        data_import.convert(tmp_path / 'a', tmp_path / 'out')


@pytest.mark.parametrize('segmentation', [
    {'size': [40, 64], 'counts': [5, 5]}, {'size': [40, 64], 'counts': '0'}, {'size': [40], 'counts': []},
    {'size': [64, 40], 'counts': [2560]}, [['x', 1]], 'x', {'counts': [-1, 2561], 'size': [40, 64]},
    [[1, 2, 3]],
    {'size': [48, 64], 'counts': [float('inf'), 3072]}])
def test_a_damaged_shape_leaves_its_image_out(tmp_path, segmentation):
    tmp_path.joinpath('a').mkdir()
    coco_polygons(tmp_path / 'a')
    path = tmp_path / 'a/annotations/instances_default.json'
    tree = json.loads(path.read_text())
    tree['annotations'][0]['segmentation'] = segmentation
    path.write_text(json.dumps(tree))
    done = data_import.convert(tmp_path / 'a', tmp_path / 'out')
    assert done.counts == {'all': 5} and len(done.left_out) == 1 and 'a_0000' in done.left_out[0]


def test_shapes_without_an_area_are_counted(tmp_path):
    tmp_path.joinpath('a').mkdir()
    labelme(tmp_path / 'a')
    path = tmp_path / 'a/a_0000.json'
    tree = json.loads(path.read_text())
    tree['shapes'] += [{'label': 'wire', 'shape_type': 'linestrip', 'points': [[0, 0], [5, 5]]},
                       {'label': 'hub', 'shape_type': 'circle', 'points': [[10, 8], [10, 12]]},
                       {'label': 'x'}]
    path.write_text(json.dumps(tree))
    done = data_import.convert(tmp_path / 'a', tmp_path / 'out', background=False)
    assert set(done.left_out) == {'1 shapes of the type linestrip, which has no area',
                                  "1 shapes that are damaged (a_0000.json: KeyError('points'))"}
    _, ids = datasets.load('folder', 'all', tmp_path / 'out').read(0)
    assert done.labels.names == ('car', 'hub', 'road')
    assert abs(int((ids == 1).sum()) - 16 * np.pi) < 4 and ids[0, 0] == 255


@pytest.mark.parametrize('arguments, message', [
    ([], 'holds 1 .txt; expected masks'), (['--split', '1.0'], 'split is 1; expected a share')])
def test_a_folder_of_nothing(tmp_path, capsys, arguments, message):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/notes.txt').write_text('x')
    assert cli.main(['data', 'import', str(tmp_path / 'a'), str(tmp_path / 'out'), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_linked_folders_are_read_once(tmp_path):
    """Images often lie on another disk; a link to a folder above must not be followed for ever."""
    palette_folder(tmp_path / 'real')
    source = tmp_path / 'source'
    source.mkdir()
    for path in (tmp_path / 'real').iterdir():
        (source / path.name).symlink_to(path)
    (tmp_path / 'real' / 'images' / 'up').symlink_to(source)
    assert data_import.convert(source, tmp_path / 'out').counts == {'all': len(STEMS)}


def test_a_destination_in_the_source_is_refused(tmp_path):
    palette_folder(tmp_path / 'source')
    with pytest.raises(AnnotationError, match='lies in .*source, and the next import would read it too'):
        data_import.convert(tmp_path / 'source', tmp_path / 'source/images/yard')
    with pytest.raises(AnnotationError, match='--labels and --classes both name the classes'):
        data_import.convert(tmp_path / 'source', tmp_path / 'out', labels=labels.load('camvid'), names=['a'])
    assert [p.name for p in tmp_path.iterdir()] == ['source']


def test_a_damaged_or_odd_zip_is_named(tmp_path, monkeypatch):
    def packed(name: str, **contents: bytes) -> Path:
        with zipfile.ZipFile(tmp_path / name, 'w', zipfile.ZIP_DEFLATED) as file:
            for path, content in contents.items():
                file.writestr(path, content)
        return tmp_path / name

    whole = packed('whole.zip', **{'images/a.png': grey(truth(0)) * 9, 'labels/b.png': grey(truth(0))})
    with pytest.raises(AnnotationError) as caught:
        data_import.convert(whole, tmp_path / 'out')
    assert 'whole.zip/labels/b.png: no image b' in str(caught.value)  # not a folder that is gone by now
    content = bytearray(whole.read_bytes())
    content[60:120] = b'\xff' * 60
    (tmp_path / 'damaged.zip').write_bytes(content)
    with pytest.raises(AnnotationError, match='damaged.zip is no zip file that can be read'):
        data_import.convert(tmp_path / 'damaged.zip', tmp_path / 'out')
    with pytest.raises(AnnotationError, match="clash.zip cannot be unpacked: .*'images/a.jpg'"):
        data_import.convert(packed('clash.zip', **{'images': b'', 'images/a.jpg': b''}), tmp_path / 'out')
    monkeypatch.setattr(data_import.shutil, 'disk_usage', lambda _: type('Usage', (), {'free': 1000}))
    with pytest.raises(AnnotationError, match='bomb.zip holds 0.0 GB of files.*GB free'):
        data_import.convert(packed('bomb.zip', **{'a.png': bytes(1 << 20)}), tmp_path / 'out')
    assert all(p.suffix == '.zip' for p in tmp_path.iterdir())
