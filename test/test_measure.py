# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark: equality before time, plain torch in the same run, results that say where they come from."""
import json

import cv2
import pytest
import torch

from lightseg_ros import cli, weights
from lightseg_ros.benchmark import measure, report
from lightseg_ros.benchmark.measure import BenchError, Contender
from lightseg_ros.inference import export

TORCH = Contender('torch', 'float32')


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A weights file of a network that starts fast; its accuracy is made up."""
    network, card = export.random_weights('affnet', 'camvid', (128, 96))
    card.metrics['test'] = {'miou': 12.5}
    path = tmp_path_factory.mktemp('weights') / 'affnet-camvid.safetensors'
    weights.save(path, network, card)
    return str(path)


@pytest.fixture(scope='module')
def result(model):
    contenders = [TORCH, Contender('torch', 'bfloat16')]
    return measure.bench([model], [(128, 96)], contenders, device='cpu', rounds=3, each=2, strict=False)


def test_a_row_has_times_ratios_and_the_roofline(result):
    exact, near = result['rows']
    assert (exact['network'], exact['resolution'], exact['backend'], exact['precision']) == (
        'affnet', '128x96', 'torch', 'float32')
    assert exact['agreement'] >= 99.99 and near['precision'] == 'bfloat16' and near['agreement'] < 100
    assert exact['parameters'] == 1606414 and exact['miou'] == 12.5
    for row in (exact, near):
        assert row['network_ms']['count'] == row['frame_ms']['count'] == 6
        assert 0 < row['network_ms']['p50'] <= row['network_ms']['max']
        assert row['fps'] == pytest.approx(1e3 / row['frame_ms']['p50'])
        assert row['network_speedup'] > 0 and row['eager_frame_ms'] > 0
        assert row['roofline_ms'] > 0 and row['bound'] in ('operations', 'bytes')
    assert exact['rounds'] == near['rounds'] == 3
    assert exact['eager_network_ms'] == near['eager_network_ms'], 'they share one reference'


def test_a_result_says_where_it_comes_from(result):
    assert result['format'] == report.FORMAT and result['versions']['torch'] == torch.__version__
    assert result['cores'] >= 1 and result['device'] and result['date'].endswith('+00:00')
    assert result['rates']['float32']['flops'] > 1e8 and result['rates']['float32']['bytes'] > 1e8
    line, other = report.means(result)
    assert line.startswith('128x96 torch float32: 1 networks') and 'bfloat16' in other


def test_nothing_is_timed_before_labels_agree(model, monkeypatch):
    monkeypatch.setitem(measure.AGREEMENT, 'float32', 100.001)
    with pytest.raises(BenchError, match='of the labels of plain torch; expected 100.001'):
        measure.bench([model], [(128, 96)], [TORCH], device='cpu', rounds=1, each=1)


def test_a_run_that_is_cut_short_keeps_what_it_measured(model, tmp_path, monkeypatch):
    """Here before the second contender is compiled, and in the second round of both."""
    out = tmp_path / 'result.json'

    def bench(rounds):
        with pytest.raises(KeyboardInterrupt):
            measure.bench([model], [(128, 96)], [TORCH, TORCH], device='cpu', rounds=rounds, each=2, out=out)
        return report.read(out)['rows']

    make, made = measure.Segmenter, []

    def once(*args, **kwargs):
        if made:
            raise KeyboardInterrupt
        made.append(make(*args, **kwargs))
        return made[0]

    with monkeypatch.context() as m:
        m.setattr(measure, 'Segmenter', once)
        row, = bench(3)
    assert row['rounds'] == 1 and row['network_ms']['count'] == 1 and row['network_speedup'] > 0
    write, written = report.write, []

    def thrice(*args):
        write(*args)
        written.append(args)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(report, 'write', thrice)
    rows = bench(3)
    assert [(row['rounds'], row['frame_ms']['count']) for row in rows] == [(1, 2), (1, 2)]
    assert report.table([out]).count(f'| {rows[0]["network"]} (1 of 3 rounds) |') == 2


def test_cost_counts_what_can_be_counted_by_hand(model):
    network, card = weights.load(model)
    operations, moved = measure.cost(network, card, (128, 96), 4)
    twice, half = measure.cost(network, card, (256, 96), 4), measure.cost(network, card, (128, 96), 2)
    assert half == (operations, moved / 2)
    assert 1.9 < twice[0] / operations < 2.1 and twice[1] < 2 * moved
    from lightseg_ros import info
    assert operations == 2 * info.describe('affnet', 11, (128, 96)).macs


def test_contenders():
    assert measure.parse_contender('openvino:bfloat16') == Contender('openvino', 'bfloat16')
    for text in ('openvino', 'openvino:int8', 'tflite:float32', ''):
        with pytest.raises(BenchError, match=f"'{text}'; expected BACKEND:PRECISION"):
            measure.parse_contender(text)


def test_command_line(model, tmp_path, capsys):
    out = tmp_path / 'new' / 'result.json'
    assert cli.main(['bench', model, '--resolutions', '128x96', '--contenders', 'torch:float32', '--device',
                     'cpu', '--rounds', '1', '--out', str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == json.loads(out.read_text())
    assert lines[0].startswith('affnet')

    picture = tmp_path / 'bench.png'
    assert cli.main(['bench', '--plot', str(out), '--out', str(picture)]) == 0
    assert cv2.imread(str(picture)).std() > 5

    assert cli.main(['bench', '--table', str(out)]) == 0
    assert '| affnet | 128x96 | torch | float32 |' in capsys.readouterr().out

    assert cli.main(['bench', 'nonet', '--rounds', '1']) == 1
    assert "no packaged weights for 'nonet'" in capsys.readouterr().err


def test_what_cannot_be_plotted(tmp_path, result):
    path = tmp_path / 'result.json'
    path.write_text('{}')
    with pytest.raises(report.ReportError, match='is not a result'):
        report.plot([path], tmp_path / 'x.png')
    report.write({**result, 'rows': [{**r, 'miou': None} for r in result['rows']]}, path)
    with pytest.raises(report.ReportError, match='no row of these results has an mIoU'):
        report.plot([path], tmp_path / 'x.png')


def test_startup_is_measured_in_processes_of_their_own(model):
    seconds = measure.startup(model, device='cpu', backend='torch', repeats=1)
    assert 0.3 < seconds['p50'] == seconds['max'] < 120 and seconds['first'] > 0.3
    with pytest.raises(BenchError, match='no label of nothing'):
        measure.startup('nothing', repeats=1)


def test_the_node_is_measured_through_dds(model, tmp_path):
    pytest.importorskip('rclpy', reason='needs ROS 2')
    from lightseg_ros.live.bench import bench_ros
    result = bench_ros(model, device='cpu', contender=TORCH, seconds=1.0, sizes=[(160, 120)], overlays=[True],
                       rates=[5.0], limit_hz=2.0)
    row, = result['ros_rows']
    assert row['overlay'] and row['size'] == '160x120' and row['rate_hz'] == 5
    assert row['# of Frames Sent'] == 5 and row['# of Missed Frames'] <= 1
    assert 0 < row['latency_ms']['p50'] < 2000
    assert row['Mean Playback Frame Rate (fps)'] == pytest.approx(5, rel=0.3)
    assert 1 <= row['highest_rate_hz'] <= 2 and row['cpu_percent'] > 0
    assert row['memory_mb'] > 100 and abs(row['memory_growth_mb']) < 100
    assert [r['subscriber'] for r in result['ros_subscribers']] == ['none', 'confidence', 'overlay', 'points']
    assert all(0 < r['latency_ms']['p50'] <= r['latency_ms']['p95'] for r in result['ros_subscribers'])
    cpu = {r['lazy']: r['cpu_percent'] for r in result['ros_idle']}
    assert list(cpu) == ['true', 'subscription', 'false'] and cpu['false'] > cpu['true']
    report.write(result, tmp_path / 'ros.json')
    table = report.table([tmp_path / 'ros.json'])
    assert '| 160x120 | 5 | points |' in table and '| 160x120 | 30 | subscription |' in table
    with pytest.raises(BenchError, match='rates are 5, 0; expected more than 0 Hz'):
        bench_ros(model, rates=[5.0, 0.0])
    assert row['stages']['network'] > 0
