# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One training step: learning rate, averages, teachers, second classifier, CUDA graphs."""
from dataclasses import replace
import operator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_runs import TINY

from lightseg_ros import datasets, labels, networks, weights
from lightseg_ros.training import trainer as trainers
from lightseg_ros.training.recipes import Recipe
from lightseg_ros.training.run import train
from lightseg_ros.training.trainer import learning_rate, Trainer, TrainError


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
    with pytest.raises(TrainError, match='needs the classes of scenes: sky, floor, box'):
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
    trainer.loss = trainers._loss(trainer.recipe, torch.tensor([0.6, 0.38, 0.02]), meta)
    trainer._normalise = trainers._normaliser(trainer.mean, trainer.std, meta)
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
