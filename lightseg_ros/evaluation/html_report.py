# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A result as one self-contained HTML file. Nothing is computed here."""
import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..files import write_whole
from .scores import Picture
from .text_report import counts_text, figure, FIGURES, number, one_of, paired_text

COLORS = ('#2266bb', '#d9822b', '#2e9e5b', '#c0392b', '#7a4fb5', '#5d6b7c')
CSS = """
:root { --ink: #1c2430; --soft: #5d6b7c; --line: #d9dfe6; --card: #f5f7f9; --blue: #26b; --red: #c03; }
* { box-sizing: border-box; }
body { font: 16px/1.45 system-ui, sans-serif; color: var(--ink); margin: 0 auto; padding: 12px;
       max-width: 1200px; }
h1, p, dd, .trouble, .met { overflow-wrap: anywhere; }
h1 { font-size: 1.4em; margin: .3em 0 0; } h2 { font-size: 1.15em; margin: 1.6em 0 .4em; }
p { margin: .4em 0; } small, .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 8px; }
.cards div { background: var(--card); border-radius: 8px; padding: 8px 10px; }
.cards b { display: block; font-size: 1.35em; }
.trouble { border-left: 4px solid var(--red); background: #fcf1ef; padding: 6px 10px; margin: 10px 0; }
.met { border-left: 4px solid #2e9e5b; background: #eff8f2; padding: 6px 10px; margin: 10px 0; }
table { border-collapse: collapse; width: 100%; font-size: .9em; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 6px; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } td { white-space: nowrap; }
.wide { overflow-x: auto; }
.stacked .bar { display: block; margin: 2px 0; height: .45em; }
.heat td, .heat th { border: 0; padding: 3px 1px; font-size: .75em; text-align: center; min-width: 1.9em; }
.heat th.side { text-align: left; white-space: nowrap; }
.heat th.top { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.bar { display: inline-block; height: .7em; border-radius: 2px; background: var(--blue); }
td.bars { width: 25%; min-width: 60px; text-align: left; }
.plot { display: grid; grid-template-columns: 2.8em 1fr; font-size: .75em; color: var(--soft); }
.plot svg { width: 100%; height: 180px; display: block; } .plot path { vector-effect: non-scaling-stroke; }
.plot .y { display: flex; flex-direction: column; justify-content: space-between; text-align: right;
           padding-right: 6px; margin: -.7em 0; }
.plot .x { grid-column: 2; display: flex; justify-content: space-between; gap: 8px; margin-top: .6em; }
.square { max-width: 420px; } .square svg { height: 260px; }
.legend span { white-space: nowrap; margin-right: .9em; font-size: .85em; }
.scale { display: inline-block; width: 120px; height: .8em; border-radius: 2px; vertical-align: baseline;
         background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 4px;
         margin-bottom: 12px; }
.tiles img { width: 100%; display: block; border-radius: 3px; } .tiles figure { margin: 0; }
@media (max-width: 600px) { .classes { font-size: .78em; } .classes .bars { display: none; }
                            .classes th, .classes td { padding: 4px 3px; } }
figcaption { font-size: .75em; color: var(--soft); } dt { font-weight: 600; } dd { margin: 0 0 .3em; }
"""
COLUMNS = 600  # most points of a curve
# Name in Scores.pictures() -> heading, what its values are.
ALBUMS = {'sampled': ('Frames spread evenly', ''),
          'unsure': ('Frames of the lowest confidence', 'confidence'),
          'worst': ('Frames of the lowest mIoU', 'mIoU'), 'best': ('Frames of the highest mIoU', 'mIoU')}
TILES = {'frame': 'frame', 'truth': 'ground truth', 'overlay': 'labels', 'confidence': 'confidence',
         'error': 'errors red, void grey'}


