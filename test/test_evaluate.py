# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags and data sets scored: in one process, in several, on a Dask cluster; whole bags and broken ones."""
from dataclasses import replace
import itertools
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import threading
import tracemalloc

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from lightseg_ros import bag_writer, bags, datasets, images, weights  # noqa: E402
from lightseg_ros.bags import Bag, NS  # noqa: E402
from lightseg_ros.cli import main  # noqa: E402
from lightseg_ros.evaluation import evaluate as replays  # noqa: E402
from lightseg_ros.evaluation import progress, recordings, workers  # noqa: E402
from lightseg_ros.evaluation.parts import Parts, PartsError  # noqa: E402
from lightseg_ros.evaluation.progress import Progress  # noqa: E402
from lightseg_ros.evaluation.recordings import GroundTruthSource  # noqa: E402
from lightseg_ros.evaluation.scorer import score  # noqa: E402
from lightseg_ros.evaluation.scores import Scores  # noqa: E402
from lightseg_ros.evaluation.settings import EvaluationError, ModelSpec, Run  # noqa: E402
from lightseg_ros.inference.segmenter import Smoother  # noqa: E402

IMAGE, LABEL = '/camera/image_raw', '/camera/label'
TRUTH = GroundTruthSource(topic=LABEL)
QUIET = Run(quiet=True)


@pytest.fixture(scope='module')
def model(random_weights):
    """A network that is quick at the tests' small frames."""
    return ModelSpec(str(random_weights), 'cpu', '96x64')


