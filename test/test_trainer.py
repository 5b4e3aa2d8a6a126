# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training: it learns, survives being killed, runs on several processes; recipes are the papers'."""
import csv
from dataclasses import replace
import json
import operator
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
import yaml

from lightseg_ros import datasets, networks, weights
from lightseg_ros.cli import main
from lightseg_ros.training import gradients, recipes, trainer
from lightseg_ros.training.recipes import Recipe
from lightseg_ros.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
DEVICES = ['cpu', pytest.param('cuda', marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')])]
TINY = Recipe('laanet', epochs=4, batch=4, crop=(64, 64), first_crop=(64, 64), scale=(0.8, 1.25), color=0.1,
              blur=0.3, mix=0.3, warmup=2, ema=0.5, precision='float32')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    """Eight images of 64x64 for training and four for validation: a class is a colour and a place."""
    root = tmp_path_factory.mktemp('scenes')
    rng = np.random.default_rng(0)
    colors = np.array([[200, 80, 60], [60, 180, 70], [70, 90, 210]])
    for split, count in (('train', 8), ('val', 4)):
        for kind in ('images', 'labels'):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            ids = np.zeros((64, 64), np.uint8)
            ids[int(rng.integers(20, 44)):] = 1
            x, y = rng.integers(0, 40, 2)
            ids[y:y + 24, x:x + 24] = 2
            image = np.clip(colors[ids] + rng.normal(0, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
            ids[:2] = 255
            cv2.imwrite(str(root / 'images' / split / f'{i}.png'), image)
            cv2.imwrite(str(root / 'labels' / split / f'{i}.png'), ids)
    (root / 'labels.yaml').write_text(yaml.safe_dump({
        'name': 'scenes', 'classes': [{'id': i, 'name': n, 'color': c.tolist()}
                                      for i, (n, c) in enumerate(zip(('sky', 'floor', 'box'), colors))]}))
    return root


def arguments(scenes: Path, out: Path, recipe: Recipe = TINY, *more: str) -> list[str]:
    """`lightseg train` of a recipe like TINY."""
    return ['train', '--model', recipe.network, '--data', 'folder', '--data-root', str(scenes), '--device',
            'cpu', '--out', str(out), '--batch', '4', '--crop', '64x64', '--first-crop', '64x64',
            '--scale', '0.8', '1.25', '--color', '0.1', '--blur', '0.3', '--mix', str(recipe.mix),
            '--warmup', '2', '--ema', '0.5', '--precision', 'float32', '--lr', '0.003',
            '--weight-decay', '0.01', '--epochs', str(recipe.epochs), *more]


def command(*arguments: str) -> list[str]:
    return [sys.executable, '-m', 'lightseg_ros.cli', *arguments]


def environment() -> dict[str, str]:
    return os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': str(torch.get_num_threads())}


def rows_of(run: Path) -> list[dict[str, str]]:
    with open(run / 'log.csv', newline='') as f:
        return list(csv.DictReader(f))


def same(a: Path, b: Path) -> bool:
    first, second = (weights.load(p)[0].state_dict() for p in (a, b))
    return all(torch.equal(first[k], second[k]) for k in first)


def test_learning_rate_is_the_papers():
    recipe = Recipe('fbsnet', lr=1e-3, warmup=100, power=0.9)
    total = 5000
    for step in (0, 50, 99, 100, 1000, 4999):
        w = step / 100
        fall = (1 - max(0, step - 100) / (total - 100)) ** 0.9
        expected = 1e-3 * ((1 - w) / 3 + w) if step <= 100 else 1e-3 * fall
        assert trainer.learning_rate(step, step, total, recipe) == pytest.approx(expected)
    assert trainer.learning_rate(total + 9, total + 9, total, recipe) == 0
    # A budget of time moves the schedule, not the warm-up.
    assert trainer.learning_rate(50, 2550, total, recipe) == trainer.learning_rate(50, 50, total, recipe)
    assert trainer.learning_rate(200, 2550, total, recipe) == pytest.approx(1e-3 * 0.5 ** 0.9)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_dilated_gradients_are_right_in_the_layout_that_is_used(device, precision):
    where = torch.device(device)
    for layout in gradients.correct_memory_formats(where, precision):
        assert gradients.gradient_error(where, getattr(torch, precision), layout) < 0.02


def test_the_check_finds_wrong_gradients():
    """Those of torch 2.13, in bfloat16 channels-last on a CPU; with ours every layout is offered."""
    where = torch.device('cpu')
    if torch.__version__.startswith('2.13'):
        assert gradients.gradient_error(where, torch.bfloat16, torch.channels_last, quick=False) > 0.5
    assert len(gradients.correct_memory_formats(where, 'bfloat16')) == 2


@pytest.mark.parametrize('device', DEVICES)
def test_training_learns_and_leaves_a_card(scenes, tmp_path, device):
    recipe = replace(TINY, epochs=12, loss='owfl', lr=5e-3)
    dataset, held = datasets.load('folder', 'train', scenes), datasets.load('folder', 'val', scenes)
    path = trainer.train(recipe, dataset, tmp_path, validation=held, validate_every=3, device=device)
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
    assert cv2.imread(str(tmp_path / 'curve.png')).std() > 5
    # The file on disk scores what its card says.
    pytest.importorskip('rosbags', reason='rosbags is not installed, which lightseg evaluate needs')
    assert main(['evaluate', '--model', str(path), '--data', 'folder', '--data-root', str(scenes), '--split',
                 'val', '--device', device, '--json', str(tmp_path / 'val.json')]) == 0
    measured = json.loads((tmp_path / 'val.json').read_text())
    assert measured['miou'] == pytest.approx(scored[-1], abs=0.1 if device == 'cpu' else 1)


def test_a_killed_run_resumes_to_the_same_weights(scenes, tmp_path):
    dataset = datasets.load('folder', 'train', scenes)
    recipe = replace(TINY, epochs=10)
    whole = trainer.train(recipe, dataset, tmp_path / 'whole', device='cpu')
    killed = tmp_path / 'killed'
    seen = []
    for saves in (1, 4):
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
    assert 0 < seen[0] < seen[1] < 20
    assert main([*arguments(scenes, killed, recipe, '--resume')]) == 0
    assert same(whole, killed / whole.name)


def test_a_time_limit_ends_a_run_cleanly(scenes, tmp_path):
    dataset = datasets.load('folder', 'train', scenes)
    recipe = replace(TINY, epochs=8, auxiliary=0.4)  # the second classifier resumes too
    whole = trainer.train(recipe, dataset, tmp_path / 'whole', device='cpu')
    path, steps = None, []
    while not path:
        path = trainer.train(recipe, dataset, tmp_path / 'parts', device='cpu', resume=True,
                           time_limit_s=0.2 * 1.7 ** len(steps))
        steps.append(torch.load(tmp_path / 'parts/last.pt', weights_only=True)['step'])
    assert any(0 < step < 16 for step in steps) and steps[-1] == 16
    assert same(whole, path)
    with pytest.raises(trainer.TrainError, match='go on with --resume'):
        trainer.train(recipe, dataset, tmp_path / 'parts', device='cpu')
    with pytest.raises(trainer.TrainError, match=r'another recipe \(lr, seed differ\)'):
        trainer.train(replace(recipe, lr=1.0, seed=2), dataset, tmp_path / 'parts', device='cpu', resume=True)
    other = replace(dataset, split='val')
    with pytest.raises(trainer.TrainError, match="other data .split 'train', not 'val'"):
        trainer.train(recipe, other, tmp_path / 'parts', device='cpu', resume=True)
    (tmp_path / 'parts/last.pt').write_bytes(b'PK no checkpoint')
    with pytest.raises(trainer.TrainError, match='not a checkpoint that can be read'):
        trainer.train(TINY, dataset, tmp_path / 'parts', device='cpu', resume=True)


def test_a_budget_ends_the_schedule(scenes, tmp_path):
    recipe = replace(TINY, epochs=10_000, budget_s=1.5)
    began = time.monotonic()
    path = trainer.train(recipe, datasets.load('folder', 'train', scenes), tmp_path, device='cpu')
    assert path and time.monotonic() - began < 60
    rows = rows_of(tmp_path)
    assert len(rows) < 1000 and float(rows[-1]['lr']) < 0.9 * recipe.lr


TWO = """
import sys, torch
from lightseg_ros import datasets
from lightseg_ros.training.trainer import Trainer
from lightseg_ros.cli import main
from test_train import TINY
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

    trainer.train(recipe, dataset, tmp_path / 'one', device='cpu')
    card = weights.read_card(tmp_path / 'two/laanet-scenes.safetensors')
    assert card.recipe['processes'] == 2 and card.recipe['steps'] == 6
    one, two = ([float(r['loss']) for r in rows_of(tmp_path / name)] for name in ('one', 'two'))
    assert len(two) == 3 and two[-1] < two[0]
    assert two[0] == pytest.approx(one[0], rel=0.5)  # the norms see half a batch each


def test_averaged_weights(scenes):
    trainer = Trainer(replace(TINY, ema=0.9), datasets.load('folder', 'train', scenes), device='cpu')
    drawn = trainer.draw(0, (64, 64)).map(lambda t: t[:4])
    name = 'classifier.weight' if 'classifier.weight' in trainer.network.state_dict() else \
        next(k for k, v in trainer.network.state_dict().items() if v.ndim == 4)
    slow = trainer.network.state_dict()[name].clone()
    for step in range(1, 4):
        trainer.train_step(drawn, (64, 64), step)
        decay = min(0.9, step / (10 + step))
        slow = decay * slow + (1 - decay) * trainer.network.state_dict()[name]
        assert torch.allclose(trainer.averaged.state_dict()[name], slow, atol=1e-6)
    counters = [k for k in trainer.averaged.state_dict() if k.endswith('num_batches_tracked')]
    assert counters and all(int(trainer.averaged.state_dict()[k]) == 3 for k in counters)


def test_teachers_are_learned_from(scenes, tmp_path):
    dataset = datasets.load('folder', 'train', scenes)
    teacher = trainer.train(replace(TINY, epochs=1), dataset, tmp_path / 'teacher', device='cpu')
    plain = Trainer(TINY, dataset, device='cpu')
    taught = Trainer(replace(TINY, teachers=(str(teacher),), distill=0.5), dataset, device='cpu')
    drawn = plain.draw(0, (64, 64)).map(lambda t: t[:4])
    alone, both = (t.forward_backward(drawn, (64, 64)) for t in (plain, taught))
    assert float(both - alone) > 0.1
    card = replace(weights.read_card(teacher), labels=datasets.label_sets.load('camvid'))
    foreign = tmp_path / 'foreign.safetensors'
    weights.save(foreign, networks.build('laanet', 11), card)
    with pytest.raises(trainer.TrainError, match='needs the classes of scenes: sky, floor, box'):
        Trainer(replace(TINY, teachers=(str(foreign),)), dataset, device='cpu')


@pytest.mark.parametrize('network', ['laanet', 'fbsnet', 'lrnnet', 'elanet', 'affnet'])
def test_a_second_classifier_learns_the_deepest_features(scenes, network):
    dataset = datasets.load('folder', 'train', scenes)
    losses = []
    for weight in (0.0, 0.4, 0.8):
        trainer = Trainer(replace(TINY, network=network, auxiliary=weight), dataset, device='cpu')
        drawn = trainer.draw(0, (64, 64)).map(lambda t: t[:4])
        losses.append(float(trainer.forward_backward(drawn, (64, 64))))
    # The network is the same in all three, so the loss is a straight line over the weight.
    assert losses[1] - losses[0] > 0.1 and losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], 1e-3)
    head = trainer.learner.head
    assert head.weight.shape == (3, 128, 1, 1)
    assert float(head.weight.grad.norm()) > 0
    assert set(trainer.network.state_dict()) == set(networks.build(network, 3).state_dict())


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_the_quick_gradient_of_prelu_is_prelu_s(dtype, layout):
    torch.manual_seed(0)
    inputs, upper = (torch.randn(3, 5, 7, 9).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    inputs[0, 0, 0] = 0
    found = []
    for quick in (False, True):
        module = torch.nn.Sequential(torch.nn.PReLU(5)).to(dtype).train()
        module[0].weight.data.uniform_(-0.5, 1.5, generator=torch.Generator().manual_seed(1))
        if quick:
            gradients.use_fast_cpu_gradients(module)
        x = inputs.clone().requires_grad_()  # keeps the layout
        y = module(x)
        found.append((y.detach(), *torch.autograd.grad(y, (x, module[0].weight), upper)))
    for plain, quick in zip(*found):
        assert torch.allclose(plain, quick, rtol=1e-2 if dtype == torch.bfloat16 else 1e-12)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kernel, dilation, padding', [((3, 3), (2, 2), (2, 2)), ((3, 1), (5, 1), (5, 0)),
                                                       ((1, 3), (1, 17), (0, 17)), ((3, 3), (2, 4), (1, 3))])
def test_the_quick_gradient_of_a_dilated_depthwise_convolution_is_torch_s(kernel, dilation, padding, layout):
    torch.manual_seed(0)
    found = []
    for quick in (False, True):
        module = torch.nn.Conv2d(6, 6, kernel, padding=padding, dilation=dilation, groups=6, bias=False)
        module = module.double()
        module.weight.data = torch.randn(6, 1, *kernel, generator=torch.Generator().manual_seed(1)).double()
        if quick:
            gradients.use_fast_cpu_gradients(module)
            assert type(module) is not torch.nn.Conv2d
        x = torch.randn(3, 6, 11, 20, generator=torch.Generator().manual_seed(2)).double()
        x = x.contiguous(memory_format=layout).requires_grad_()
        y = module(x)
        found.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, module.weight))))
    for plain, quick in zip(*found):
        assert torch.allclose(plain, quick, rtol=1e-10)


def test_starts_from_finished_weights(scenes, tmp_path):
    dataset = datasets.load('folder', 'train', scenes)
    first = trainer.train(replace(TINY, epochs=1), dataset, tmp_path / 'first', device='cpu')
    network, card = weights.load(first)
    same = Trainer(replace(TINY, init=str(first), seed=9), dataset, device='cpu')
    assert all(torch.equal(v, same.network.state_dict()[k]) for k, v in network.state_dict().items())
    first.rename(first.with_suffix('.moved'))  # a run must not fail at its end for that
    told = same.card({}).recipe
    first.with_suffix('.moved').rename(first)
    assert told['init'] == first.name and told['init_recipe'] == card.recipe
    # Other classes, and other statistics of the images: the body is kept, the classifier is not.
    foreign = tmp_path / 'foreign.safetensors'
    card = replace(card, labels=datasets.label_sets.load('camvid'), mean=(1.0, 2.0, 3.0))
    weights.save(foreign, networks.build('laanet', 11), card)
    other = Trainer(replace(TINY, init=str(foreign)), dataset, device='cpu')
    assert other.card({}).mean == (1.0, 2.0, 3.0)
    theirs = weights.load(foreign)[0].state_dict()
    ours = other.network.state_dict()
    differ = [k for k in ours if ours[k].shape != theirs[k].shape]
    assert differ and all(v.shape[0] == 3 for k, v in ours.items() if k in differ)
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items() if k not in differ)
    with pytest.raises(trainer.TrainError, match='holds laanet .* trains affnet'):
        Trainer(replace(TINY, network='affnet', init=str(first)), dataset, device='cpu')


class NoHost(TorchDispatchMode):
    """Fails on copies between devices, which a graph can't hold; reading data fails on 'meta' anyway."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        assert len(devices) < 2, f'{function} copies between {devices}'
        return out


@pytest.mark.parametrize('network, loss', [('laanet', 'ce'), ('fbsnet', 'ohem'), ('elanet', 'owfl'),
                                           ('lrnnet', 'ce'), ('affnet', 'owfl')])
def test_a_graph_can_hold_the_step(scenes, network, loss):
    """Forward and backward pass on the 'meta' device, where nothing can be read or copied to the host."""
    trainer = Trainer(replace(TINY, network=network, loss=loss), datasets.load('folder', 'train', scenes),
                            device='cpu')
    drawn = trainer.draw(0, (64, 64)).map(lambda t: t[:4].to('meta'))
    meta = torch.device('meta')
    trainer.network.to(meta)
    trainer.images, trainer.ids = trainer.images.to(meta), trainer.ids.to(meta)
    trainer.fill = trainer.fill.to(meta)
    trainer.loss = trainer._loss(trainer.recipe, torch.tensor([0.6, 0.38, 0.02]), meta)
    trainer._normalise = trainer._normaliser(trainer.mean, trainer.std, meta)
    with NoHost():
        trainer.forward_backward(drawn, (64, 64))
    assert all(p.grad is not None for p in trainer.network.parameters())


def test_the_first_part_has_zooms_of_its_own(scenes, tmp_path, monkeypatch):
    recipe = replace(TINY, epochs=4, first_share=0.5, first_scale=(0.5, 0.5), scale=(2.0, 2.0))
    zooms = []
    draw = datasets.draw
    monkeypatch.setattr(datasets, 'draw', lambda *a, **k: zooms.append(k['scale']) or draw(*a, **k))
    trainer.train(recipe, datasets.load('folder', 'train', scenes), tmp_path / 'run', device='cpu')
    assert zooms == [(0.5, 0.5)] * 2 + [(2.0, 2.0)] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('network', ['laanet', 'fbsnet', 'elanet', 'lrnnet', 'affnet'])
def test_the_graph_does_what_the_eager_step_does(scenes, network, monkeypatch):
    """
    Losses and gradients of two batches in turns, at the same weights, float32.

    Gradients of the two batches differ by more than their own size, so a replay of the wrong one shows; after
    steps of learning rounding alone would tell the two apart.
    """
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    results = []
    for mode in ('eager', 'graph'):
        trainer = Trainer(replace(TINY, network=network), datasets.load('folder', 'train', scenes),
                                device='cuda', mode=mode)
        drawn = trainer.draw(0, (64, 64))
        halves = [drawn.map(operator.itemgetter(half)) for half in (slice(0, 4), slice(4, 8))]
        step = trainer._prepare(halves[0], (64, 64))
        results.append([(float(step(halves[i % 2])), torch.cat(
            [p.grad.flatten() for p in trainer.network.parameters()]).cpu()) for i in range(4)])
    for (loss, gradient), (loss2, gradient2) in zip(*results):
        print(network, loss, loss2, float((gradient - gradient2).norm() / gradient.norm()))
        assert loss2 == pytest.approx(loss, rel=1e-3)
        assert (gradient - gradient2).norm() < 0.25 * gradient.norm()


def test_recipes_are_the_papers():
    fbsnet, elanet = recipes.load('paper', 'fbsnet'), recipes.load('paper', 'elanet')
    for recipe in (fbsnet, elanet):
        assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.power) == ('adam', 1e-3, 2e-4, 0.9)
        assert (recipe.epochs, recipe.crop) == (1000, (360, 480))
        assert recipe.scale == (0.75, 1, 1.25, 1.5, 1.75, 2) and recipe.loss == 'ce' and recipe.class_weights
        assert recipe.decay_all and not recipe.divide_std and recipe.color == recipe.ema == 0
    assert (fbsnet.batch, fbsnet.warmup, elanet.batch, elanet.warmup) == (6, 100, 8, 500)
    lrnnet = recipes.load('paper', 'lrnnet')
    assert (lrnnet.optimizer, lrnnet.lr, lrnnet.batch, lrnnet.power) == ('sgd', 0.01, 8, 0.9)
    assert lrnnet.epochs * (367 // 8) == pytest.approx(250_000, rel=0.03)
    affnet = recipes.load('paper', 'affnet')
    assert (affnet.optimizer, affnet.lr, affnet.weight_decay, affnet.batch, affnet.loss) == \
        ('adam', 5e-4, 1e-4, 10, 'owfl')


@pytest.mark.parametrize('changes, expected', [
    ({'batch': 1}, 'batch is 1; expected 2 or more'),
    ({'loss': 'dice'}, "unknown loss 'dice'; known: ce, ohem, owfl"),
    ({'crop': (32, 64)}, r'crop is \(32, 64\); expected height and width'),
    ({'first_scale': (0.5,)}, r'first_scale is \(0.5,\); expected two or more numbers above 0'),
    ({'mix': 2.0}, 'mix is 2.0; expected 0 to 1'),
    ({'momentum': 0.9}, 'a recipe has no momentum; it has network, options, epochs'),
])
def test_a_recipe_that_does_not_fit_says_why(changes, expected):
    with pytest.raises(recipes.RecipeError, match=expected):
        recipes.load('best', 'laanet', **changes)


def test_the_command_line_says_what_is_wrong(scenes, tmp_path, capsys):
    assert main(['train', '--model', 'laanet', '--data', 'folder', '--data-root', str(tmp_path)]) == 1
    assert f"ERROR: no label set '{tmp_path}/labels.yaml'" in capsys.readouterr().err.replace('\n', ' ')
    few = ['train', '--model', 'laanet', '--data', 'folder', '--data-root', str(scenes),
           '--out', str(tmp_path / 'o')]
    assert main([*few, '--batch', '16']) == 1
    assert 'has 8 images, fewer than a batch of 16' in capsys.readouterr().err
    assert main([*few, '--batch', '4', '--device', 'cuda:77']) == 1
    assert "device 'cuda:77' is not there" in capsys.readouterr().err
    assert main([*few, '--batch', '4', '--device', 'cpu', '--mode', 'graph']) == 1
    assert 'mode graph needs a CUDA device' in capsys.readouterr().err


def train_all(scenes: Path, *more: str, epochs: int) -> list[str]:
    """`lightseg train-all` of two networks with numbers like TINY's."""
    return ['train-all', '--networks', 'laanet', 'affnet', '--data', 'folder', '--data-root', str(scenes),
            '--split', 'train', '--device', 'cpu', *more, '--', *arguments(scenes, Path('x'))[11:],
            '--epochs', str(epochs)]


def test_all_networks_end_inside_a_time_limit(scenes, tmp_path, capsys):
    began = time.monotonic()
    assert main(train_all(scenes, '--out', str(tmp_path / 'runs'), '--time-limit', '9',
                          '--leave', str(tmp_path / 'left'), epochs=100_000)) == 0
    assert time.monotonic() - began < 60  # 100,000 epochs would take hours; a busy machine some seconds more
    assert 'finished: none; to be gone on with by the same command: laanet, affnet' in capsys.readouterr().out
    assert list((tmp_path / 'left').iterdir())


def test_all_networks_go_on_from_what_was_left(scenes, tmp_path, capsys):
    """A run that is half done travels as parts, is finished from a packed data set, and scored."""
    archive, there, left = tmp_path / 'scenes.tar', tmp_path / 'there', tmp_path / 'left'
    assert main(['train-all', '--pack', str(archive), '--data', 'folder', '--data-root', str(scenes),
                 '--split', 'train', '--test', 'val']) == 0
    half = arguments(scenes, there / 'laanet', replace(TINY, epochs=6), '--resume', '--time-limit')
    seconds = 0.4  # longer where getting ready takes longer
    while not (there / 'laanet/log.csv').exists():
        assert main([*half, f'{seconds}']) == 0
        seconds *= 1.3
    steps = torch.load(there / 'laanet/last.pt', weights_only=True)['step']
    assert 2 <= steps < 12
    # No time is left, so nothing is trained and everything is left.
    assert main(train_all(scenes, '--out', str(there), '--time-limit', '0', '--leave', str(left),
                          '--part-mib', '4', epochs=6)) == 0
    parts = sorted(left.iterdir())
    assert [p.name for p in parts] == [f'{i + 1}-of-{len(parts)}.runs.tar' for i in range(len(parts))]
    assert len(parts) == 3 and all(p.stat().st_size <= 4 * 2 ** 20 for p in parts)

    back = tmp_path / 'back'
    assert main(train_all(archive, '--from', str(left), '--out', str(back), '--test', 'val', epochs=6)) == 0
    assert 'finished: laanet, affnet;' in (out := capsys.readouterr().out)
    assert [int(r['epoch']) for r in rows_of(back / 'laanet')] == [1, 2, 3, 4, 5, 6]
    for network in ('laanet', 'affnet'):
        card = weights.read_card(back / network / f'{network}-scenes.safetensors')
        assert f'| {network} | best | 6 | {card.metrics["val"]["miou"]:.2f} |' in out
    # What is behind does not take the place of what is further.
    assert main(train_all(archive, '--from', str(left), '--out', str(back), epochs=6)) == 0
    assert 'is further than what' in capsys.readouterr().out
    # Finished runs are left as weights, without their checkpoints, even if they can't be scored.
    assert main(train_all(archive, '--out', str(back), '--leave', str(left), '--test', 'tset',
                          '--part-mib', '4', epochs=6)) == 1
    assert sum(p.stat().st_size for p in left.iterdir()) < 12e6
    first, *_, last = sorted(left.iterdir())
    whole = first.read_bytes()
    for spoil, text in ((lambda: first.write_bytes(whole[:-512]), 'are not what was left'),
                        (lambda: last.unlink(), 'expected 1-of-')):
        spoil()
        assert main(train_all(archive, '--from', str(left), '--out', str(tmp_path / 'new'), epochs=6)) == 1
        assert text in capsys.readouterr().err and not list((tmp_path / 'new').iterdir())


def test_a_run_that_is_interrupted_saves_itself(scenes, tmp_path):
    process = subprocess.Popen(
        command(*arguments(scenes, tmp_path, replace(TINY, epochs=100_000), '--checkpoint-every', '1')),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (tmp_path / 'last.pt').exists() and process.poll() is None:
        time.sleep(0.05)
    before = torch.load(tmp_path / 'last.pt', weights_only=True)['step']
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130 and 'go on with --resume' in output and 'Traceback' not in output
    assert torch.load(tmp_path / 'last.pt', weights_only=True)['step'] > before


def test_no_training_outlives_train_all(scenes, tmp_path):
    process = subprocess.Popen(
        command(*train_all(scenes, '--out', str(tmp_path), epochs=100_000), '--checkpoint-every', '1'),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    logs = [tmp_path / network / 'log.csv' for network in ('laanet', 'affnet')]
    while not all(log.exists() for log in logs) and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    mine = [p for p in Path('/proc').glob('[0-9]*/cmdline') if str(tmp_path).encode() in _content(p)]
    assert not mine


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended meanwhile
        return b''
