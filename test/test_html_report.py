# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Reports: one file, nothing fetched, readable on a phone in a real browser; comparisons; JSON."""
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from lightseg_ros import labels
from lightseg_ros.cli import main
from lightseg_ros.evaluation import html_report, requirements, scores, text_report
from lightseg_ros.evaluation.text_report import ReportError

PHONE = 390
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--no-first-run', '--hide-scrollbars',
         '--allow-file-access-from-files')


def measure(count=40, noise=0.3, truth=True, seed=0):
    """Scores of made-up frames."""
    out = scores.Scores(labels.load('camvid'), truth)
    rng = np.random.default_rng(seed)
    stability = np.zeros((256, 2), np.int64)
    stability[3] = 100, 95
    for i in range(count):
        ids = np.repeat(np.repeat(np.random.default_rng(i).integers(0, 11, (6, 8), np.uint8), 10, 0), 10, 1)
        guess = np.where(rng.random(ids.shape) < noise, rng.integers(0, 11, ids.shape, np.uint8), ids)
        confidence = rng.integers(100, 256, ids.shape, dtype=np.uint8)
        rgb = cv2.cvtColor(20 * ids, cv2.COLOR_GRAY2RGB)
        out.add('a "bag" <1>', i, i * 10 ** 8, rgb, guess, ids if truth else None, confidence,
                {'network': 5.0 + i % 7, 'total': 6.0 + i % 7, 'with confidence': 7.5 + i % 7},
                stability if i else None, i in (10, 20))
    out.counts['read'] = count + 1
    out.skip('failed', 'frame 17: <script>alert(1)</script>')
    return out


def stamped(measured):
    return {'format': text_report.FORMAT, 'date': '2026-01-02T03:04:05+00:00', 'options': {'batch': 1},
            'model': {'network': 'laanet', 'dataset': 'camvid', 'weights': 'w.safetensors',
                      'sha256': 'c0ffee' * 10, 'resolution': '480x360', 'resize_mode': 'fit',
                      'precision': 'float32', 'backend': 'torch 2.13.0'},
            'device': 'CPU', 'processor': 'Made-up 9000', 'cores': 2, 'load': 0.5,
            'required': [], 'versions': {'lightseg_ros': '0.1.0'},
            'sources': [{'name': 'a "bag" <1>', 'sha256': 'decade' * 10, 'frames': 41}]} | measured.result()


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """A report with ground truth, one without, a comparison."""
    folder = tmp_path_factory.mktemp('report')
    a, b, c = measure(), measure(noise=0.5, seed=1), measure(truth=False)
    results = {'good': stamped(a), 'bad': stamped(b)}
    paired = {'bad': scores.paired_difference(results['good']['frames'], results['bad']['frames'])}
    limits = requirements.parse(['miou=0.9', 'consistency=0.9'], a.labels, True)
    results['good']['required'] = [r.check(results['good']) for r in limits]
    return [html_report.write_html(results['good'], a.pictures(), folder / 'report.html'),
            html_report.write_html(stamped(c), c.pictures(), folder / 'blind.html'),
            html_report.write_comparison(results, paired, folder / 'comparison.html')]


def test_nothing_is_fetched(pages):
    for page in pages:
        text = page.read_text()
        addresses = re.findall(r'(?:src|href)="([^"]{0,30})', text) + re.findall(r'url\(([^)]*)', text)
        assert all(a.startswith('data:image/') for a in addresses) and '://' not in text
        assert '<script' not in text, 'something in the data became markup'


def test_what_a_report_says(pages):
    text = pages[0].read_text()
    for what in ('c0ffee', 'decade', '2026-01-02', 'pedestrian', 'Confusion', 'Calibration', 'lowest mIoU',
                 'highest mIoU', 'spread evenly', 'lowest confidence', 'Made-up 9000', 'traversable',
                 '0:02.0', '<div class="trouble">Missed: miou is ', '<div class="met">consistency is 95 %',
                 'a &quot;bag&quot; &lt;1&gt;', '41 frames read', '1 × failed', 'batch: 1'):
        assert what in text, what
    # 40 frames at 10 Hz: of each album two lie two seconds apart, or only one.
    assert {n: text.count(f'alt="{n}"') for n in html_report.TILES} == dict.fromkeys(
        html_report.TILES, text.count('alt="frame"')) and 5 <= text.count('alt="frame"') <= 8
    blind = pages[1].read_text()
    assert 'Confusion' not in blind and 'IoU' not in blind
    assert 'mean confidence' in blind and 'lowest confidence' in blind and 'alt="confidence"' in blind


