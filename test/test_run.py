# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A training run: it learns, and survives time limits, kills and several processes."""
from dataclasses import replace
import json
import operator
import re
import shlex
import signal
import subprocess
import sys
import time

import cv2
import pytest
import torch
from training_runs import arguments, close, command, environment, ROOT, rows_of, same, TINY

from lightseg_ros import datasets, weights
from lightseg_ros.cli import main
from lightseg_ros.training import run as run_module
from lightseg_ros.training import samples
from lightseg_ros.training.devices import TrainError
from lightseg_ros.training.learner import normaliser
from lightseg_ros.training.recalibration import recalibrate_weights, weights_of_checkpoint
from lightseg_ros.training.run import train
from lightseg_ros.training.trainer import Trainer

DEVICES = ['cpu', pytest.param('cuda', marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')])]


@pytest.mark.parametrize('device', DEVICES)
def test_training_learns_and_leaves_a_card(scenes, tmp_path, device):
    recipe = replace(TINY, epochs=12, loss='owfl', lr=5e-3)
    dataset, held = datasets.load('folder', 'train', scenes), datasets.load('folder', 'val', scenes)
    path = train(recipe, dataset, tmp_path, validation=held, validate_every=3, device=device)
    assert path == tmp_path / 'laanet-scenes.safetensors'
    rows = rows_of(tmp_path)
    assert len(rows) == 12 and float(rows[-1]['loss']) < 0.6 * float(rows[0]['loss'])
    scored = [float(r['miou']) for r in rows if r['miou']]
    assert len(scored) == 4 and scored[-1] > 50
    assert float(rows[-1]['images_per_s']) > 0
    card = weights.read_card(path)
    assert (card.dataset, card.split, card.resolution, card.labels.names) == \
        ('scenes', 'train', (64, 64), ('sky', 'floor', 'box'))
    assert card.recipe['loss'] == 'owfl' and card.recipe['steps'] == 24
    assert card.metrics['val']['miou'] == scored[-1]
    found = card.calibration
    assert found['data'] == 'scenes val' and found['nll_after'] <= found['nll_before']
    assert cv2.imread(str(tmp_path / 'curve.png')).std() > 5
    # Each class at each validation, and what the network made of the validation images.
    by_class = rows_of(tmp_path, 'iou.csv')
    assert [r['epoch'] for r in by_class] == ['3', '6', '9', '12']
    assert {n: float(v) for n, v in by_class[-1].items() if n != 'epoch'} == card.metrics['val']['iou']
    picture = cv2.imread(str(tmp_path / 'predictions.png'))[24:, :, ::-1]
    # Three times as large, with gaps of 6 pixels.
    assert picture.shape == (4 * 192 + 3 * 6, 3 * 192 + 2 * 6, 3)
    truth, found = picture[:, 198:390], picture[:, 396:]
    assert (truth == found).all(2).mean() > 0.7
    # The file on disk scores what its card says.
    pytest.importorskip('rosbags', reason='rosbags is not installed, which lightseg evaluate needs')
    assert main(['evaluate', '--model', str(path), '--data', 'folder', '--data-root', str(scenes), '--split',
                 'val', '--device', device, '--json', str(tmp_path / 'val.json')]) == 0
    measured = json.loads((tmp_path / 'val.json').read_text())
    assert measured['miou'] == pytest.approx(scored[-1], abs=0.1 if device == 'cpu' else 1)


def test_a_killed_run_resumes_to_the_same_weights(scenes, tmp_path):
    dataset = datasets.load('folder', 'train', scenes)
    recipe = replace(TINY, epochs=6)
    whole = train(recipe, dataset, tmp_path / 'whole', device='cpu')
    killed = tmp_path / 'killed'
    seen = []
    for saves in (1, 3):
        process = subprocess.Popen(
            command(*arguments(scenes, killed, recipe, '--resume', '--checkpoint-every', '0')),
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        stamps = set()
        until = time.monotonic() + 120
        while len(stamps) <= saves and time.monotonic() < until and process.poll() is None:
            if (killed / 'last.pt').exists():
                stamps.add((killed / 'last.pt').stat().st_mtime_ns)
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0].decode()
        assert process.returncode == -signal.SIGKILL, output
        seen.append(torch.load(killed / 'last.pt', weights_only=True)['step'])
        assert not (killed / whole.name).exists()
    assert 0 < seen[0] < seen[1] < 12
    assert main([*arguments(scenes, killed, recipe, '--resume')]) == 0
    assert same(whole, killed / whole.name)


def test_a_time_limit_ends_a_run_cleanly(scenes, tmp_path):
    dataset = datasets.load('folder', 'train', scenes)
    # The second classifier, dropped channels and averages resume too.
    recipe = replace(TINY, epochs=8, auxiliary=0.4, dropout=0.3, noise=5.0, erase=0.5, ema=0.0, swa=0.5)
    whole = train(recipe, dataset, tmp_path / 'whole', device='cpu')
    path, steps = None, []
    while not path:
        path = train(recipe, dataset, tmp_path / 'parts', device='cpu', resume=True,
                           time_limit_s=0.2 * 1.7 ** len(steps))
        steps.append(torch.load(tmp_path / 'parts/last.pt', weights_only=True)['step'])
    assert any(0 < step < 16 for step in steps) and steps[-1] == 16
    assert same(whole, path)


def test_a_budget_ends_the_schedule(scenes, tmp_path):
    recipe = replace(TINY, epochs=10_000, budget_s=1.5)
    began = time.monotonic()
    path = train(recipe, datasets.load('folder', 'train', scenes), tmp_path, device='cpu')
    assert path and time.monotonic() - began < 60
    rows = rows_of(tmp_path)
    assert len(rows) < 1000 and float(rows[-1]['lr']) < 0.9 * recipe.lr


TWO = """
import sys, torch
from lightseg_ros import datasets
from lightseg_ros.training.trainer import Trainer
from lightseg_ros.cli import main
from training_runs import TINY
from dataclasses import replace
trainer = Trainer(replace(TINY, mix=0.0), datasets.load('folder', 'train', sys.argv[1]), device='cpu')
mine = trainer.draw(0, (64, 64))
trainer.forward_backward(mine.map(lambda t: t[:2]), (64, 64))
gradient = torch.cat([p.grad.flatten() for p in trainer.network.parameters()])
torch.save({'chosen': mine.chosen, 'gradient': gradient}, f'{sys.argv[2]}/{trainer.rank}.pt')
raise SystemExit(main(sys.argv[3:]))
"""


def test_two_processes_train_one_network(scenes, tmp_path):
    """They share each batch, average its gradient, and train nearly what one process trains."""
    recipe = replace(TINY, epochs=3, mix=0.0)
    (tmp_path / 'go.py').write_text(TWO)
    result = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
         str(tmp_path / 'go.py'), str(scenes), str(tmp_path), *arguments(scenes, tmp_path / 'two', recipe)],
        env=environment() | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': f'{ROOT}:{ROOT / "test"}'},
        capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / f'{r}.pt') for r in (0, 1))
    assert torch.equal(first['gradient'], second['gradient'])
    dataset = datasets.load('folder', 'train', scenes)
    trainer = Trainer(recipe, dataset, device='cpu')
    drawn = trainer.draw(0, (64, 64))
    assert torch.equal(torch.stack([first['chosen'], second['chosen']], 1).flatten(), drawn.chosen)
    halves = []
    for half in (slice(0, 4, 2), slice(1, 4, 2)):
        trainer.network.zero_grad()
        trainer.forward_backward(drawn.map(operator.itemgetter(half)), (64, 64))
        halves.append(torch.cat([p.grad.flatten() for p in trainer.network.parameters()]))
    mean = (halves[0] + halves[1]) / 2
    assert (first['gradient'] - mean).norm() / mean.norm() < 1e-3

    train(recipe, dataset, tmp_path / 'one', device='cpu')
    card = weights.read_card(tmp_path / 'two/laanet-scenes.safetensors')
    assert card.recipe['processes'] == 2 and card.recipe['steps'] == 6
    one, two = ([float(r['loss']) for r in rows_of(tmp_path / name)] for name in ('one', 'two'))
    assert len(two) == 3 and two[-1] < two[0]
    assert two[0] == pytest.approx(one[0], rel=0.5)  # the norms see half a batch each


