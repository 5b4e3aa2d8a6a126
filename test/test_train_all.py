# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Several networks side by side: time limits, archives in parts, and no process that stays behind."""
from dataclasses import replace
from pathlib import Path
import signal
import subprocess
import time

import torch
from training_runs import arguments, command, environment, rows_of, TINY

from lightseg_ros import weights
from lightseg_ros.cli import main


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
    assert 'finished: none; unfinished, the same command continues: laanet, affnet' in capsys.readouterr().out
    assert list((tmp_path / 'left').iterdir())


def test_a_device_that_is_not_there_is_told_at_once(tmp_path, capsys):
    began = time.monotonic()
    assert main(['train-all', '--device', 'cuda:77', '--out', str(tmp_path / 'runs')]) == 1
    assert "device is 'cuda:77', but torch" in capsys.readouterr().err
    assert time.monotonic() - began < 5 and not (tmp_path / 'runs').exists()


def test_all_networks_continue_from_an_archive(scenes, tmp_path, capsys, caplog):
    """An unfinished run is copied in parts, finished on a packed data set, and scored."""
    archive, there, left = tmp_path / 'scenes.tar', tmp_path / 'there', tmp_path / 'left'
    assert main(['train-all', '--pack', str(archive), '--data', 'folder', '--data-root', str(scenes),
                 '--split', 'train', '--test', 'val']) == 0
    half = arguments(scenes, there / 'laanet', replace(TINY, epochs=6), '--resume', '--time-limit')
    seconds = 0.4  # raised until it is enough for an epoch on this machine
    while not (there / 'laanet/log.csv').exists():
        assert main([*half, f'{seconds}']) == 0
        seconds *= 1.3
    steps = torch.load(there / 'laanet/last.pt', weights_only=True)['step']
    assert 2 <= steps < 12
    # Without any time nothing is trained, and all runs go into the archive.
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
    # A run with fewer steps does not replace one with more.
    assert main(train_all(archive, '--from', str(left), '--out', str(back), epochs=6)) == 0
    assert 'has more steps than the run in' in caplog.text
    # Finished runs leave their weights without checkpoints, even if they cannot be scored.
    assert main(train_all(archive, '--out', str(back), '--leave', str(left), '--test', 'tset',
                          '--part-mib', '4', epochs=6)) == 1
    assert sum(p.stat().st_size for p in left.iterdir()) < 12e6
    first, *_, last = sorted(left.iterdir())
    whole = first.read_bytes()
    for spoil, text in ((lambda: first.write_bytes(whole[:-512]), 'are damaged'),
                        (lambda: last.unlink(), 'expected 1-of-')):
        spoil()
        assert main(train_all(archive, '--from', str(left), '--out', str(tmp_path / 'new'), epochs=6)) == 1
        assert text in capsys.readouterr().err and not list((tmp_path / 'new').iterdir())


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