def write_bag(path, count, seed=0, height=48, width=72, bad=(), topics=True):
    """A bag of noise at 10 Hz; frames whose number is in `bad` are cut short, every fourth has no label."""
    rng = np.random.default_rng(seed)
    with bag_writer.Writer(path) as writer:
        for i in range(count):
            stamp = (10 + seed) * NS + i * NS // 10
            head = bags.header(stamp, 'camera')
            rgb = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            msg = bags.image(rgb, 'bgr8', head)
            msg.data = msg.data[:100] if i in bad else msg.data
            writer.write(IMAGE, msg, stamp)
            if topics and i % 4 != 3:
                ids = rng.integers(0, 12, (height // 8, width // 8), np.uint8).repeat(8, 0).repeat(8, 1)
                ids[ids == 11] = 255
                writer.write(LABEL, bags.image(ids, 'mono8', head), stamp)
    return path


@pytest.fixture(scope='module')
def two_bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bags')
    return [write_bag(folder / 'first', 11, bad=(4,)), write_bag(folder / 'second.mcap', 7, seed=1)]


def figures(found):
    """Everything in a result but the times."""
    result = found.scores.result()
    del result['latency_ms']
    for row in result['frames']:
        del row['latency_ms']
    return result


@pytest.fixture(scope='module')
def serial(two_bags, model):
    found = replays.evaluate_bags(two_bags, model, truth=TRUTH, run=QUIET)
    return figures(found), found.scores


def test_several_bags(serial, two_bags, model):
    result, _ = serial
    assert result['counts'] == {
        'read': 18, 'duplicate_stamps': 0, 'stamps_back': 0, 'without_truth': 3, 'truth_without_frame': 0,
        'segmented': 17, 'scored': 14, 'failed': 1}
    assert [s['what'] for s in result['skipped']] == ['failed'] and 'frame 4' in result['skipped'][0]['first']
    assert [(f['source'], f['index']) for f in result['frames']] == [
        *(('first', i) for i in range(11) if i != 4), *(('second.mcap', i) for i in range(7))]
    # Stability is measured from frame to frame, not from one bag to the next, nor over a gap.
    first = {(f['source'], f['index']) for f in result['frames'] if f['consistency'] is None}
    assert first == {('first', 0), ('first', 5), ('second.mcap', 0)}
    again = replays.evaluate_bags(two_bags, model, truth=TRUTH, run=QUIET)
    assert figures(again) == result, 'a second run gives other numbers'
    assert [s['frames'] for s in again.sources] == [11, 7]
    assert again.sources[0]['sha256'] == bags.digest(two_bags[0])


def test_scores_are_those_of_the_segmenter(serial, two_bags, model):
    """The confusion matrix, worked out here from the segmenter's labels and the bag's."""
    segment, counts = model.load(), np.zeros((11, 11), np.int64)
    for path in two_bags:
        with Bag(path) as bag:
            truth = {m.stamp_ns(): images.decode(m.read())[..., 0] for m in bag.messages(LABEL)}
            for message in bag.messages(IMAGE):
                try:
                    prediction, = segment([images.decode(message.read())])
                except images.ImageError:
                    continue
                if (ids := truth.get(message.stamp_ns())) is not None:
                    np.add.at(counts, (ids[ids < 11], prediction.labels[ids < 11]), 1)
    result, scores = serial
    np.testing.assert_array_equal(scores.confusion.counts[:, :11], counts)
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert result['miou'] == pytest.approx(np.mean(100 * np.diag(counts) / union))


def test_batches_count_the_same_frames(serial, two_bags, model):
    found = replays.evaluate_bags(two_bags, model, truth=TRUTH, run=Run(batch=4, quiet=True))
    result = figures(found)
    assert result['counts'] == serial[0]['counts']
    assert [f['index'] for f in result['frames']] == [f['index'] for f in serial[0]['frames']]
    assert result['miou'] == pytest.approx(serial[0]['miou'], abs=0.05)


def test_smoothing_goes_over_the_frames_of_a_bag(serial, two_bags, model, capsys):
    """One network and one average for each bag, which begins anew behind the broken frame and with a gap."""
    smooth = replace(model, smoothing=0.5)
    found = replays.evaluate_bags(two_bags, smooth, truth=TRUTH, run=QUIET)
    segment, counts = model.load(), np.zeros((11, 11), int)
    for path in two_bags:
        smoother = Smoother(0.5)
        for item in recordings.read(recordings.index_bag(path, truth=TRUTH).tasks(20)[0], segment.labels):
            if isinstance(item, recordings.Skip):
                smoother.forget()
                continue
            labels = segment(item.rgb, smoothers=[smoother.next(item.stamp_ns)]).labels
            if item.truth is not None:
                np.add.at(counts, (item.truth[item.truth < 11], labels[item.truth < 11]), 1)
    np.testing.assert_array_equal(found.scores.confusion.counts[:, :11], counts)
    assert (counts != serial[1].confusion.counts[:, :11]).any()
    assert found.result({})['model']['smoothing'] == '0.5'
    for run in (Run(batch=2), Run(workers=2), Run(dask='tcp://nowhere:1')):
        with pytest.raises(EvaluationError, match='--smoothing needs every frame in its order'):
            replays.evaluate_bags(two_bags, smooth, run=run)
    assert main(['evaluate', '--data', 'camvid', '--smoothing', '0.2', '--batch', '2']) == 1
    assert 'works without --batch, --corrupt and --record' in capsys.readouterr().err


def test_processes_give_the_same(serial, two_bags, model):
    found = replays.evaluate_bags(two_bags, model, truth=TRUTH,
                                  run=Run(workers=2, frames_per_task=3, quiet=True))
    assert figures(found) == serial[0]
    assert found.scores.pictures() == serial[1].pictures()


def test_dask_gives_the_same_even_if_a_worker_dies(serial, two_bags, model, tmp_path):
    """Two worker processes; one is killed in the middle of its task, which the other then does."""
    distributed = pytest.importorskip('distributed', reason='dask.distributed is not installed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host='127.0.0.1',
                                  dashboard_address=None, local_directory=str(tmp_path)) as cluster, \
            distributed.Client(cluster) as client:
        address = cluster.scheduler_address
        found = replays.evaluate_bags(two_bags, model, truth=TRUTH,
                                      run=Run(dask=address, frames_per_task=3, quiet=True))
        assert figures(found) == serial[0]
        victim = sorted(client.scheduler_info()['workers'])[0]
        client.run(_die_at_the_next_task, workers=[victim])
        found = replays.evaluate_bags(two_bags, model, truth=TRUTH,
                                      run=Run(dask=address, frames_per_task=3, quiet=True,
                                              out=tmp_path / 'dask.mcap'))
        assert figures(found) == serial[0]
        assert len([m for m in contents(tmp_path / 'dask.mcap') if m[0] == '/segmentation/label']) == 17
        # The one that is started in its place has another address.
        assert victim not in client.scheduler_info()['workers'], 'it did not die'


def _die_at_the_next_task():
    import os

    from lightseg_ros.evaluation import recordings
    recordings.read = lambda *args: os._exit(1)


def test_no_dask_scheduler(two_bags, model, monkeypatch):
    monkeypatch.setattr(workers, 'DASK_TIMEOUT_S', 0.5)
    pytest.importorskip('distributed', reason='dask.distributed is not installed')
    with pytest.raises(EvaluationError, match='no Dask scheduler at tcp://127.0.0.1:9'):
        replays.evaluate_bags(two_bags, model, image_topic=IMAGE, run=Run(dask='tcp://127.0.0.1:9'))


def test_another_file_of_the_same_name(model):
    with pytest.raises(EvaluationError, match='is another file than the one of the same name'):
        replace(model, digest='0' * 64).load()


def test_folder_and_bag_are_the_same(camvid, random_weights, tmp_path):
    """CamVid's frames from its folder and from a bag made of it: the same to the last digit."""
    pairs = datasets.camvid('test', camvid).pairs[:4]
    for name in ('test', 'testannot'):
        (tmp_path / name).mkdir()
    (tmp_path / 'train').mkdir()
    for pair in pairs:
        (tmp_path / 'test' / pair.image.name).symlink_to(pair.image.resolve())
        (tmp_path / 'testannot' / pair.label.name).symlink_to(pair.label.resolve())
    dataset = datasets.camvid('test', tmp_path)
    model = ModelSpec(str(random_weights), 'cpu')
    folder = figures(replays.evaluate_dataset(dataset, model.load(), quiet=True))
    bag = tmp_path / 'camvid.mcap'
    bag_writer.from_folder(tmp_path / 'test', bag, truth=tmp_path / 'testannot', labels=dataset.labels)
    topic = replays.evaluate_bags([bag], model, truth=TRUTH, run=QUIET)
    files = replays.evaluate_bags([bag], model, image_topic=IMAGE, run=QUIET,
                                     truth=GroundTruthSource(folder=tmp_path / 'testannot', source_ids=True))
    folder['counts'].update(duplicate_stamps=0, stamps_back=0, without_truth=0, truth_without_frame=0)
    for frame in folder['frames']:
        frame['source'] = 'camvid.mcap'
    assert folder['counts']['scored'] == 4
    assert figures(topic) == folder
    assert figures(files) == folder


def test_classes_that_differ(camvid, random_weights):
    dataset = datasets.camvid('test', camvid)
    names = ('nothing', *dataset.labels.names[1:])
    with pytest.raises(EvaluationError, match='the weights know sky, .*; camvid has nothing, '):
        replays.evaluate_dataset(replace(dataset, labels=replace(dataset.labels, names=names, groups={})),
                                 ModelSpec(str(random_weights), 'cpu').load())


def test_record(camvid, random_weights, tmp_path, capsys):
    """What was measured stands in the card, rounded; the tensors are left alone."""
    path = tmp_path / 'laanet-robust-camvid.safetensors'
    path.write_bytes(random_weights.read_bytes())
    for name in ('train', 'val', 'valannot'):
        (tmp_path / name).mkdir()
    for pair in datasets.camvid('val', camvid).pairs[:2]:
        (tmp_path / 'val' / pair.image.name).symlink_to(pair.image.resolve())
        (tmp_path / 'valannot' / pair.label.name).symlink_to(pair.label.resolve())
    code = main(['evaluate', '--data', 'camvid', '--data-root', str(tmp_path), '--split', 'val', '--model',
                 str(path), '--device', 'cpu', '--record', '--json', str(tmp_path / 'r.json')])
    result = json.loads((tmp_path / 'r.json').read_text())
    network, card = weights.load(path)
    assert code == 0 and 'metrics.val.miou' in capsys.readouterr().out
    assert card.metrics['val']['miou'] == round(result['miou'], 2)
    assert card.metrics['val']['command'] == \
        'lightseg evaluate --model laanet-robust --data camvid --split val'
    assert card.metrics['val']['iou']['road'] == round(result['iou']['road'], 2)
    path = path.rename(tmp_path / 'best.safetensors')
    assert main(['evaluate', '--data', 'camvid', '--data-root', str(tmp_path), '--split', 'val', '--model',
                 str(path), '--device', 'cpu', '--record']) == 0
    assert '--model best.safetensors ' in weights.read_card(path).metrics['val']['command']
    path = path.rename(tmp_path / 'my best')
    replays.record(ModelSpec(str(path)), datasets.camvid('val', tmp_path), result)
    assert "--model './my best' " in weights.read_card(path).metrics['val']['command']
    before, _ = weights.load(random_weights)
    assert all(v.equal(network.state_dict()[k]) for k, v in before.state_dict().items())


def test_out_bag(two_bags, model, tmp_path, serial):
    out = tmp_path / 'out.mcap'
    found = replays.evaluate_bags(two_bags, model, truth=TRUTH, run=Run(out=out, quiet=True))
    assert figures(found) == serial[0]
    segment = model.load()
    with Bag(out) as bag:
        assert {t.name: (t.type.rsplit('/')[-1], t.count) for t in bag.topics.values()} == {
            '/segmentation/label_info_json': ('String', 1), '/segmentation/label': ('Image', 17),
            '/segmentation/overlay/compressed': ('CompressedImage', 17),
            '/segmentation/confidence': ('Image', 17), '/diagnostics': ('DiagnosticArray', 3)}
        info = next(bag.messages('/segmentation/label_info_json')).read()
        assert json.loads(info.data)['classes'][3]['name'] == 'road'
        results = [list(bag.messages(f'/segmentation/{topic}'))
                   for topic in ('label', 'overlay/compressed', 'confidence')]
        status = next(bag.messages('/diagnostics')).read().status[0]
        assert status.name == 'segmentation: frames'
        assert {'network p50 (ms)', 'processed'} <= {v.key for v in status.values}
    with Bag(two_bags[0]) as bag:
        frames = [m for i, m in enumerate(bag.messages(IMAGE)) if i != 4]
    for frame, label, overlay, confidence in zip(frames, *results):
        expected, = segment([images.decode(frame.read())], overlay=True, confidence=True)
        assert {m.stamp_ns() for m in (label, overlay, confidence)} == {frame.stamp_ns()} == {label.time_ns}
        assert label.read().header.frame_id == 'camera' and label.read().encoding == 'mono8'
        np.testing.assert_array_equal(images.decode(label.read())[..., 0], expected.labels)
        np.testing.assert_array_equal(images.decode(confidence.read())[..., 0], expected.confidence)
        assert np.abs(images.decode(overlay.read()).astype(int) - expected.overlay).mean() < 12
    again = tmp_path / 'workers.mcap'
    run = Run(out=again, workers=2, frames_per_task=4, quiet=True)
    assert figures(replays.evaluate_bags(two_bags, model, truth=TRUTH, run=run)) == serial[0]
    assert contents(again) == contents(out), 'parts of workers are joined in order'
    assert not list(tmp_path.glob('.*')) and sorted(p.name for p in tmp_path.iterdir()) == [
        'out.mcap', 'workers.mcap']
    small = tmp_path / 'small.mcap'
    replays.evaluate_bags(two_bags[1:], model, run=Run(out=small, jpeg_quality=10, quiet=True),
                          image_topic=IMAGE)
    sizes = [np.mean([len(m.read().data) for m in Bag(p).messages('/segmentation/overlay/compressed')])
             for p in (small, out)]
    assert sizes[0] < 0.6 * sizes[1]
    with pytest.raises(ValueError, match='out.mcap exists; no bag is overwritten'):
        replays.evaluate_bags(two_bags, model, truth=TRUTH, run=Run(out=out, quiet=True))


def contents(path):
    """All messages but the diagnostics, which hold times."""
    with Bag(path) as bag:
        topics = [t for t in bag.topics if t != '/diagnostics']
        return [(m.topic, m.time_ns, m.raw) for t in topics for m in bag.messages(t)]


def run(*args):
    return main(['evaluate', *(str(a) for a in args)])


def test_exit_codes(two_bags, model, tmp_path, capsys, caplog):
    """0: all was used; 3: something was not, which is said; 1: nothing could be scored."""
    common = ('--model', model.name, '--device', 'cpu', '--resolution', '96x64')
    assert run(two_bags[1], *common, '--label-topic', LABEL) == 0
    assert '7 frames read' in capsys.readouterr().out
    (tmp_path / 'broken.mcap').write_bytes(two_bags[1].read_bytes()[:3000])
    (tmp_path / 'text.mcap').write_text('no bag')
    assert run(two_bags[1], tmp_path / 'text.mcap', tmp_path / 'broken.mcap', *common, '--label-topic', LABEL,
               '--json', tmp_path / 'r.json') == 3
    said = capsys.readouterr().out
    assert 'text.mcap does not open as a bag' in said and '2 bags not read' in said
    assert 'text.mcap does not open as a bag' in caplog.text, 'before scoring starts'
    sources = json.loads((tmp_path / 'r.json').read_text())['sources']
    assert [s['frames'] for s in sources] == [7, 0, 0] and 'no label topic' in sources[2]['error']
    assert sorted(p.name for p in tmp_path.iterdir()) == ['broken.mcap', 'r.json', 'text.mcap']
    assert run(two_bags[0], *common, '--label-topic', LABEL) == 3, 'one frame is cut short'
    assert '1 x failed: first frame 4: bgr8 of 72x48' in capsys.readouterr().out
    for arguments, text in (
            ((two_bags[1], tmp_path / 'missing', *common, '--label-topic', LABEL), 'missing does not exist'),
            ((two_bags[1], *common, '--label-topic', LABEL, '--json', '/proc/r.json'),
             '/proc/r.json cannot be written'),
            ((two_bags[1], *common, '--label-topic', LABEL, '--json', two_bags[1]), 'would replace'),
            ((two_bags[1], *common, '--json', tmp_path / 'x', '--out', tmp_path / 'x'), 'would replace'),
            ((*two_bags, two_bags[0], *common), 'is named twice'),
            ((two_bags[1], *common, '--resume'), '--resume goes on with what'),
            ((two_bags[1], *common, '--every', '0'), "every is '0'; expected seconds such as 0.5, or frames"),
            ((two_bags[1], *common, '--image-topic', IMAGE, '--start', '9'),
             'at --start: the longest of them lasts 0.6 s'),
            ((two_bags[1], *common), 'several image topics'),
            ((two_bags[1], *common, '--label-topic', '/nope'), 'no label topic /nope; its image topics: '),
            ((two_bags[1], *common, '--label-topic', LABEL, '--image-topic', LABEL),
             f'{LABEL} is given as image topic and as label topic'),
            ((two_bags[1], *common, '--image-topic', IMAGE, '--label-dir', tmp_path), 'no images in'),
            ((two_bags[1], *common, '--label-topic', LABEL, '--label-dir', tmp_path), 'not from both'),
            ((two_bags[1], '--data', 'camvid'), 'one of the two'), ((), 'one of the two'),
            ((two_bags[1], '--record'), '--record'),
            ((two_bags[1], '--label-topic', LABEL, '--model', 'nonet'), "no packaged weights for 'nonet'")):
        caplog.clear()
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith('ERROR: ') and text in error and error.count('\n') == 1
        assert text not in caplog.text, 'it is said once'


@pytest.mark.parametrize('field, value', [('jpeg_quality', 101), ('batch', 0), ('apart_ns', -NS)])
def test_a_run_that_can_not_be(field, value):
    with pytest.raises(EvaluationError, match=f'{field.removesuffix("_ns")} is'):
        Run(**{field: value})


# A process that gets a real signal once 4 frames are done. It must not be pytest's own: faulthandler, which
# pytest enables, gives signal handlers a stack that is too small on CPUs with AMX, and memory is overwritten.
STOPPED = """
import os, signal, sys
from lightseg_ros import cli
from lightseg_ros.evaluation import progress
def interrupt(self, count):
    update(self, count)
    if self._done == 4:
        SEND
if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    update, progress.Progress.update = progress.Progress.update, interrupt
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def scheduler(tmp_path):
    """A Dask cluster that is quick to start: its worker is a thread of this process."""
    distributed = pytest.importorskip('distributed', reason='dask.distributed is not installed')
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol='tcp',
                                  host='127.0.0.1', dashboard_address=None,
                                  local_directory=str(tmp_path)) as cluster:
        yield cluster.scheduler_address


INTERRUPT = 'os.kill(os.getpid(), signal.SIGINT)'
GROUP = 'os.killpg(0, signal.SIGTERM)'  # as `timeout` and systemd do it: the workers die


def written(folder, serial):
    """Of a report's result, what `serial` has too: everything but the times."""
    result = json.loads((folder / 'result.json').read_text())
    for frame in result['frames']:
        del frame['latency_ms']
    return {k: v for k, v in result.items() if k in serial[0]}


def stop(folder, command, send=INTERRUPT):
    """Run a command that is stopped after 4 frames; return its output."""
    (folder / 'stopped.py').write_text(STOPPED.replace('SEND', send))
    said = subprocess.run([sys.executable, folder / 'stopped.py', 'evaluate', *map(str, command)],
                          capture_output=True, text=True, timeout=200, check=False, start_new_session=True,
                          env=os.environ | {'PYTHONPATH': str(Path(replays.__file__).parents[2])})
    assert said.returncode == 130, said.stderr
    assert 'stopping after the frames in progress' in said.stderr and 'Traceback' not in said.stderr
    return said.stdout


def test_stopped_with_dask(two_bags, model, tmp_path, serial, scheduler, monkeypatch):
    begun, go_on, read = itertools.count(1), threading.Event(), recordings.read

    def gated(*args):
        if next(begun) > 2:
            go_on.wait(60)  # the process must not get the third task before it is stopped
        return read(*args)

    monkeypatch.setattr(recordings, 'read', gated)
    command = (*two_bags, '--model', model.name, '--device', 'cpu', '--resolution', '96x64', '--label-topic',
               LABEL, '--frames-per-task', '2', '--report', tmp_path / 'a', '--dask', scheduler)
    assert 'stopped after 4 of 18 frames' in stop(tmp_path, command)
    go_on.set()
    assert run(*command, '--resume') == 3
    assert written(tmp_path / 'a', serial) == json.loads(json.dumps(serial[0]))


@pytest.mark.parametrize('workers, send', [(1, INTERRUPT), (2, INTERRUPT), (2, GROUP)])
def test_stopped_and_resumed(two_bags, model, tmp_path, serial, capsys, workers, send):
    """Ctrl-C in the middle leaves the result so far; --resume goes on to the numbers of one go."""
    common = (*two_bags, '--model', model.name, '--device', 'cpu', '--resolution', '96x64', '--label-topic',
              LABEL, '--frames-per-task', '2', '--report', tmp_path / 'a')
    command = (*common, '--out', tmp_path / 'a.mcap')
    said = stop(tmp_path, (*command, '--workers', workers), send)
    so_far = written(tmp_path / 'a', serial)
    done = 18 - so_far['counts']['not_reached']
    assert done == 4 if workers == 1 else 4 <= done < 18
    assert f'stopped after {done} of 18 frames; the same command with --resume' in said
    with Bag(tmp_path / 'a.mcap') as bag:
        assert bag.topics['/segmentation/label'].count == so_far['counts']['segmented'] and not bag.notes
    assert (tmp_path / 'a' / 'report.html').is_file()
    assert run(*command, '--resume', '--every', '2f') == 1
    assert 'is of another evaluation, with other --start, --duration or --every;' in capsys.readouterr().err
    assert run(*common, '--out', two_bags[0], '--resume') == 1, 'a bag that is not ours stays'
    assert run(*command, '--resume') == 3
    assert not (tmp_path / 'a' / 'parts').exists()
    assert written(tmp_path / 'a', serial) == json.loads(json.dumps(serial[0]))
    whole = Run(out=tmp_path / 'b.mcap', quiet=True)
    replays.evaluate_bags(two_bags, model, truth=TRUTH, run=whole)
    assert contents(tmp_path / 'a.mcap') == contents(tmp_path / 'b.mcap')


def test_parts_of_two_evaluations_do_not_mix(tmp_path):
    """A second one with the same output is refused while the first runs, and leaves its parts alone."""
    folder = tmp_path / 'result.json.parts'
    with Parts(folder, {'model': 'a'}, 10), pytest.raises(PartsError, match='another evaluation is writing'):
        Parts(folder, {'model': 'b'}, 10)
    assert json.loads((folder / 'evaluation.json').read_text())['model'] == 'a'
    with Parts(folder, {'model': 'b'}, 10) as second:
        pass
    second.remove()
    assert not folder.exists()


def test_stamps_that_no_bag_can_hold_do_not_end_an_evaluation(tmp_path, model):
    """Names of files may be any number; a message holds 2^31 seconds."""
    (tmp_path / 'images').mkdir()
    for name in ('1', '9' * 30, '9' * 200):
        cv2.imwrite(str(tmp_path / 'images' / f'{name}.png'), np.zeros((48, 72, 3), np.uint8))
    run = Run(out=tmp_path / 'out.mcap', quiet=True)
    found = replays.evaluate_bags([tmp_path / 'images'], model, run=run)
    assert found.scores.counts['segmented'] == 3
    with pytest.raises(bags.BagError, match='rename the files'):
        bag_writer.from_folder(tmp_path / 'images', tmp_path / 'new.mcap')
    assert not (tmp_path / 'new.mcap').exists()


def test_stamps_before_1970_are_written(tmp_path, model):
    """A clock that counts from its own start may be set back below 0; the bag's times can't be."""
    with bag_writer.Writer(tmp_path / 'drive.mcap') as writer:
        for i in range(2):
            rgb = np.full((48, 72, 3), 90 * i, np.uint8)
            writer.write(IMAGE, bags.image(rgb, 'rgb8', bags.header((i - 5) * NS)), i * NS)
    replays.evaluate_bags([tmp_path / 'drive.mcap'], model, run=Run(out=tmp_path / 'out.mcap', quiet=True))
    with Bag(tmp_path / 'out.mcap') as bag:
        stamps = [m.stamp_ns() for m in bag.messages('/segmentation/label')]
    assert stamps == [-5 * NS, -4 * NS]


def test_a_video(tmp_path, model):
    """The same numbers from one process and from workers that begin in the middle of it."""
    av = pytest.importorskip('av', reason='PyAV is not installed')
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / 'drive.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=10)
        stream.width, stream.height, stream.pix_fmt = 72, 48, 'yuv420p'
        for _ in range(13):
            rgb = rng.integers(0, 256, (6, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb)))
        container.mux(stream.encode())
    one = replays.evaluate_bags([tmp_path / 'drive.mp4'], model, run=QUIET)
    two = replays.evaluate_bags([tmp_path / 'drive.mp4'], model,
                                run=Run(workers=2, frames_per_task=5, quiet=True))
    assert figures(one) == figures(two) and one.scores.counts['segmented'] == 13
    assert one.sources[0]['sha256'] == bags.digest(tmp_path / 'drive.mp4')


def test_lines_without_a_terminal(caplog, monkeypatch):
    monkeypatch.setattr(progress, 'LINE_S', 0.0)
    with caplog.at_level('INFO'), Progress(100, done=20) as shown:
        shown.update(40)
    assert re.match(r'60 of 100 frames, [\d.]+ a second, 0 minutes left', caplog.messages[0])


def test_a_disk_that_is_too_small(tmp_path, model, monkeypatch):
    """A real file system of 3 MB: its end is foreseen after the first part."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'none', disk],
                                    check=False).returncode:
        pytest.skip('needs the right to mount a file system')
    try:
        path = write_bag(tmp_path / 'bag', 60, height=240, width=320, topics=False)
        monkeypatch.setattr(replays, 'FIRST_PART_S', 0.0)
        monkeypatch.setattr(replays, 'PART_S', 0.0)
        run = Run(out=disk / 'out.mcap', quiet=True)
        with pytest.raises(ValueError, match=r'has [\d.e-]+ GB free, and this evaluation needs about'):
            replays.evaluate_bags([path], model, run=run)
        assert not (disk / 'out.mcap').exists()
    finally:
        subprocess.run(['umount', disk], check=True)


def test_labels_that_never_match(tmp_path, model):
    with bag_writer.Writer(tmp_path / 'bag') as writer:
        for topic, stamp in ((IMAGE, 5 * NS), (LABEL, 7 * NS)):
            writer.write(topic, bags.image(np.zeros((48, 72), np.uint8), 'mono8', bags.header(stamp)), stamp)
    text = r'no label of /camera/label lies within 5 ms .* stamped 5.000 to 5.000 s'
    with pytest.raises(EvaluationError, match=text):
        replays.evaluate_bags([tmp_path / 'bag'], model, truth=TRUTH, run=QUIET)


def test_nothing_but_broken_frames(tmp_path, model, capsys):
    """Frames were read and none could be used: one line says why, and there is no table of zeros."""
    write_bag(tmp_path / 'bag', 3, bad=(0, 1, 2), topics=False)
    code = run(tmp_path / 'bag', '--model', model.name, '--device', 'cpu', '--report', tmp_path / 'report')
    said = capsys.readouterr()
    assert code == 1 and said.err.splitlines()[-1].startswith('ERROR: none of the 3 frames could be used')
    assert 'frame 0: bgr8 of 72x48' in said.err and 'IoU' not in said.out
    assert not (tmp_path / 'report').exists()
    write_bag(tmp_path / 'empty', 0)
    assert run(tmp_path / 'empty', '--model', model.name) == 1


def test_memory_does_not_grow_with_the_bag(tmp_path, model):
    """150 frames of 0.2 MB: what stays is the figures of each, not the frames."""
    with bag_writer.Writer(tmp_path / 'bag') as writer:
        for i in range(150):
            rgb = np.full((240, 320, 3), i % 256, np.uint8)
            writer.write(IMAGE, bags.image(rgb, 'rgb8', bags.header(i + 1)), i + 1)
    recording = recordings.index_bag(tmp_path / 'bag')
    segment = model.load()
    peaks = []
    for task in (recording.tasks(30)[0], recording.tasks(150)[0]):
        tracemalloc.start()
        scores = Scores(segment.labels, False)
        score(recordings.read(task, segment.labels), segment, scores)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 3e6, f'{peaks[0] / 1e6:.1f} MB for 30 frames, {peaks[1] / 1e6:.1f} for 150'


def test_16_bit_cameras(tmp_path, model, capsys):
    """Thermal counts from 7000 to 9000: the range decides what the network sees; the full one is told."""
    counts = np.linspace(7000, 9000, 48 * 72).reshape(48, 72).astype(np.uint16)
    counts = np.random.default_rng(0).permuted(counts.ravel()).reshape(48, 72)
    seen = {}
    with bag_writer.Writer(tmp_path / 'thermal.mcap') as writer:
        for i in range(2):
            writer.write(IMAGE, bags.image(counts, 'mono16', bags.header((i + 1) * NS)), (i + 1) * NS)
    recording = recordings.index_bag(tmp_path / 'thermal.mcap')
    for name in ('full', 'auto', '7000:9000'):
        task, = recording.tasks(10, images.parse_range(name))
        frame, _ = recordings.read(task, model.load().labels)
        seen[name] = frame.rgb[..., 0]
        said = frame.note.reason if frame.note else ''
        assert ('values span 7000 to 9000: 8 of 256 grey levels' in said) == (name == 'full')
    assert np.unique(seen['full']).size <= 9
    expected = np.clip((counts - 7000.0) / 2000 * 255, 0, 255)
    assert np.abs(seen['7000:9000'] - expected).max() <= 1
    assert run(tmp_path / 'thermal.mcap', '--model', model.name, '--device', 'cpu') == 0
    assert '2 x narrow_range: thermal.mcap frame 0: mono16 values span' in capsys.readouterr().out
    assert run(tmp_path / 'thermal.mcap', '--model', model.name, '--value-range', '9:1') == 1
    assert "is '9:1'; expected 'full', 'auto' or MIN:MAX" in capsys.readouterr().err
    low, high = np.percentile(counts, (1, 99))
    assert np.abs(seen['auto'] - np.clip((counts - low) / (high - low) * 255, 0, 255)).max() <= 1