def test_the_first_part_has_zooms_of_its_own(scenes, tmp_path, monkeypatch):
    recipe = replace(TINY, epochs=4, first_share=0.5, first_scale=(0.5, 0.5), scale=(2.0, 2.0))
    zooms = []
    draw = samples.draw
    monkeypatch.setattr(samples, 'draw', lambda *a, **k: zooms.append(k['scale']) or draw(*a, **k))
    train(recipe, datasets.load('folder', 'train', scenes), tmp_path / 'run', device='cpu')
    assert zooms == [(0.5, 0.5)] * 2 + [(2.0, 2.0)] * 2


def test_a_run_that_is_interrupted_saves_itself(scenes, tmp_path):
    process = subprocess.Popen(
        command(*arguments(scenes, tmp_path, replace(TINY, epochs=100_000), '--checkpoint-every', '1')),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (tmp_path / 'last.pt').exists() and process.poll() is None:
        time.sleep(0.05)
    before = torch.load(tmp_path / 'last.pt', weights_only=True)['step']
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130 and 'continue with --resume' in output and 'Traceback' not in output
    assert torch.load(tmp_path / 'last.pt', weights_only=True)['step'] > before


def test_scores_need_no_memory_for_a_whole_batch():
    """A GPU that the training step has filled scores fewer images at a time; the result is the same."""
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    ids = torch.randint(0, 4, (7, 8, 8), dtype=torch.uint8)
    sizes, room = [], 8

    def network(x):
        sizes.append(len(x))
        if len(x) > room:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.')
        return x

    def validate():
        return run_module.validate(network, images, ids, lambda x: x, 3)

    expected = validate()
    sizes.clear()
    room = 2
    assert (validate().counts == expected.counts).all() and expected.counts.sum()
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        validate()


def test_the_command_line_says_what_is_wrong(scenes, tmp_path, capsys):
    assert main(['train', '--model', 'laanet', '--data', 'folder', '--data-root', str(tmp_path)]) == 1
    assert f'ERROR: {tmp_path} has no labels.yaml' in capsys.readouterr().err.replace('\n', ' ')
    few = ['train', '--model', 'laanet', '--data', 'folder', '--data-root', str(scenes),
           '--out', str(tmp_path / 'o')]
    assert main([*few, '--batch', '16']) == 1
    assert 'has 8 images, fewer than a batch of 16' in capsys.readouterr().err
    assert main([*few, '--batch', '4', '--device', 'cuda:77']) == 1
    told = capsys.readouterr().err
    assert "device is 'cuda:77', but torch" in told and "use 'cpu' or 'auto', or install a torch" in told
    for name in 'mps', 'gpu', 'cuda:', 'CUDA', 'openvino:GPU':
        assert main([*few, '--batch', '4', '--device', name]) == 1
        assert f"device is {name!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'" in capsys.readouterr().err
    spaced = tmp_path / 'my best.safetensors'
    spaced.symlink_to(weights.find('laanet'))
    for model, told in (('laanet-robust', 'To train on from these weights: '
                         '--model laanet --init laanet-robust'),
                        ('LAAnet', "unknown network 'LAAnet', did you mean 'laanet'? known: "),
                        ('unet', "unknown network 'unet'; known: laanet, "),
                        (str(spaced), f"--model laanet --init '{spaced}'"),
                        ('nowhere.safetensors', "unknown network 'nowhere.safetensors'; known: ")):
        assert main([*few, '--model', model, '--device', 'cpu']) == 1
        assert told in capsys.readouterr().err
    assert main([*few, '--batch', '4', '--device', 'cpu', '--mode', 'graph']) == 1
    assert 'mode graph needs a CUDA device' in capsys.readouterr().err


def test_holding_out_a_sequence_scores_it_beside_the_training_images(sequences, tmp_path, caplog):
    arguments = ['train', '--model', 'affnet', '--data', 'folder', '--data-root', str(sequences),
                 '--split', 'train', '--recipe', 'cpu', '--device', 'cpu', '--crop', '64x64', '--first-crop',
                 '64x64', '--batch', '2', '--epochs', '3', '--validate-every', '2', '--out', str(tmp_path)]
    assert main([*arguments, '--hold-out', 'north']) == 0
    rows = rows_of(tmp_path)
    assert [bool(r['miou']) for r in rows] == [bool(r['train_miou']) for r in rows] == [False, True, True]
    card = weights.read_card(tmp_path / 'affnet-scenes.safetensors')
    assert card.split == 'train:-north' and list(card.metrics) == ['train:north']
    found = json.loads((tmp_path / 'confusion.json').read_text())
    # Three images of 64x64, of which two rows are void.
    assert sum(map(sum, found['counts'])) == 3 * 62 * 64
    assert found['miou'] == card.metrics['train:north']['miou']
    assert found['train_miou'] == float(rows[-1]['train_miou'])
    assert main([*arguments, '--hold-out', 'north', '--validate', 'train']) == 1
    # `lightseg evaluate` scores the same images of sub-folders, by the command that the run ends with.
    command = caplog.text.partition('next: lightseg ')[2].partition(' --report ')[0]
    assert main([*shlex.split(command), '--device', 'cpu', '--json', str(tmp_path / 'e.json')]) == 0
    measured = json.loads((tmp_path / 'e.json').read_text())
    assert measured['miou'] == pytest.approx(found['miou'], abs=0.1) and measured['counts']['scored'] == 3
    # A sequence of other images is other data.
    assert main([*arguments, '--hold-out', 'south', '--resume']) == 1


def test_batch_norms_are_recalibrated_on_whole_images(scenes, tmp_path):
    """The statistics become those of the images themselves, and nothing else changes."""
    dataset = datasets.load('folder', 'train', scenes)
    plain = train(replace(TINY, recalibrate=False), dataset, tmp_path / 'plain', device='cpu')
    path = train(TINY, dataset, tmp_path / 'run', device='cpu')
    before, after = (weights.load(p)[0] for p in (plain, path))
    old, new = before.state_dict(), after.state_dict()
    differ = {k.rpartition('.')[2] for k in old if not torch.equal(old[k], new[k])}
    assert differ == {'running_mean', 'running_var', 'num_batches_tracked'}
    # The first norm's input, of all images at once, has the statistics that it holds now.
    images, _ = samples.to_device(dataset, 'cpu')
    card = weights.read_card(path)
    x = normaliser(card.mean, card.std, torch.device('cpu'))(images.float())
    norm = next(m for m in after.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    seen = []
    after(x)
    assert torch.allclose(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert torch.allclose(norm.running_var, seen[0].var((0, 2, 3)), rtol=1e-2)
    # The same for finished weights, and for a checkpoint.
    out = tmp_path / 'again.safetensors'
    recalibrate_weights(plain, dataset, out)
    assert close(out, path) and weights.read_card(out).recipe['recalibrate']
    weights_of_checkpoint(tmp_path / 'plain/last.pt', dataset, out)
    assert same(out, path)
    with pytest.raises(TrainError, match="other data .split 'train', not 'val'"):
        weights_of_checkpoint(tmp_path / 'plain/last.pt', datasets.load('folder', 'val', scenes), out)


@pytest.mark.parametrize('worse', [True, False])
def test_a_recalibration_that_makes_the_validation_worse_is_undone(scenes, tmp_path, monkeypatch, caplog,
                                                                   worse):
    dataset, validation = (datasets.load('folder', split, scenes) for split in ('train', 'val'))
    plain = train(replace(TINY, recalibrate=False), dataset, tmp_path / 'plain', device='cpu')

    def recalibrated(network, images, normalise):
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms if worse else ():
            norm.running_mean += 100
        return len(norms)
    monkeypatch.setattr('lightseg_ros.training.run.recalibrate', recalibrated)
    path = train(TINY, dataset, tmp_path / 'run', device='cpu', validation=validation)
    assert same(path, plain) and weights.read_card(path).recipe['recalibrate'] is not worse
    assert ('made the validation worse' in caplog.text) is worse


def test_recalibrate_on_the_command_line(scenes, tmp_path, capsys):
    path = train(replace(TINY, epochs=1), datasets.load('folder', 'train', scenes), tmp_path, device='cpu')
    data = ['--data', 'folder', '--data-root', str(scenes)]
    for source in (path, tmp_path / 'last.pt'):
        out = tmp_path / f'{source.suffix}.safetensors'
        assert main(['recalibrate', str(source), *data, '--out', str(out)]) == 0
        assert close(out, path)
        assert str(out) in capsys.readouterr().out
    assert main(['recalibrate', str(path), '--data', 'camvid', '--out', str(out)]) == 1


def test_the_weights_of_the_best_validation_are_kept(scenes, tmp_path):
    """Ten images that look alike at a high rate: the scores go up and down, and the best is not the last."""
    dataset, held = datasets.load('folder', 'train', scenes), datasets.load('folder', 'val', scenes)
    recipe = replace(TINY, epochs=5, keep='best', lr=0.05, warmup=0, ema=0.0, recalibrate=False)
    path = train(recipe, dataset, tmp_path / 'best', validation=held, validate_every=1, device='cpu')
    scores = [float(r['miou']) for r in rows_of(tmp_path / 'best')]
    best = scores.index(max(scores)) + 1
    assert best < 5, scores
    card = weights.read_card(path)
    assert card.recipe['kept_epoch'] == best and card.metrics['val']['miou'] == max(scores)
    # A run that stops after that epoch ends with the same weights; so does a resumed run.
    calls = iter(range(1000))
    parts = tmp_path / 'parts'
    assert train(recipe, dataset, parts, validation=held, validate_every=1, device='cpu',
                 stop=lambda: next(calls) == 2 * best + 1) is None
    again = train(recipe, dataset, parts, validation=held, validate_every=1, device='cpu', resume=True)
    assert same(path, again)
    last = train(replace(recipe, keep='last'), dataset, tmp_path / 'last', validation=held, device='cpu')
    assert not same(path, last)
    with pytest.raises(TrainError, match='--keep best and --patience go by the validation'):
        train(recipe, dataset, tmp_path / 'none', device='cpu')


def test_a_run_without_progress_stops(scenes, tmp_path):
    dataset, held = datasets.load('folder', 'train', scenes), datasets.load('folder', 'val', scenes)
    recipe = replace(TINY, epochs=1000, patience=2, ema=0.0)
    arguments = {'validation': held, 'validate_every': 1, 'device': 'cpu'}
    path = train(recipe, dataset, tmp_path, **arguments)
    scores = [float(r['miou']) for r in rows_of(tmp_path)]
    best = scores.index(max(scores[:-1]))  # the last row has the score of the recalibrated weights
    assert 3 <= len(scores) < 100 and best == len(scores) - 3
    before = path.rename(tmp_path / 'before.safetensors')
    assert train(recipe, dataset, tmp_path, resume=True, **arguments) == path
    assert same(path, before) and weights.read_card(path) == weights.read_card(before)
    assert len(rows_of(tmp_path)) == len(scores)


def test_a_validation_on_training_images_is_told(scenes, tmp_path, caplog):
    caplog.set_level('INFO')
    dataset, held = datasets.load('folder', 'train', scenes), datasets.load('folder', 'val', scenes)
    said = '8 of the 8 images of the validation are trained on'
    train(TINY, dataset, tmp_path / 'apart', validation=held, device='cpu')
    assert said not in caplog.text
    train(TINY, dataset, tmp_path / 'same', validation=dataset, device='cpu')
    assert said in caplog.text
    told = [r.message for r in caplog.records if 'recalibrated' in r.message]
    assert all(re.search(r'batch norms: mIoU [0-9.]+ -> [0-9.]+$', text) for text in told) and len(told) == 2


def test_the_expected_time_is_told_after_a_few_steps(scenes, tmp_path, caplog, monkeypatch):
    caplog.set_level('INFO')
    dataset = datasets.load('folder', 'train', scenes)
    monkeypatch.setattr(run_module, 'TIMED_S', 0.0)
    calls = iter(range(100))
    train(replace(TINY, epochs=100_000), dataset, tmp_path / 'long', device='cpu',
          stop=lambda: next(calls) == 4)
    told = [r.message for r in caplog.records if 'a step of' in r.message]
    assert len(told) == 1
    assert 'laanet: 100000 epochs of 8 images, 200000 steps of 4; how long' in caplog.messages[0], 'at once'
    found = re.match(r'laanet: about ([0-9.]+) hours for 99999 epochs of 8 images: ([0-9.]+) s a step of 4',
                     told[0])
    assert float(found[1]) * 3600 == pytest.approx(199_998 * float(found[2]), rel=0.1)
    assert '--budget-s' in told[0]


def test_what_a_laptop_s_owner_gives(scenes, tmp_path, capsys, caplog):
    """No recipe, one image per step, licence and source."""
    data = ['train', '--data', 'folder', '--data-root', str(scenes), '--device', 'cpu', '--out',
            str(tmp_path)]
    small = ['--crop', '64x64', '--first-crop', '64x64', '--epochs', '1']
    assert main([*data, '--model', 'affnet', '--batch', '1', *small, '--license', 'CC0', '--source',
                 'our yard, 2026']) == 0
    path = tmp_path / 'affnet-scenes.safetensors'
    assert capsys.readouterr().out == f'{path}\n'
    assert (f'next: lightseg evaluate drive.mcap --model {path} --report out/report; on a robot: ros2 launch '
            f'lightseg_ros segment.launch.py weights:={path} image_topic:=') in caplog.text
    card = weights.read_card(tmp_path / 'affnet-scenes.safetensors')
    assert (card.license, card.source) == ('CC0', 'our yard, 2026')
    assert card.recipe['lr'] == 6e-3 and card.recipe['auxiliary'] == 0.4  # those of the recipe cpu
    assert main([*data, '--model', 'laanet', '--batch', '1', *small, '--out', str(tmp_path / 'x')]) == 1
    assert 'laanet needs 2 or more' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*data, '--model', 'affnet', '--license', 'a\nb'])


def test_a_data_set_that_does_not_fit_is_refused_before_it_is_read(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(samples.machine, 'free_bytes', lambda: 100_000)
    with pytest.raises(datasets.DataError, match=r'8 images of 64x64 take 0.0 GB, and 0.0 GB are free on '
                                                 'cpu; choose a smaller --size'):
        train(TINY, datasets.load('folder', 'train', scenes), tmp_path, device='cpu')
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (10 ** 9, 2 * 10 ** 9))
    with pytest.raises(datasets.DataError, match=r'take 25.0 GB, and 1.0 GB are free on cuda:0; .* 1024x512'):
        samples.check_room('cuda:0', 2975, 1024, 2048, 'cityscapes train')
