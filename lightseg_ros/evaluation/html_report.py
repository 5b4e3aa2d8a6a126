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
from .text_report import COUNTS, figure, FIGURES, number, paired_text

COLORS = ('#2266bb', '#d9822b', '#2e9e5b', '#c0392b', '#7a4fb5', '#5d6b7c')
CSS = """
:root { --ink: #1c2430; --soft: #5d6b7c; --line: #d9dfe6; --card: #f5f7f9; --blue: #26b; --red: #c03; }
* { box-sizing: border-box; }
body { font: 16px/1.45 system-ui, sans-serif; color: var(--ink); margin: 0 auto; padding: 12px;
       max-width: 960px; }
h1, p, dd, .trouble { overflow-wrap: anywhere; }
h1 { font-size: 1.4em; margin: .3em 0 0; } h2 { font-size: 1.15em; margin: 1.6em 0 .4em; }
p { margin: .4em 0; } small, .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 8px; }
.cards div { background: var(--card); border-radius: 8px; padding: 8px 10px; }
.cards b { display: block; font-size: 1.35em; }
.trouble { border-left: 4px solid var(--red); background: #fcf1ef; padding: 6px 10px; margin: 10px 0; }
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
td.bars { width: 25%; text-align: left; }
svg { width: 100%; max-width: 560px; height: auto; display: block; }
svg text { font-size: 10px; fill: var(--soft); }
.legend span { white-space: nowrap; margin-right: .9em; font-size: .85em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 4px; }
.tiles img { width: 100%; display: block; border-radius: 3px; } .tiles figure { margin: 0; }
figcaption { font-size: .75em; color: var(--soft); } dt { font-weight: 600; } dd { margin: 0 0 .3em; }
"""
WIDTH, HEIGHT = 360, 170  # of a plot, in its own units
LEFT, RIGHT, TOP, BOTTOM = 30, 6, 8, 18


def write_html(result: dict[str, Any], pictures: Mapping[str, Sequence[Picture]], path: Path) -> Path:
    """Write a result as one HTML file; returns its path."""
    scored = bool(result['counts'].get('scored'))
    colors = {c['name']: c['color'] for c in result['labels']['classes']}
    frames = result['frames']
    title = f'{result["model"]["network"]} on {", ".join(s["name"] for s in result["sources"])}'
    by = 'mIoU' if scored else 'mean confidence'
    body = [
        f'<h1>{escape(title)}</h1><p class="soft">{escape(result["date"])} · {escape(result["device"])} · '
        f'{escape(result["model"]["resolution"])} · {escape(result["model"]["precision"])} · '
        f'{escape(result["model"]["backend"])}</p>',
        _cards(result), _trouble(result), _live(result), '<h2>Classes</h2>', _classes(result, colors)]
    confidence = [None if f['confidence'] is None else 100 * f['confidence'] for f in frames]
    measured: list[tuple[str, str, list[float | None]]] = [
        ('mIoU %', '#2266bb', [f['miou'] for f in frames]),
        ('consistency %', '#2e9e5b', [f['consistency'] for f in frames]),
        ('confidence %', '#d9822b', confidence)]
    measured = [m for m in measured if any(v is not None for v in m[2])]
    body += ['<h2>Over time</h2>', _legend([(name, color) for name, color, _ in measured]),
             _timeline(measured, frames), _latency_line(frames)]
    body += ['<h2>Class shares over time</h2>', _legend([(n, _rgb(c)) for n, c in colors.items()]),
             _shares(frames, list(colors.values()))]
    if scored:
        body += ['<h2>Confusion</h2><p class="soft">Row: class of the ground truth. Column: predicted class. '
                 'Percent of the row.</p>', _heat(result['confusion'], list(colors)),
                 '<h2>Calibration</h2><p class="soft">Share of right predictions at each confidence. On the '
                 f'dashed line, confidence equals accuracy. ECE {number(result["ece"])} %.</p>',
                 _calibration(result['calibration'])]
    body += ['<h2>Milliseconds per frame</h2>', _latency(result['latency_ms'])]
    for name, shown in pictures.items():
        if shown:
            body += [f'<h2>{name} frames by {by}</h2>', *(_picture(p, by) for p in shown)]
    body += ['<h2>How this was made</h2>', _origin(result)]
    return _write_page(title, body, path)


def write_comparison(results: dict[str, dict[str, Any]], paired: dict[str, dict[str, Any]],
                     path: Path) -> Path:
    """Write several results side by side as one HTML file; returns its path."""
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
    for name, r in results.items():
        body += [f'<h2>{escape(name)}</h2>', _origin(r)]
    return _write_page('Comparison', body, path)


