# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The network that a node runs, without ROS."""
import subprocess
import sys

import numpy as np
import pytest

from lightseg_ros import labels, machine, networks, weights
from lightseg_ros.inference import cpu, segmenter
from lightseg_ros.nodes import live_segmenter
from lightseg_ros.nodes.live_segmenter import LiveSegmenter, NetworkChoice


@pytest.fixture
def choice(random_weights):
    return NetworkChoice(str(random_weights), device='cpu', resolution='64x64', backend='torch')


def write(path, network, seed):
    import torch
    torch.manual_seed(seed)
    weights.save(path, networks.build(network, 11), weights.Card(
        network, labels.load('camvid'), (100.0,) * 3, (60.0,) * 3, (64, 64)))


def test_it_needs_no_ros():
    code = ('import sys\nfor name in ("rclpy", "sensor_msgs", "std_msgs"): sys.modules[name] = None\n'
            'import lightseg_ros.nodes.live_segmenter')
    assert subprocess.run([sys.executable, '-c', code], timeout=60).returncode == 0


def test_it_runs_what_was_chosen_and_exchanges_it(choice, random_weights):
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    live = LiveSegmenter(choice, overlay_alpha=0.25)
    with live.use() as network:
        first = network([frame])[0].labels
    expected = segmenter.load(random_weights, 'cpu', '64x64', backend='torch')([frame])[0].labels
    assert (first == expected).all()
    other = NetworkChoice(str(random_weights), device='cpu', resolution='128x96', backend='torch')
    assert not live.differs(choice) and live.differs(other)
    seen = []
    live.change(other, seen.append)
    with live.use() as network:
        assert seen == [network] and network.resolution == (128, 96) and network.overlay_alpha == 0.25
    assert live.differs(choice) and not live.differs(other)


def test_a_network_that_cannot_be_loaded_leaves_the_old_one_in_force(choice):
    live = LiveSegmenter(choice)
    with live.use() as before:
        pass
    seen = []
    for wrong in (NetworkChoice('nothing', device='cpu'),
                  NetworkChoice(choice.model, device='cpu', resolution='12x')):
        with pytest.raises(ValueError):
            live.change(wrong, seen.append)
    with live.use() as after:
        assert after is before
    assert not seen and not live.differs(choice)


def test_a_rewritten_weights_file_is_another_network(tmp_path):
    path = tmp_path / 'w.safetensors'
    write(path, 'affnet', 0)
    live = LiveSegmenter(NetworkChoice(str(path), device='cpu', backend='torch'))
    assert not live.differs(NetworkChoice(str(path), device='cpu', backend='torch'))
    write(path, 'affnet', 1)
    assert live.differs(NetworkChoice(str(path), device='cpu', backend='torch'))


def test_a_cpu_takes_one_camera_after_the_other(choice):
    assert LiveSegmenter(choice, cameras=3).batch_limit == 1


def test_a_size_that_needs_more_memory_than_there_is_is_refused(choice, monkeypatch):
    monkeypatch.setattr(machine, 'free_bytes', lambda: 8 * 10 ** 9)
    words = r'laanet at 8192x8192 needs about 33.6 GB of memory, and 8.0 GB are available'
    large = NetworkChoice(choice.model, 'cpu', '8192x8192', 'stretch', 'torch')
    with pytest.raises(ValueError, match=words):
        LiveSegmenter(large)
    live = LiveSegmenter(choice)
    live.prepare(large)
    with pytest.raises(ValueError, match=words):
        live.change(large, print)
    with live.use() as network:
        assert network.resolution == (64, 64)
    # A camera's image at its native size.
    live = LiveSegmenter(NetworkChoice(choice.model, 'cpu', 'native', backend='torch'), sizes=[(64, 64)])
    with live.use(), pytest.raises(ValueError, match='laanet at 8000x4000 needs about 16.0 GB'):
        live.make_ready((4000, 8000))


def test_sizes_that_come_later_are_traced_elsewhere_and_evicted(random_weights, monkeypatch, tmp_path):
    """Torch keeps for ever what a process has traced."""
    pytest.importorskip('openvino', reason='openvino is not installed')
    import torch
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(cpu, 'MAX_SIZES', 1)
    monkeypatch.setattr(live_segmenter, 'TRACED_HERE', 0)
    live = LiveSegmenter(NetworkChoice(str(random_weights), 'cpu', '96x64', backend='openvino'),
                         sizes=[(64, 64)])
    monkeypatch.setattr(torch.jit, 'trace', None)  # in this process
    with live.use() as network:
        assert live.is_ready((64, 64)) and not live.is_ready((64, 80))
        live.make_ready((64, 80))
        assert network([np.zeros((64, 80, 3), np.uint8)])[0].labels.shape == (64, 80)
        assert live.is_ready((64, 80)) and not live.is_ready((64, 64))
        monkeypatch.setattr(live_segmenter, 'TRACED_HERE', 1)  # the first ones are traced here
        with pytest.raises(TypeError):
            live.make_ready((64, 96))
        live.make_ready((64, 96))
        assert live.is_ready((64, 96))


def test_nothing_is_compiled_for_a_node_that_closes(choice, monkeypatch):
    """Networks that waited for their turn were compiled one after the other once the node was cleaned up."""
    live = LiveSegmenter(choice)
    live.close()
    monkeypatch.setattr(LiveSegmenter, '_open', lambda *_: pytest.fail('a network was loaded'))
    monkeypatch.setattr(subprocess, 'Popen', lambda *_, **__: pytest.fail('a compiler was started'))
    live.prepare(NetworkChoice(choice.model, device='cpu', resolution='128x96'))
    with pytest.raises(ValueError, match='shuts down'):
        live.change(NetworkChoice(choice.model, device='cpu', resolution='128x96'), print)