def write_html(result: dict[str, Any], pictures: Mapping[str, Sequence[Picture]], path: Path) -> Path:
    """Write a result as one HTML file, with the pictures of `Scores.pictures`; returns its path."""
    scored = bool(result['counts'].get('scored'))
    colors = {c['name']: c['color'] for c in result['labels']['classes']}
    frames = result['frames']
    title = f'{result["model"]["network"]} on {", ".join(s["name"] for s in result["sources"])}'
    processor = '' if result['processor'] == result['device'] else f' · {result["processor"]}'
    body = [
        f'<h1>{escape(title)}</h1><p class="soft">{escape(result["date"])} · {escape(result["device"])}'
        f'{escape(processor)} · {escape(result["model"]["resolution"])} · '
        f'{escape(result["model"]["precision"])} · {escape(result["model"]["backend"])}</p>',
        _required(result), _cards(result), _trouble(result), _live(result), '<h2>Classes</h2>',
        _classes(result, colors), _groups(result), _corrupted(result)]
    if result['confidence_shares']:
        body += ['<h2>Confidence</h2><p class="soft">Percent of all pixels at each confidence. Without '
                 'ground truth it tells where the network hesitates, not whether it is right.</p>',
                 _bars(result['confidence_shares'], 'confidence 0 %', '100 %')]
    confidence = [None if f['confidence'] is None else 100 * f['confidence'] for f in frames]
    measured: list[tuple[str, str, list[float | None]]] = [
        ('mIoU %', '#2266bb', [f['miou'] for f in frames]),
        ('consistency %', '#2e9e5b', [f['consistency'] for f in frames]),
        ('confidence %', '#d9822b', confidence)]
    measured = [m for m in measured if any(v is not None for v in m[2])]
    body += ['<h2>Over time</h2>', _legend([(name, color) for name, color, _ in measured]),
             _timeline([(color, values) for _, color, values in measured], frames), _latency_line(frames)]
    body += ['<h2>Class shares over time</h2>', _legend([(n, _rgb(c)) for n, c in colors.items()]),
             _shares(frames, list(colors.values()))]
    if scored:
        body += ['<h2>Confusion</h2><p class="soft">Row: class of the ground truth. Column: predicted class. '
                 'Percent of the row.</p>', _heat(result['confusion'], list(colors)),
                 '<h2>Calibration</h2><p class="soft">Share of right predictions at each confidence. On the '
                 f'dashed line, confidence equals accuracy. ECE {number(result["ece"])} %.</p>',
                 _calibration(result['calibration'])]
    starts = _starts(frames)
    for name, (heading, what) in ALBUMS.items():
        if pictures.get(name):
            body += [f'<h2>{heading}</h2>',
                     _legend([(n, _rgb(c)) for n, c in colors.items()]).replace(
                         '</p>', '<span>confidence 0 <i class="scale"></i> 100 %</span></p>'),
                     *(_picture(p, what, starts) for p in pictures[name])]
    body += ['<h2>Milliseconds per frame</h2>', _latency(result['latency_ms']),
             '<h2>How this was made</h2>', _origin(result)]
    return _write_page(title, body, path)


