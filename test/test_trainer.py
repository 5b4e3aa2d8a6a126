# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One training step: learning rate, averages, teachers, second classifier, CUDA graphs."""
import contextlib
from dataclasses import replace
import operator
from types import SimpleNamespace
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_runs import TINY

from lightseg_ros import cuda_graphs, datasets, labels, machine, networks, weights
from lightseg_ros.training import devices, losses, samples
from lightseg_ros.training.devices import TrainError
from lightseg_ros.training.learner import normaliser
from lightseg_ros.training.recalibration import recalibrate_weights
from lightseg_ros.training.recipes import Recipe
from lightseg_ros.training.run import train
from lightseg_ros.training.samples import Statistics
from lightseg_ros.training.trainer import learning_rate, Trainer


def test_learning_rate_is_the_papers():
    recipe = Recipe('fbsnet', lr=1e-3, warmup=100, power=0.9)
    total = 5000
    for step in (0, 50, 99, 100, 1000, 4999):
        w = step / 100
        fall = (1 - max(0, step - 100) / (total - 100)) ** 0.9
        expected = 1e-3 * ((1 - w) / 3 + w) if step <= 100 else 1e-3 * fall
        assert learning_rate(step, step, total, recipe) == pytest.approx(expected)
    assert learning_rate(total + 9, total + 9, total, recipe) == 0
    # A budget of time moves the schedule, not the warm-up.
    assert learning_rate(50, 2550, total, recipe) == learning_rate(50, 50, total, recipe)
    assert learning_rate(200, 2550, total, recipe) == pytest.approx(1e-3 * 0.5 ** 0.9)


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
    teacher = train(replace(TINY, epochs=1), dataset, tmp_path / 'teacher', device='cpu')
    plain = Trainer(TINY, dataset, device='cpu')
    taught = Trainer(replace(TINY, teachers=(str(teacher),), distill=0.5), dataset, device='cpu')
    drawn = plain.draw(0, (64, 64)).map(lambda t: t[:4])
    alone, both = (t.forward_backward(drawn, (64, 64)) for t in (plain, taught))
    assert float(both - alone) > 0.1
    card = replace(weights.read_card(teacher), labels=labels.load('camvid'))
    foreign = tmp_path / 'foreign.safetensors'
    weights.save(foreign, networks.build('laanet', 11), card)
    with pytest.raises(TrainError, match='needs those of the data: sky, floor, box'):
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


def test_starts_from_finished_weights(scenes, tmp_path):
    dataset = datasets.load('folder', 'train', scenes)
    first = train(replace(TINY, epochs=1), dataset, tmp_path / 'first', device='cpu')
    network, card = weights.load(first)
    same = Trainer(replace(TINY, init=str(first), seed=9), dataset, device='cpu')
    assert all(torch.equal(v, same.network.state_dict()[k]) for k, v in network.state_dict().items())
    first.rename(first.with_suffix('.moved'))  # a run must not fail at its end for that
    told = same.card({}).recipe
    first.with_suffix('.moved').rename(first)
    assert told['init'] == first.name and told['init_recipe'] == card.recipe
    # Other classes, and other statistics of the images: the body is kept, the classifier is not.
    foreign = tmp_path / 'foreign.safetensors'
    card = replace(card, labels=labels.load('camvid'), mean=(1.0, 2.0, 3.0))
    weights.save(foreign, networks.build('laanet', 11), card)
    other = Trainer(replace(TINY, init=str(foreign)), dataset, device='cpu')
    assert other.card({}).mean == (1.0, 2.0, 3.0)
    theirs = weights.load(foreign)[0].state_dict()
    ours = other.network.state_dict()
    differ = [k for k in ours if ours[k].shape != theirs[k].shape]
    assert differ and all(v.shape[0] == 3 for k, v in ours.items() if k in differ)
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items() if k not in differ)
    with pytest.raises(TrainError, match='holds laanet .* trains affnet'):
        Trainer(replace(TINY, network='affnet', init=str(first)), dataset, device='cpu')
    packaged = Trainer(replace(TINY, init='laanet'), dataset, device='cpu')  # by its name
    assert packaged.start and packaged.start.labels.name == 'camvid'


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
    found = Statistics(*torch.rand(2, 3), *torch.tensor([[0.6, 0.38, 0.02]]).repeat(2, 1))
    trainer.loss = losses.of_recipe(trainer.recipe, found, meta)
    trainer._normalise = normaliser(trainer.mean, trainer.std, meta)
    with NoHost():
        trainer.forward_backward(drawn, (64, 64))
    assert all(p.grad is not None for p in trainer.network.parameters())


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


