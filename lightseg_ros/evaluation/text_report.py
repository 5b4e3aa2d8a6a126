# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A result as text for a terminal and as a JSON file. Nothing is computed here."""
import json
from pathlib import Path
import re
from typing import Any

from ..files import write_whole

FORMAT = 'lightseg-result-1'
COUNTS = {
    'read': 'frames read', 'segmented': 'segmented', 'scored': 'scored against ground truth',
    'failed': 'failed', 'without_truth': 'without ground truth',
    'truth_without_frame': 'labels without a frame',
    'truth_failed': 'unusable labels', 'duplicate_stamps': 'duplicate stamps',
    'stamps_back': 'stamps before the previous one', 'bags_failed': 'bags not read',
    'bags_damaged': 'signs of damage', 'bags_noted': 'notes',
    'narrow_range': '16-bit frames with few grey levels',
    'turned': 'labelled frames turned by EXIF',
    'not_reached': 'not reached, because the evaluation was stopped',
    'missing': 'played, but no label came back',
}
# Counts that make the exit code 3: something could not be used.
TROUBLE = ('failed', 'truth_failed', 'bags_failed', 'bags_damaged')

# Rows of a comparison: title; key of the result, of its counts or of its total latency; digits.
FIGURES = (('mIoU %', 'miou', 2), ('pixel accuracy %', 'accuracy', 2), ('boundary F1 %', 'boundary_f1', 2),
           ('ECE %', 'ece', 2), ('temporal consistency %', 'consistency', 2),
           ('mean confidence %', 'confidence', 2), ('frame p50 ms', 'p50', 1),
           ('frame p95 ms', 'p95', 1), ('frames segmented', 'segmented', 0), ('frames failed', 'failed', 0))


class ReportError(ValueError):
    """A file that is not a result of "lightseg evaluate" or "lightseg replay"."""


def number(value: float | None, unit: str = '', digits: int = 2) -> str:
    """Format a figure; a dash if it was not measured."""
    return '–' if value is None else f'{value:.{digits}f}{unit}'


def counts_text(counts: dict[str, int]) -> str:
    """List what was counted, such as '699 frames read, 1 bag not read'."""
    # When it is stopped, an evaluation has not read all the frames that it was to read.
    found = counts | {'read': counts.get('read', 0) - counts.get('not_reached', 0)}
    return ', '.join(f'{n} {COUNTS.get(k, k) if n > 1 else one_of(k)}' for k, n in found.items() if n)


def one_of(key: str) -> str:
    """Name one of what is counted under a key of COUNTS: 'bag not read'."""
    return re.sub(r'\b(frame|label|stamp|bag|sign|note)s\b', r'\1', COUNTS.get(key, key))


def text(result: dict[str, Any]) -> str:
    """Format a result for a terminal: one row per class, then the overall figures."""
    lines = []
    width = max(len(n) for n in result['iou'])
    scored = bool(result['counts'].get('scored'))
    if scored:
        lines.append(f'{"class":<{width}}  {"IoU %":>6}  {"boundary F1 %":>13}  {"share %":>7}')
        lines += [f'{n:<{width}}  {number(v):>6}  {number(result["boundary_f1_per_class"][n]):>13}  '
                  f'{result["shares"][n]:>7.2f}' for n, v in result['iou'].items()]
        lines += ['', f'mIoU {number(result["miou"])} %   pixel accuracy {number(result["accuracy"])} %   '
                  f'boundary F1 {number(result["boundary_f1"])} %   ECE {number(result["ece"])} %']
    else:
        lines.append(f'{"class":<{width}}  {"share %":>7}')
        lines += [f'{n:<{width}}  {v:>7.2f}' for n, v in result['shares'].items()]
    if any(v is not None for v in result['group_iou'].values()):
        lines.append('IoU of groups: ' + ', '.join(f'{g} {number(v)} %'
                                                   for g, v in result['group_iou'].items()))
    if result['consistency'] is not None:
        lines.append(f'temporal consistency {number(result["consistency"])} %')
    if result['confidence'] is not None:
        lines.append(f'mean confidence {number(result["confidence"])} %')
    if (t := result['latency_ms'].get('total')) and 'live' not in result:
        lines.append(f'message to labels: p50 {t["p50"]:.1f} ms, p95 {t["p95"]:.1f}, max {t["max"]:.1f} on '
                     f'{result["device"]}')
        if c := result['latency_ms'].get('with confidence'):
            lines.append(f'with confidence: p50 {c["p50"]:.1f} ms, p95 {c["p95"]:.1f}, max {c["max"]:.1f}')
    if live := result.get('live'):
        ms = live['end_to_end']
        lines.append(f'frame to label: p50 {ms["p50"]:.1f} ms, p95 {ms["p95"]:.1f}, max {ms["max"]:.1f}; '
                     f'{live["late"]} later than {live["deadline_ms"]:g} ms')
        lines.append(', '.join(f'{live[k]} {k.replace("_", " ")}' for k in (
            'played', 'returned', 'dropped', 'failed', 'not_received', 'not_returned')))
        if live['not_received']:
            lines.append('what was not received was lost on its way, or waited for a busy node and was '
                         'replaced by a newer frame: docs/troubleshooting.md')
    lines.append(counts_text(result['counts']))
    lines += [f'  {s["count"]} x {s["what"]}: {s["first"]}' for s in result['skipped']]
    if corrupted := result.get('corrupted'):
        lines += ['', *corrupted_table(result['miou'], corrupted), '']
    lines += [f'{"met" if r["met"] else "MISSED"}: {r["text"]}' for r in result.get('required', [])]
    return '\n'.join(lines)