def test_numbers_are_those_of_the_result(pages):
    result = stamped(measure())
    text = pages[0].read_text()
    assert f'<b>{result["miou"]:.2f} %</b>mIoU' in text
    assert f'<td>{result["iou"]["road"]:.2f}</td>' in text and f'ECE {result["ece"]:.2f} %' in text


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    """Run headless Chromium with a fresh profile."""
    found = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not found:
        pytest.skip('no Chromium; Debian and Ubuntu have the package chromium')
    profile = tmp_path_factory.mktemp('chromium')

    def run(*arguments):
        done = subprocess.run([found, *FLAGS, f'--user-data-dir={profile}', *arguments], capture_output=True,
                              text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout
    return run


def test_a_phone_shows_it_whole(pages, chromium, tmp_path):
    """At 390 pixels nothing sticks out to the side, no picture is missing, no number is broken in two."""
    frames = ''.join(f'<iframe src="{p.as_uri()}" width="{PHONE}" height="700"></iframe>' for p in pages)
    script = """
        const said = [...document.querySelectorAll('iframe')].map(f => {
            const d = f.contentDocument, line = 30;
            return {width: d.documentElement.scrollWidth,
                    images: [...d.images].filter(i => !i.naturalWidth).length,
                    broken: [...d.querySelectorAll('td')].filter(c => c.clientHeight > 2 * line).length,
                    plots: d.querySelectorAll('svg path').length, height: d.documentElement.scrollHeight};
        });
        document.body.textContent = 'said' + JSON.stringify(said) + 'end';"""
    wrapper = tmp_path / 'wrapper.html'
    wrapper.write_text(f'<body>{frames}<script>onload = () => {{{script}}}</script></body>')
    dom = chromium('--virtual-time-budget=5000', '--dump-dom', wrapper.as_uri())
    said = json.loads(re.search('said(.*)end', dom, re.S)[1])
    for page in said:
        assert page['width'] <= PHONE and page['images'] == page['broken'] == 0, said
        assert page['height'] > 1000 and page['plots'] >= 2


def test_screenshot(pages, chromium, tmp_path):
    picture = tmp_path / 'page.png'
    chromium(f'--window-size={PHONE},2500', f'--screenshot={picture}', pages[0].as_uri())
    pixels = cv2.imread(str(picture))
    assert pixels.shape == (2500, PHONE, 3) and pixels.std() > 10
    # The bars of the confidence, in their orange.
    assert (np.abs(pixels.astype(int) - (0x2b, 0x82, 0xd9)).max(2) < 3).sum() > 500


def test_json(tmp_path):
    result = stamped(measure(3))
    text_report.write_json(result, tmp_path / 'new' / 'r.json')
    assert text_report.read_json(tmp_path / 'new' / 'r.json') == result
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['r.json']
    for text, error in (('{', 'is not JSON'), ('[]', 'is not a result'),
                        ('{"format": "x"}', 'is not a result')):
        (tmp_path / 'bad.json').write_text(text)
        with pytest.raises(ReportError, match=error):
            text_report.read_json(tmp_path / 'bad.json')
    with pytest.raises(ReportError, match='No such file'):
        text_report.read_json(tmp_path / 'missing.json')


def test_text():
    text = text_report.text(stamped(measure(5)))
    assert re.search(r'road +\d+\.\d\d +\d+\.\d\d +\d+\.\d\d', text)
    assert 'temporal consistency 95.00 %' in text
    assert text_report.counts_text({'read': 699, 'segmented': 60, 'not_reached': 639, 'bags_failed': 1}) == (
        '60 frames read, 60 segmented, 639 not reached, because the evaluation was stopped, 1 bag not read')
    assert '6 frames read' in text and '1 x failed: frame 17' in text
    blind = text_report.text(stamped(measure(2, truth=False)))
    assert 'IoU' not in blind and 'mean confidence' in blind


def test_compare(tmp_path, capsys):
    paths = [tmp_path / 'good.json', tmp_path / 'bad' / 'result.json']
    for path, noise in zip(paths, (0.3, 0.5)):
        text_report.write_json(stamped(measure(noise=noise)), path)
    page = tmp_path / 'c.html'
    assert main(['compare', *map(str, paths), '--html', str(page)]) == 0
    said = capsys.readouterr().out
    interval = re.search(r'bad minus good: .* interval ([-+.\d]+) to ([-+.\d]+),', said)
    low, high = (float(v) for v in interval.groups())
    assert low < high < -5 and 'over 40 frames (0 better, 40 worse)' in said
    assert re.search(r'mIoU % +\d+\.\d\d +\d+\.\d\d', said)
    assert page.read_text().count('<svg') == 1
    assert main(['compare', str(paths[0])]) == 1 and 'two or more' in capsys.readouterr().err