@pytest.fixture
def no_capture(monkeypatch):
    """A stand-in for a GPU on which a capture fails, as torch 2.11 tells it: the end hides the reason."""
    @contextlib.contextmanager
    def graph(*_, **__):
        try:
            yield
            raise RuntimeError('operation not permitted when stream is capturing')
        except RuntimeError as e:
            raise RuntimeError('CUDA error: failed due to a previous error during capture\nmore lines') from e

    class Graph:
        def pool(self):
            raise RuntimeError('Called CUDAGraph::pool() without a preceding successful capture.')

    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, stand_in in {'Stream': lambda: stream, 'current_stream': lambda: stream, 'graph': graph,
                           'stream': lambda _: contextlib.nullcontext(), 'CUDAGraph': Graph,
                           'graph_pool_handle': object, 'current_device': lambda: 0,
                           'default_generators': [torch.Generator()]}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def on_gpu(trainer):
        trainer.device, trainer.mode = torch.device('cuda'), 'graph'
        return trainer
    return on_gpu


@pytest.mark.filterwarnings('ignore:.*CUDA')
def test_a_step_that_can_t_be_captured_runs_eagerly(scenes, no_capture, caplog):
    """It trains the same, and says so once."""
    dataset = datasets.load('folder', 'train', scenes)
    results = []
    for change in (lambda trainer: trainer), no_capture:
        trainer = Trainer(TINY, dataset, device='cpu')
        drawn = trainer.draw(0, (64, 64)).map(lambda t: t[:4])
        change(trainer)
        losses = [float(trainer.train_step(drawn, (64, 64), step)) for step in range(3)]
        results.append((losses, trainer.network.state_dict()))
    (eager_losses, eager), (losses, captured) = results
    assert losses == eager_losses
    assert all(torch.equal(eager[name], captured[name]) for name in eager)
    assert caplog.text.count('no CUDA graph: operation not permitted when stream is capturing;') == 1