def _differences(values: Sequence[float]) -> str:
    """Draw every frame's difference, sorted, as bars up and down from a middle line."""
    reach = max(1.0, *(abs(v) for v in values))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    scale, width = (HEIGHT - TOP - BOTTOM) / 2 / reach, (WIDTH - LEFT - RIGHT) / len(values)
    stairs = ''.join(f'V{middle - scale * v:.1f}h{width:.3f}' for v in sorted(values))
    return _svg(
        f'<path d="M{LEFT} {middle}{stairs}V{middle}z" fill="#2266bb"/>'
        f'<path d="M{LEFT} {middle}H{WIDTH - RIGHT}" stroke="#5d6b7c"/>'
        f'<text x="{LEFT - 4}" y="{TOP + 6}" text-anchor="end">{reach:+.0f}</text>'
        f'<text x="{LEFT - 4}" y="{HEIGHT - BOTTOM}" text-anchor="end">{-reach:+.0f}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">all frames, sorted by their difference in mIoU</text>')


def _write_page(title: str, body: Sequence[str], path: Path) -> Path:
    write_whole(
        path, f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{CSS}</style></head><body>' + '\n'.join(body) + '</body></html>')
    return path


def _cards(result: dict[str, Any]) -> str:
    total = result['latency_ms'].get('total') or {}
    cards = [('mIoU', number(result['miou'], ' %')), ('pixel accuracy', number(result['accuracy'], ' %')),
             ('boundary F1', number(result['boundary_f1'], ' %')), ('ECE', number(result['ece'], ' %')),
             ('temporal consistency', number(result['consistency'], ' %')),
             ('per frame, p50', number(total.get('p50'), ' ms', 1)),
             ('per frame, p95', number(total.get('p95'), ' ms', 1)),
             ('frames scored' if result['counts'].get('scored') else 'frames',
              str(result['counts'].get('scored') or result['counts'].get('segmented', 0)))]
    return '<div class="cards">' + ''.join(
        f'<div><b>{value}</b>{escape(name)}</div>' for name, value in cards if value != '–') + '</div>'


def _trouble(result: dict[str, Any]) -> str:
    counts = ', '.join(f'{n} {COUNTS.get(k, k)}' for k, n in result['counts'].items() if n)
    items = ''.join(f'<div class="trouble">{s["count"]} × {escape(COUNTS.get(s["what"], s["what"]))}, first: '
                    f'{escape(s["first"])}</div>' for s in result['skipped'])
    return f'<p>{escape(counts)}.</p>{items}'


def _live(result: dict[str, Any]) -> str:
    live = result.get('live')
    return '' if not live else '<h2>Live</h2>' + _definitions(
        {k.replace('_', ' '): number(v, digits=1) if isinstance(v, float) else str(v) for k, v in live.items()
         if not isinstance(v, dict)}) + _latency({k: v for k, v in live.items() if isinstance(v, dict)})


def _classes(result: dict[str, Any], colors: dict[str, Any]) -> str:
    scored = bool(result['counts'].get('scored'))
    more = '<th>IoU %</th><th class="bars"></th><th>boundary F1 %</th>' if scored else ''
    rows = f'<tr><th>class</th>{more}<th>share %</th></tr>'
    for name, color in colors.items():
        iou, f1 = result['iou'][name], result['boundary_f1_per_class'][name]
        if scored:
            more = f'<td>{number(iou)}</td><td class="bars">{_bar(iou)}</td><td>{number(f1)}</td>'
        rows += (f'<tr><td>{_swatch(_rgb(color))}{escape(name)}</td>{more}'
                 f'<td>{number(result["shares"][name])}</td></tr>')
    return f'<table>{rows}</table>'


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


def _x(i: float, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * i / max(1, count - 1)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _axes(top: float, labels: Sequence[tuple[float, str]], unit: str = '') -> str:
    lines = ''.join(
        f'<path d="M{LEFT} {_y(v, top):.1f}H{WIDTH - RIGHT}" stroke="#d9dfe6"/>'
        f'<text x="{LEFT - 4}" y="{_y(v, top) + 3:.1f}" text-anchor="end">{v:g}{unit}</text>'
        for v in (0, top / 4, top / 2, 3 * top / 4, top))
    return lines + ''.join(
        f'<text x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="{"start" if x < 60 else "end"}">{escape(t)}</text>'
        for x, t in labels)


def _svg(inside: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{inside}</svg>'


def _time_labels(frames: Sequence[dict[str, Any]]) -> list[tuple[float, str]]:
    first, last = frames[0], frames[-1]
    return [(LEFT, f'{first["source"]} {first["stamp_ns"] / 1e9:.1f} s'),
            (WIDTH - RIGHT, f'{last["source"]} {last["stamp_ns"] / 1e9:.1f} s')]


def _timeline(series: Sequence[tuple[str, str, Sequence[float | None]]], frames: Sequence[dict[str, Any]],
              top: float = 100.0) -> str:
    if not frames:
        return '<p class="soft">No frames.</p>'
    count = min(len(frames), WIDTH - LEFT - RIGHT)
    inside = _axes(top, _time_labels(frames))
    for _, color, values in series:
        columns = [(_x(i, count), c) for i, c in enumerate(_columns(values, count))]
        # A line of the means, which breaks where nothing was measured, over the span of all values.
        span = line = ''
        for i, (x, c) in enumerate(columns):
            if c:
                start = 'L' if i and columns[i - 1][1] else 'M'
                line += f'{start}{x:.1f} {_y(c[1], top):.1f}h.1'
                span += f'M{x:.1f} {_y(c[0], top):.1f}V{_y(c[2], top):.1f}'
        inside += (f'<path d="{span}" stroke="{color}" stroke-opacity=".25"/><path d="{line}" fill="none" '
                   f'stroke="{color}" stroke-width="1.3" stroke-linecap="round"/>')
    return _svg(inside)


def _latency_line(frames: Sequence[dict[str, Any]]) -> str:
    values = [f['latency_ms'] for f in frames]
    known = [v for v in values if v is not None]
    if not known:
        return ''
    top = max(1.0, 1.05 * max(known))
    step = 10 ** (len(str(int(top))) - 1)
    return '<p class="legend"><span>milliseconds per frame</span></p>' + _timeline(
        [('ms', '#7a4fb5', values)], frames, float((int(top / step) + 1) * step))


def _shares(frames: Sequence[dict[str, Any]], colors: Sequence[Any]) -> str:
    if not frames:
        return ''
    count = min(len(frames), WIDTH - LEFT - RIGHT)
    columns = [frames[i * len(frames) // count:(i + 1) * len(frames) // count] for i in range(count)]
    totals = [[sum(f['shares'][k] for f in part) for k in range(len(colors))] for part in columns]
    # The last class fills the plot; each class before it covers the plot up to its own sum.
    inside, width = '', (WIDTH - LEFT - RIGHT) / count
    for k in reversed(range(len(colors))):
        tops = [_y(sum(t[:k + 1]) / (sum(t) or 1), 1.0) for t in totals]
        stairs = ''.join(f'V{y:.1f}h{width:.3f}' for y in tops)
        inside += f'<path d="M{LEFT} {HEIGHT - BOTTOM}{stairs}V{HEIGHT - BOTTOM}z" fill="{_rgb(colors[k])}"/>'
    return _svg(_axes(100.0, _time_labels(frames)) + inside)


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
    inside = _axes(100.0, [(LEFT, 'confidence 0 %'), (WIDTH - RIGHT, '100 %')])
    span = WIDTH - LEFT - RIGHT
    for b in bins:
        y, width = _y(100 * b['accuracy'], 100.0), span * (b['high'] - b['low']) - 1
        inside += (f'<rect x="{LEFT + span * b["low"]:.1f}" y="{y:.1f}" width="{width:.1f}" '
                   f'height="{HEIGHT - BOTTOM - y:.1f}" fill="#2266bb"/>')
    inside += (f'<line x1="{LEFT}" y1="{_y(0, 100.0)}" x2="{WIDTH - RIGHT}" y2="{_y(100, 100.0)}" '
               'stroke="#c0392b" stroke-dasharray="4 3"/>')
    return _svg(inside)


def _latency(stages: dict[str, dict[str, float]]) -> str:
    if not stages:
        return ''
    keys = ('p50', 'p95', 'p99', 'max')
    head = '<tr><th>stage</th>' + ''.join(f'<th>{k}</th>' for k in keys) + '</tr>'
    for name, s in stages.items():
        figures = ''.join(f'<td>{s[k]:.2f}</td>' for k in keys)
        head += f'<tr><td>{escape(name.replace("_", " "))}</td>{figures}</tr>'
    return f'<table>{head}</table>'


def _picture(picture: Picture, by: str) -> str:
    tiles = ''
    for name, data in picture.tiles.items():
        kind = 'png' if data[:4] == b'\x89PNG' else 'jpeg'
        source = f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
        tiles += f'<figure><img alt="{name}" src="{source}"><figcaption>{name}</figcaption></figure>'
    value = number(picture.value, ' %') if by == 'mIoU' else number(100 * picture.value, ' %')
    return (f'<p>{escape(picture.source)}, frame {picture.index}: {by} {value}</p>'
            f'<div class="tiles">{tiles}</div>')


def _origin(result: dict[str, Any]) -> str:
    model = result['model']
    rows = {'weights': f'{model["weights"]} (SHA-256 {model["sha256"]})'}
    for source in result['sources']:
        about = [f'{k.replace("_", " ")}: {v}' for k, v in source.items() if k != 'name' and v]
        rows[source['name']] = '; '.join(about)
    rows['device'] = result['device']
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