def write_comparison(results: dict[str, dict[str, Any]], paired: dict[str, dict[str, Any]], path: Path,
                     differ: Mapping[str, tuple[dict[str, Any], Sequence[Picture]]] | None = None) -> Path:
    """
    Write several results side by side as one HTML file; returns its path.

    `differ`: where the labels of a result and the first one disagree, from `disagreement.disagreement`.
    """
    colors = dict(zip(results, COLORS * (1 + len(results) // len(COLORS))))
    head = '<tr><th></th>' + ''.join(f'<th>{_swatch(colors[n])}{escape(n)}</th>' for n in results) + '</tr>'
    rows = ''.join(
        f'<tr><td>{escape(title)}</td>' + ''.join(
            f'<td>{number(figure(r, key), digits=digits)}</td>' for r in results.values()) + '</tr>'
        for title, key, digits in FIGURES if any(figure(r, key) is not None for r in results.values()))
    body = [f'<h1>{escape(" · ".join(results))}</h1><h2>Figures</h2>',
            f'<div class="wide"><table>{head}{rows}</table></div>']
    classes = list(dict.fromkeys(n for r in results.values() for n in r['iou']))
    if any(r['miou'] is not None for r in results.values()):
        rows = ''.join(
            f'<tr><td>{escape(c)}</td><td class="bars">'
            + ''.join(_bar(r['iou'].get(c), colors[n]) for n, r in results.items()) + '</td>'
            + ''.join(f'<td>{number(r["iou"].get(c))}</td>' for r in results.values()) + '</tr>'
            for c in classes)
        head = '<tr><th>class</th><th></th>' + ''.join(f'<th>{escape(n)}</th>' for n in results) + '</tr>'
        body += [f'<h2>IoU %</h2><div class="wide"><table class="stacked">{head}{rows}</table></div>']
    for name, p in paired.items():
        body += [f'<h2>{escape(name)} minus {escape(next(iter(results)))}</h2>'
                 f'<p>{escape(paired_text(name, next(iter(results)), p))}</p>']
        if p['frames']:
            body += [_differences(p['differences'])]
    for name, (d, pictures) in (differ or {}).items():
        first = next(iter(results))
        start_ns = min(_starts(results[first]['frames']).values(), default=0)
        body += _disagreement(first, name, d, pictures, start_ns, results[first]['labels']['classes'])
    for name, r in results.items():
        body += [f'<h2>{escape(name)}</h2>', _origin(r)]
    return _write_page('Comparison', body, path)


def _disagreement(first: str, name: str, d: dict[str, Any], pictures: Sequence[Picture],
                  start_ns: int, classes: Sequence[dict[str, Any]]) -> list[str]:
    rows = ''.join(
        f'<tr><td>{escape(n)}</td><td class="bars">{_bar(c["agree"])}</td><td>{number(c["agree"])}</td>'
        f'<td>{number(c["first"])}</td><td>{number(c["second"])}</td></tr>'
        for n, c in d['per_class'].items())
    swaps = ''.join(f'<li>{escape(s["first"])} in {escape(first)} is {escape(s["second"])} in '
                    f'{escape(name)}: {number(s["share"])} % of all pixels</li>' for s in d['swaps'])
    captions = {'first': first, 'second': name, 'difference': 'different labels red'}
    starts = {p.source: start_ns for p in pictures}
    return [f'<h2>Where {escape(name)} and {escape(first)} disagree</h2>'
            f'<p>{number(d["share"])} % of the pixels of {d["frames"]} frames have different labels. '
            'Agreement: of the pixels that either calls so, the share that both do.</p>'
            '<div class="wide"><table><tr><th>class</th><th class="bars"></th><th>agreement %</th>'
            f'<th>share in {escape(first)} %</th><th>in {escape(name)} %</th></tr>{rows}</table></div>'
            f'<ul>{swaps}</ul>',
            _legend([(c['name'], _rgb(c['color'])) for c in classes]) if pictures else '',
            *(_picture(p, 'different labels', starts, captions) for p in pictures)]


def _differences(values: Sequence[float]) -> str:
    """Draw every frame's difference, sorted, as bars up and down from a middle line."""
    reach = max(1.0, *(abs(v) for v in values))
    width = 1000 / len(values)
    stairs = ''.join(f'V{50 - 50 * v / reach:.1f}h{width:.3f}' for v in sorted(values))
    return _plot(f'<path d="M0 50{stairs}V50z" fill="#2266bb"/><path d="M0 50H1000" stroke="#5d6b7c"/>',
                 [f'{reach:+.0f}', '0', f'{-reach:+.0f}'],
                 ['all frames, sorted by their difference in mIoU'])


def _write_page(title: str, body: Sequence[str], path: Path) -> Path:
    write_whole(
        path, f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{CSS}</style></head><body>' + '\n'.join(body) + '</body></html>')
    return path


def _required(result: dict[str, Any]) -> str:
    return ''.join(f'<div class="{"met" if r["met"] else "trouble"}">'
                   f'{"" if r["met"] else "Missed: "}{escape(r["text"])}</div>' for r in result['required'])


def _cards(result: dict[str, Any]) -> str:
    total = result['latency_ms'].get('total') or {}
    both = result['latency_ms'].get('with confidence') or {}
    cards = [('mIoU', number(result['miou'], ' %')), ('pixel accuracy', number(result['accuracy'], ' %')),
             ('boundary F1', number(result['boundary_f1'], ' %')), ('ECE', number(result['ece'], ' %')),
             ('mean confidence', number(result['confidence'], ' %')),
             ('temporal consistency', number(result['consistency'], ' %')),
             ('frame to labels, p50', number(total.get('p50'), ' ms', 1)),
             ('frame to labels, p95', number(total.get('p95'), ' ms', 1)),
             ('with confidence, p50', number(both.get('p50'), ' ms', 1)),
             ('frames scored' if result['counts'].get('scored') else 'frames',
              str(result['counts'].get('scored') or result['counts'].get('segmented', 0)))]
    return '<div class="cards">' + ''.join(
        f'<div><b>{value}</b>{escape(name)}</div>' for name, value in cards if value != '–') + '</div>'


def _trouble(result: dict[str, Any]) -> str:
    items = ''.join(f'<div class="trouble">{s["count"]} × {escape(one_of(s["what"]))}, first: '
                    f'{escape(s["first"])}</div>' for s in result['skipped'])
    return f'<p>{escape(counts_text(result["counts"]))}.</p>{items}'


def _live(result: dict[str, Any]) -> str:
    live = result.get('live')
    return '' if not live else '<h2>Live</h2>' + _definitions(
        {k.replace('_', ' '): number(v, digits=1) if isinstance(v, float) else str(v) for k, v in live.items()
         if not isinstance(v, dict)}) + _latency({k: v for k, v in live.items() if isinstance(v, dict)})


def _classes(result: dict[str, Any], colors: dict[str, Any]) -> str:
    scored = bool(result['counts'].get('scored'))
    columns = [('IoU %', result['iou'])] if scored else []
    more = [('bound&shy;ary F1 %', result['boundary_f1_per_class'])] if scored else []
    more += [('share %', result['shares']), ('confi&shy;dence %', result['confidence_per_class']),
             ('consis&shy;tency %', result['consistency_per_class'])]
    more = [(head, values) for head, values in more if any(v is not None for v in values.values())]
    heads = ''.join(f'<th>{h}</th>' for h, _ in columns) + '<th class="bars"></th>' * scored \
        + ''.join(f'<th>{h}</th>' for h, _ in more)
    rows = f'<tr><th>class</th>{heads}</tr>'
    for name, color in colors.items():
        cells = ''.join(f'<td>{number(v[name])}</td>' for _, v in columns)
        cells += f'<td class="bars">{_bar(result["iou"][name])}</td>' if scored else ''
        cells += ''.join(f'<td>{number(v[name])}</td>' for _, v in more)
        rows += f'<tr><td>{_swatch(_rgb(color))}{escape(name)}</td>{cells}</tr>'
    return f'<div class="wide"><table class="classes">{rows}</table></div>'


def _groups(result: dict[str, Any]) -> str:
    members = result['labels']['groups']
    if all(v is None for v in result['group_iou'].values()):
        return ''
    rows = ''.join(f'<tr><td>{escape(g)} <small>{escape(", ".join(members[g]))}</small></td>'
                   f'<td>{number(v)}</td></tr>' for g, v in result['group_iou'].items())
    return f'<h2>Groups of classes</h2><table><tr><th>group</th><th>IoU %</th></tr>{rows}</table>'


def _corrupted(result: dict[str, Any]) -> str:
    found = {name: values for name, values in result.get('corrupted', {}).items() if name != 'mean'}
    if not found:
        return ''
    rows = ''.join(f'<tr><td>{escape(name)}</td>{"".join(f"<td>{v:.1f}</td>" for v in values)}</tr>'
                   for name, values in found.items())
    return ('<h2>Worse images</h2><p class="soft">mIoU in percent on the same images made worse, in three '
            f'strengths. Mean {result["corrupted"]["mean"]:.1f} %.</p>'
            f'<table><tr><th></th><th>1</th><th>2</th><th>3</th></tr>{rows}</table>')


def _bar(percent: float | None, color: str = 'var(--blue)') -> str:
    return f'<span class="bar" style="width:{percent or 0:.1f}%;background:{color}"></span>'


def _swatch(color: str) -> str:
    return f'<span class="swatch" style="background:{color}"></span>'


def _columns(values: Sequence[float | None], count: int) -> list[tuple[float, float, float] | None]:
    """Return lowest, mean and highest value of each column of a plot; None for a column without values."""
    out: list[tuple[float, float, float] | None] = []
    for i in range(count):
        part = [v for v in values[i * len(values) // count:(i + 1) * len(values) // count] if v is not None]
        out.append((min(part), sum(part) / len(part), max(part)) if part else None)
    return out


def _plot(inside: str, y: Sequence[str], x: Sequence[str], kind: str = '') -> str:
    """
    Frame a drawing of 1000 x 100 units that is stretched to the page's width.

    `y`: labels from top to bottom. `x`: from left to right. They are text of the page, so that it stays
    readable on a phone.
    """
    lines = ''.join(f'<path d="M0 {100 * i / (len(y) - 1):.1f}H1000" stroke="#d9dfe6"/>'
                    for i in range(len(y)))
    return (f'<div class="plot {kind}"><div class="y">' + ''.join(f'<span>{t}</span>' for t in y)
            + '</div><svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img">'
            f'{lines}{inside}</svg><div class="x">'
            + ''.join(f'<span>{escape(t)}</span>' for t in x) + '</div></div>')


def _scale(top: float) -> list[str]:
    return [f'{top * i / 4:g}' for i in (4, 3, 2, 1, 0)]


def _starts(frames: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the first stamp of each source: times are told from there on."""
    out: dict[str, int] = {}
    for f in frames:
        out[f['source']] = min(f['stamp_ns'], out.get(f['source'], f['stamp_ns']))
    return out


def _clock(ns: int) -> str:
    minutes, seconds = divmod(ns / 1e9, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f'{hours}:{minutes:02d}:{int(seconds):02d}' if hours else f'{minutes}:{seconds:04.1f}'


def _times(frames: Sequence[dict[str, Any]]) -> list[str]:
    """Label a time axis: times from the start of the source, which is named where there are several."""
    starts = _starts(frames)
    out = []
    for i in range(min(5, len(frames))):
        frame = frames[round(i * (len(frames) - 1) / max(1, min(4, len(frames) - 1)))]
        name = f'{frame["source"]} ' if len(starts) > 1 else ''
        out.append(name + _clock(frame['stamp_ns'] - starts[frame['source']]))
    return out


def _timeline(series: Sequence[tuple[str, Sequence[float | None]]], frames: Sequence[dict[str, Any]],
              top: float = 100.0) -> str:
    if not frames:
        return '<p class="soft">No frames.</p>'
    count = min(len(frames), COLUMNS)
    inside = ''
    for color, values in series:
        columns = [(1000 * (i + 0.5) / count, c) for i, c in enumerate(_columns(values, count))]
        # A line of the means, which breaks where nothing was measured, over the span of all values.
        span = line = ''
        for i, (x, c) in enumerate(columns):
            if c:
                low, mean, high = (100 - 100 * v / top for v in c)
                line += f'{"L" if i and columns[i - 1][1] else "M"}{x:.1f} {mean:.1f}h.1'
                span += f'M{x:.1f} {low:.1f}V{high:.1f}'
        inside += (f'<path d="{span}" stroke="{color}" stroke-opacity=".25"/><path d="{line}" fill="none" '
                   f'stroke="{color}" stroke-width="1.5" stroke-linecap="round"/>')
    return _plot(inside, _scale(top), _times(frames))


def _latency_line(frames: Sequence[dict[str, Any]]) -> str:
    values = [f['latency_ms'] for f in frames]
    known = [v for v in values if v is not None]
    if not known:
        return ''
    return '<p class="legend"><span>milliseconds from frame to labels</span></p>' + _timeline(
        [('#7a4fb5', values)], frames, _round(max(known)))


def _round(top: float) -> float:
    """Round up to a number that an axis can end at."""
    step = 10 ** (len(str(int(max(1.0, top)))) - 1)
    return float((int(1.05 * top / step) + 1) * step)


def _bars(values: Sequence[float], left: str, right: str) -> str:
    """Draw percentages as bars side by side."""
    top, width = _round(max(values)), 1000 / len(values)
    inside = ''.join(f'<rect x="{i * width + 1:.1f}" y="{100 - 100 * v / top:.2f}" width="{width - 2:.1f}" '
                     f'height="{100 * v / top:.2f}" fill="#d9822b"/>' for i, v in enumerate(values))
    return _plot(inside, _scale(top), [left, right])


def _shares(frames: Sequence[dict[str, Any]], colors: Sequence[Any]) -> str:
    if not frames:
        return ''
    count = min(len(frames), COLUMNS)
    columns = [frames[i * len(frames) // count:(i + 1) * len(frames) // count] for i in range(count)]
    totals = [[sum(f['shares'][k] for f in part) for k in range(len(colors))] for part in columns]
    # The last class fills the plot; each class before it covers the plot up to its own sum.
    inside, width = '', 1000 / count
    for k in reversed(range(len(colors))):
        tops = [100 - 100 * sum(t[:k + 1]) / (sum(t) or 1) for t in totals]
        stairs = ''.join(f'V{y:.1f}h{width:.3f}' for y in tops)
        inside += f'<path d="M0 100{stairs}V100z" fill="{_rgb(colors[k])}"/>'
    return _plot(inside, _scale(100.0), _times(frames))


def _heat(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    head = '<tr><th></th>' + ''.join(
        f'<th class="top">{escape(n)}</th>' for n in [*names, 'none']) + '</tr>'
    rows = ''
    for name, counts in zip(names, confusion):
        total = sum(counts)
        cells = ''
        for n in counts:
            share = n / total if total else 0.0
            ink = 'white' if share > 0.5 else 'inherit'
            cells += (f'<td style="background:rgba(34,102,187,{share:.2f});color:{ink}">'
                      f'{f"{100 * share:.0f}" if share >= 0.005 else ""}</td>')
        rows += f'<tr><th class="side">{escape(name)}</th>{cells}</tr>'
    return f'<div class="wide"><table class="heat">{head}{rows}</table></div>'


def _calibration(bins: Sequence[dict[str, float]]) -> str:
    inside = ''
    for b in bins:
        width = 1000 * (b['high'] - b['low']) - 3
        inside += (f'<rect x="{1000 * b["low"]:.1f}" y="{100 - 100 * b["accuracy"]:.1f}" width="{width:.1f}" '
                   f'height="{100 * b["accuracy"]:.1f}" fill="#2266bb"/>')
    inside += '<path d="M0 100L1000 0" stroke="#c0392b" stroke-dasharray="4 3"/>'
    return _plot(inside, _scale(100.0), ['confidence 0 %', '100 %'], 'square')


def _latency(stages: dict[str, dict[str, float]]) -> str:
    if not stages:
        return ''
    keys = ('p50', 'p95', 'p99', 'max')
    head = '<tr><th>stage</th>' + ''.join(f'<th>{k}</th>' for k in keys) + '</tr>'
    for name, s in stages.items():
        figures = ''.join(f'<td>{s[k]:.2f}</td>' for k in keys)
        head += f'<tr><td>{escape(name.replace("_", " "))}</td>{figures}</tr>'
    return f'<table>{head}</table>'


def _picture(picture: Picture, what: str, starts: Mapping[str, int],
             captions: Mapping[str, str] = TILES) -> str:
    tiles = ''
    for name in (n for n in captions if n in picture.tiles):
        source = f'data:image/jpeg;base64,{base64.b64encode(picture.tiles[name]).decode()}'
        tiles += (f'<figure><img alt="{name}" src="{source}">'
                  f'<figcaption>{escape(captions[name])}</figcaption></figure>')
    clock = _clock(picture.stamp_ns - starts.get(picture.source, picture.stamp_ns))
    value = f': {what} {number(picture.value, " %")}' if what else ''
    return (f'<p>{escape(picture.source)}, frame {picture.index}, at {clock}{value}</p>'
            f'<div class="tiles">{tiles}</div>')


def _origin(result: dict[str, Any]) -> str:
    model = result['model']
    rows = {'weights': f'{model["weights"]} (SHA-256 {model["sha256"]})'}
    for source in result['sources']:
        about = [f'{k.replace("_", " ")}: {v}' for k, v in source.items() if k != 'name' and v]
        rows[source['name']] = '; '.join(about)
    rows['device'] = result['device']
    rows['processor'] = f'{result["processor"]}, {result["cores"]} cores, load {result["load"]:g}'
    rows['versions'] = ', '.join(f'{k} {v}' for k, v in result['versions'].items())
    rows['options'] = ', '.join(f'{k}: {v}' for k, v in result['options'].items())
    return _definitions(rows)


def _definitions(rows: dict[str, str]) -> str:
    return '<dl>' + ''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in rows.items()) + '</dl>'


def _legend(items: Sequence[tuple[str, str]]) -> str:
    spans = ' '.join(f'<span>{_swatch(color)}{escape(name)}</span>' for name, color in items)
    return f'<p class="legend">{spans}</p>'


def _rgb(color: Sequence[int]) -> str:
    return 'rgb({},{},{})'.format(*color)