def test_no_memory_for_a_step_is_one_line(scenes):
    """It says what to make smaller."""
    def full(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.\nmore lines')

    trainer = Trainer(TINY, datasets.load('folder', 'train', scenes), device='cpu')
    trainer.forward_backward = full
    drawn = trainer.draw(0, (64, 64)).map(lambda t: t[:4])
    with pytest.raises(TrainError, match='no memory on .* for 4 crops of 64x64 pixels: CUDA out of memory.*'
                                         '--batch') as e:
        trainer.train_step(drawn, (64, 64), 0)
    assert '\n' not in str(e.value) and trainer.step == 0
    with pytest.raises(TrainError, match='for 4 crops of 64x64 pixels.*--batch'):
        trainer._seconds_in(torch.contiguous_format)  # a GPU's first step of all is this one


@pytest.mark.parametrize('said', ['', 'AssertionError: \nmore lines'])
def test_a_step_that_torch_can_t_compile_is_one_line(scenes, said):
    from torch._dynamo.exc import BackendCompilerFailed, TorchRuntimeError

    def fail(*_):
        raise TorchRuntimeError(said) if said else BackendCompilerFailed(print, ValueError('no g++'), None)

    trainer = Trainer(TINY, datasets.load('folder', 'train', scenes), device='cpu', mode='compile')
    trainer.forward_backward = fail
    with pytest.raises(TrainError, match=f"torch could not compile a training step .*{said[:14]}.*: choose "
                                         "mode 'eager'") as e:
        trainer.train_step(trainer.draw(0, (64, 64)).map(lambda t: t[:4]), (64, 64), 0)
    assert '\n' not in str(e.value)


def test_a_gpu_that_torch_can_t_use_trains_nothing(monkeypatch, caplog):
    """By 'auto' the CPU trains, with one warning; under torchrun, and by its name, it is an error."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(cuda_graphs, 'unusable', lambda device: f'no kernel image for {device}')
    assert [devices.find_device('auto').type for _ in range(2)] == ['cpu', 'cpu']
    assert caplog.text.count("is left alone, since torch can't use it: no kernel image for cuda:0") == 1
    with pytest.raises(TrainError, match="is 'cuda:1', but torch .*: no kernel image for cuda:1. Install"):
        devices.find_device('cuda:1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('LOCAL_RANK', '1')
    with pytest.raises(TrainError, match="is 'cuda:1', but torch"):
        devices.find_device('auto')


def test_weights_of_the_last_part_are_averaged_equally(scenes):
    dataset = datasets.load('folder', 'train', scenes)
    trainer = Trainer(replace(TINY, ema=0.0, swa=0.5), dataset, device='cpu')
    drawn = trainer.draw(0, (64, 64)).map(lambda t: t[:4])
    assert trainer.total == 8
    weight, kept = next(iter(trainer.network.parameters())), []
    averaged = next(iter(trainer.averaged.parameters()))
    for step in range(7):
        trainer.train_step(drawn, (64, 64), step)
        kept.append(weight.detach().clone())
        if step < 4:
            assert torch.equal(averaged, weight)
        if step == 5:  # a resumed run goes on averaging
            again = Trainer(trainer.recipe, dataset, device='cpu')
            again.load_state(trainer.state())
            assert again.averages == 2
    assert torch.allclose(averaged, torch.stack(kept[4:]).mean(0), atol=1e-6)
    assert not torch.allclose(averaged, weight, atol=1e-4)


@pytest.mark.parametrize('network', networks.PAPER_NETWORKS)
def test_dropout_before_the_classifier(scenes, network):
    """In training whole channels of its input are 0; names of weights and evaluation stay the same."""
    dataset = datasets.load('folder', 'train', scenes)
    trainer = Trainer(replace(TINY, network=network, dropout=0.5), dataset, device='cpu')
    classifier = trainer.network.classifier
    last = classifier[-1] if isinstance(classifier, torch.nn.Sequential) else classifier
    seen = []
    last.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    trainer.network.train()(x)
    trainer.network.eval()(x)
    dropped, whole = ((v == 0).flatten(2).all(2).float().mean() for v in seen)
    assert float(dropped - whole) > 0.2
    plain = networks.build(network, 3)
    plain.load_state_dict(trainer.network.state_dict())
    difference = (plain.eval()(x) - trainer.network(x)).norm() / plain(x).norm()
    assert float(difference.detach()) < 1e-4


def test_class_weights_by_median_frequency(scenes):
    dataset = datasets.load('folder', 'train', scenes)
    by = {w: Trainer(replace(TINY, weighting=w), dataset, device='cpu') for w in ('log', 'median')}
    trainer = by['median']
    found = samples.statistics(trainer.images, trainer.ids, 3)
    weight = losses.median_weights(found.present_frequency)
    logits, y = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    expected = torch.nn.functional.cross_entropy(logits, y, weight)
    assert float(trainer.loss(logits, y)) == pytest.approx(float(expected), rel=1e-5)
    assert float(by['log'].loss(logits, y)) != pytest.approx(float(expected), rel=1e-3)


def test_the_street_is_mixed_in(scenes, tmp_path):
    """Frames of the street follow the images, with the classes that both have."""
    dataset = datasets.load('folder', 'train', scenes)  # of its classes, CamVid has sky
    plain = Trainer(TINY, dataset, device='cpu')
    trainer = Trainer(replace(TINY, street_share=0.5), dataset, device='cpu')
    assert len(trainer.images) == 16 and torch.equal(trainer.images[:8], plain.images)
    assert trainer.ids[8:].unique().tolist() == [0, 255]
    assert (trainer.mean, trainer.std) == (plain.mean, plain.std)
    assert len({image.sum().item() for image in trainer.images[8:]}) == 8
    chosen = trainer.draw(0, (64, 64)).chosen
    assert len(chosen) == 8 and 0 < int((chosen >= 8).sum()) < 8
    other = replace(dataset, labels=replace(dataset.labels, names=('grass', 'bark', 'leaf')))
    with pytest.raises(TrainError, match='none of the classes of the synthetic street .* leave out'):
        Trainer(replace(TINY, street_share=0.5), other, device='cpu')


def test_every_option_trains(scenes, tmp_path):
    recipe = replace(TINY, epochs=1, aspect=0.1, edges=0.5, padding='reflect', gamma=0.2, dusk=0.5, fog=0.5,
                     noise=5.0, erase=0.5, street_share=0.3, weighting='median', dropout=0.1, ema=0.0,
                     swa=0.5)
    path = train(recipe, datasets.load('folder', 'train', scenes), tmp_path, device='cpu')
    assert {k: v for k, v in weights.read_card(path).recipe.items() if k in recipe.plain()} == recipe.plain()


def test_automatic_precision_is_what_the_machine_is_fast_in(scenes, monkeypatch):
    dataset = datasets.load('folder', 'train', scenes)
    for fast, expected in ((True, 'bfloat16'), (False, 'float32')):
        monkeypatch.setattr(machine, 'has_bfloat16', lambda fast=fast: fast)
        trainer = Trainer(replace(TINY, precision='auto'), dataset, device='cpu')
        assert trainer.precision == expected and trainer.card({}).recipe['precisions'] == [expected]


@pytest.mark.parametrize('network', [n for n in networks.NETWORKS if n != 'laanet'])
def test_single_images_train_all_networks_but_laanet(scenes, network):
    recipe = replace(TINY, network=network, batch=1, mix=0.0)
    trainer = Trainer(recipe, datasets.load('folder', 'train', scenes), device='cpu')
    drawn = trainer.draw(0, (64, 64)).map(lambda t: t[:1])
    assert all(float(trainer.train_step(drawn, (64, 64), i)) > 0 for i in range(2))


def test_frozen_stages_keep_weights_and_statistics(scenes, tmp_path):
    dataset = datasets.load('folder', 'train', scenes)
    first = train(replace(TINY, network='affnet', epochs=1), dataset, tmp_path / 'first', device='cpu')
    recipe = replace(TINY, network='affnet', epochs=2, init=str(first), freeze=3, seed=9)
    path = train(recipe, dataset, tmp_path / 'second', device='cpu')
    before, after = (weights.load(p)[0].state_dict() for p in (first, path))
    kept = {k.partition('.')[0] for k in before if k.endswith(('weight', 'running_mean'))
            and torch.equal(before[k], after[k])}
    assert kept == {'stage8', 'stage16', 'stage32'}
    assert all(torch.equal(before[k], after[k]) for k in before if k.partition('.')[0] in kept)
    out = tmp_path / 'again.safetensors'
    recalibrate_weights(path, dataset, out)
    again = weights.load(out)[0].state_dict()
    assert all(torch.equal(before[k], again[k]) for k in before if k.partition('.')[0] in kept)
    with pytest.raises(TrainError, match='affnet has the stages stage8, .*, of which 5 or fewer can be'):
        Trainer(replace(recipe, freeze=6), dataset, device='cpu')


def test_a_resumed_run_takes_the_layout_of_its_checkpoint(scenes, monkeypatch):
    """Without timing it again; on another device it is chosen anew."""
    dataset = datasets.load('folder', 'train', scenes)
    layout = Trainer(TINY, dataset, device='cpu').state()['layout']
    assert layout[1] == 'torch.channels_last'
    other = Trainer(TINY, dataset, device='cpu', layout=[layout[0], 'torch.contiguous_format'])
    assert other.layout is torch.contiguous_format and other.state()['layout'][1] == 'torch.contiguous_format'
    elsewhere = Trainer(TINY, dataset, device='cpu', layout=['H200', 'torch.contiguous_format'])
    assert elsewhere.layout is torch.channels_last


def test_the_first_crop_s_graph_is_freed(scenes):
    """A stand-in for what a graph holds lives as long as crops of its size are trained, and no longer."""
    trainer = Trainer(TINY, datasets.load('folder', 'train', scenes), device='cpu')
    held = []
    prepare = trainer._prepare

    def with_graph(drawn, crop):
        step, graph = prepare(drawn, crop), torch.zeros(1)
        held.append(weakref.ref(graph))
        return lambda batch: (graph, step(batch))[1]

    trainer._prepare = with_graph
    for step, crop in enumerate(((64, 64), (64, 64), (96, 96), (96, 96))):
        trainer.train_step(trainer.draw(0, crop).map(lambda t: t[:4]), crop, step)
    assert [ref() is None for ref in held] == [True, False]