def corrupted_table(clean: float, corrupted: dict[str, Any]) -> list[str]:
    """Return the lines of a table in Markdown: mIoU of the images as they are, and of worse ones."""
    found = {name: values for name, values in corrupted.items() if name != 'mean'}
    count = sum(map(len, found.values()))
    return ['| mIoU %, strength | 1 | 2 | 3 |', '|---|---|---|---|', f'| as they are | {clean:.1f} | | |',
            *(f'| {name} | {" | ".join(f"{v:.1f}" for v in values)} |' for name, values in found.items()),
            f'| mean of all {count} | {corrupted["mean"]:.1f} | | |']


def compare_text(results: dict[str, dict[str, Any]], paired: dict[str, dict[str, Any]]) -> str:
    """Format results side by side; `paired`: the `scores.paired_difference` of each to the first."""
    names = list(results)
    classes = list(dict.fromkeys(n for r in results.values() for n in r['iou']))
    rows = [('', *names)]
    rows += [(title, *(number(figure(r, key), digits=digits) for r in results.values()))
             for title, key, digits in FIGURES if any(figure(r, key) is not None for r in results.values())]
    rows += [(f'IoU {n} %', *(number(r['iou'].get(n)) for r in results.values())) for n in classes
             if any(r['iou'].get(n) is not None for r in results.values())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ['  '.join(f'{cell:<{w}}' if i == 0 else f'{cell:>{w}}' for i, (cell, w) in
                       enumerate(zip(row, widths))) for row in rows]
    return '\n'.join([*lines, '', *(paired_text(n, names[0], p) for n, p in paired.items())])


def exit_code(result: dict[str, Any]) -> int:
    """Return 130: stopped; 4: a requirement is missed; 3: something was lost or could not be used; 0."""
    if result['counts'].get('not_reached'):
        return 130
    if not all(r['met'] for r in result.get('required', [])):
        return 4
    live = result.get('live') or {}
    # Not `dropped`: that a newer frame wins is what the node is for.
    lost = any(live.get(key) for key in ('failed', 'not_received', 'not_returned'))
    return 3 if lost or any(result['counts'].get(key) for key in TROUBLE) else 0


def figure(result: dict[str, Any], key: str) -> float | None:
    """Return a figure of a result by its key in FIGURES; None if it was not measured."""
    if key in ('p50', 'p95'):
        return (result['latency_ms'].get('total') or {}).get(key)
    return result[key] if key in result else result['counts'].get(key)


def paired_text(name: str, first: str, p: dict[str, Any]) -> str:
    """Format the paired difference of two results."""
    if not p['frames']:
        return f'{name} and {first} have no scored frame in common'
    return (f'{name} minus {first}: {p["mean"]:+.2f} points of mIoU per frame, 95 % interval {p["low"]:+.2f} '
            f'to {p["high"]:+.2f}, over {p["frames"]} frames ({p["better"]} better, {p["worse"]} worse): '
            + ('no clear difference' if p['low'] < 0 < p['high'] else 'a clear difference')
            + '. This is the mean over frames; the table pools the pixels of all frames')


def disagreement_text(name: str, first: str, d: dict[str, Any]) -> str:
    """Format where two results disagree: `disagreement.disagreement`."""
    width = max(len(n) for n in d['per_class'])
    lines = ['', f'{first} and {name} give {number(d["share"])} % of the pixels of {d["frames"]} frames '
             'different labels' + (f'; {d["sizes_differ"]} frames of different sizes are left out'
                                   if d['sizes_differ'] else ''),
             f'{"class":<{width}}  {"agree %":>8}  {first}, share %  {name}, share %']
    lines += [f'{n:<{width}}  {number(c["agree"]):>8}  {number(c["first"]):>{len(first) + 9}}  '
              f'{number(c["second"]):>{len(name) + 9}}' for n, c in d['per_class'].items()]
    lines += [f'{s["first"]} in {first} is {s["second"]} in {name}: {number(s["share"])} % of all pixels'
              for s in d['swaps']]
    return '\n'.join(lines)


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write a result, whole or not at all."""
    write_whole(path, json.dumps(result, indent=1, allow_nan=False) + '\n')


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a result; `ReportError` if the file is something else."""
    try:
        result = json.loads(Path(path).read_text())
    except OSError as e:
        raise ReportError(f'{path}: {e.strerror}') from e
    except ValueError as e:
        raise ReportError(f'{path} is not JSON: {e}') from e
    if not isinstance(result, dict) or result.get('format') != FORMAT:
        raise ReportError(f'{path} is not a result of "lightseg evaluate --json" or "replay --json"')
    return result
