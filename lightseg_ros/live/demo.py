# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The demo: runs a camera and a segmentation node; writes a video, a picture and figures of the result."""
from collections.abc import Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
from time import monotonic
from typing import Any

import cv2
import numpy as np
import rclpy
from tqdm import tqdm

from .. import files, weights
from ..labels import LabelSet
from ..metrics import ConfusionMatrix, LatencyStats
from .probe import isolate, NodeProcess, nodes, Probe, Seen

VIDEO_FPS = 6.0
SHEET_ROWS = 6
COUNTS = ('received', 'processed', 'dropped', 'failed')  # of the node; the first is the sum of the others


class Album:
    """Keeps a few complete frames per second as JPEG, so that memory stays small in a long run."""

    def __init__(self, width: int = 480):
        self._width = width
        self._next_ns = 0
        self.pages: list[dict[str, np.ndarray]] = []

    def offer(self, seen: Seen, palette: np.ndarray) -> None:
        if seen.stamp_ns < self._next_ns:
            return
        assert seen.frame is not None and seen.overlay is not None
        self._next_ns = seen.stamp_ns + int(1e9 / VIDEO_FPS)
        page: dict[str, np.ndarray] = {'frame': seen.frame, 'overlay': seen.overlay}
        if seen.truth is not None:
            page['truth'] = palette[seen.truth]
        self.pages.append({k: _jpeg(self._fit(v)) for k, v in page.items()})

    def page(self, index: int) -> dict[str, np.ndarray]:
        """Return the images of a page, (h, w, 3) uint8 BGR, the order that OpenCV writes."""
        return {k: np.asarray(cv2.imdecode(v, cv2.IMREAD_COLOR)) for k, v in self.pages[index].items()}

    def _fit(self, rgb: np.ndarray) -> np.ndarray:
        height = round(rgb.shape[0] * self._width / rgb.shape[1])
        return cv2.resize(rgb, (self._width, height), interpolation=cv2.INTER_AREA)


def demo(source: str, model: str, out: Path, *, image_topic: str = '', resolution: str = '',
         device: str = 'auto', rate: float = 15.0, seconds: float = 30.0) -> int:
    """
    Run the demo and write a video, a contact sheet, `summary.json` and the logs of the nodes to `out`.

    Returns 0, or 1 if no label came back or all labels are of one class.
    """
    path = weights.resolve(model)
    card = weights.read_card(path)
    isolate()
    rclpy.init()
    files.make_folder(out)
    album, latency = Album(), LatencyStats()
    # The ground truth of the synthetic street and of CamVid's folders has CamVid's ids.
    matrix = ConfusionMatrix(len(card.labels)) if card.labels.name == 'camvid' else None
    palette = card.labels.palette()
    classes: set[int] = set()
    scored = 0

    def on_complete(seen: Seen) -> None:
        nonlocal scored
        assert seen.label is not None
        latency.add(seen.latency_ms)
        classes.update(np.unique(seen.label[::4, ::4]).tolist())
        if seen.truth is not None and matrix is not None:
            matrix.update(seen.truth, seen.label)
            scored += 1
        album.offer(seen, palette)

    segmentation = NodeProcess('segmentation', out / 'segmentation.log', {
        'weights': str(path), 'resolution': resolution, 'device': device})
    camera = NodeProcess('camera', out / 'camera.log', {
        'source': source, 'topic': image_topic, 'rate': rate, 'loop': True})
    with nodes(camera, segmentation) as processes:
        probe = Probe(on_complete, ('frame', 'label', 'overlay'), optional=('truth',))
        print('starting the nodes', flush=True)
        probe.wait_connected(120.0, *processes)
        probe.wait(lambda: latency.count > 0, 60.0, *processes)
        began, first = monotonic(), latency.count
        with tqdm(total=round(seconds), desc='watching',
                  bar_format='{l_bar}{bar}| {n}/{total} s{postfix}') as bar:
            while (elapsed := monotonic() - began) < seconds:
                probe.wait(lambda: False, min(1.0, seconds - elapsed), *processes)
                bar.n = round(monotonic() - began)
                bar.set_postfix(fps=f'{(latency.count - first) / (monotonic() - began):.1f}',
                                latency=f'{latency.summary()["p50"]:.0f} ms')
        elapsed = monotonic() - began
        fps = round((latency.count - first) / elapsed, 2)
        values, node_summary = probe.diagnostics.values, probe.diagnostics.summary
        # Without a camera the node ends what it has begun: then every frame is counted as what became of it.
        camera.stop()
        probe.wait(lambda: _balanced(probe.diagnostics.values, latency.count), 5.0, segmentation)
        values = values | {k: probe.diagnostics.values.get(k, '?') for k in COUNTS}
    codes = {process.name: process.process.returncode for process in processes}
    probe.destroy_node()
    rclpy.try_shutdown()

    result: dict[str, Any] = {
        'model': card.network, 'weights': path.name, 'source': Path(source).name,
        'seconds': round(elapsed, 1), 'frames_complete': latency.count,
        'fps': fps,
        'latency_ms': {k: round(v, 1) for k, v in latency.summary().items()},
        'classes_seen': [card.labels.names[i] for i in sorted(classes) if i < len(card.labels)],
        'exit_codes': codes, 'node_summary': node_summary, 'node': values}
    if matrix is not None and scored:
        result['ground_truth'] = {
            'frames': scored, 'miou': round(matrix.miou(), 2), 'pixel_accuracy': round(matrix.accuracy(), 2),
            'iou': {n: None if np.isnan(v) else round(v, 2)
                    for n, v in zip(card.labels.names, matrix.iou().tolist())}}
    files.write_whole(out / 'summary.json', json.dumps(result, indent=1) + '\n')
    if album.pages:
        _write_video(out / 'demo.webm', album)
        _write_sheet(out / 'contact_sheet.png', album, card.labels)
    return _report(result, out, len(classes))


def _balanced(values: dict[str, str], complete: int) -> bool:
    """Whether a node's counts add up, and hold every frame whose results arrived here."""
    try:
        received, processed, dropped, failed = (int(values[k]) for k in COUNTS)
    except KeyError:
        return False
    return received == processed + dropped + failed and processed >= complete


def _report(result: dict[str, Any], out: Path, num_classes: int) -> int:
    ms = result['latency_ms']
    print(f'{result["model"]} on {result["node"].get("device", "?")}: {result["fps"]} fps, latency (camera '
          f'stamp to overlay here) p50 {ms["p50"]} ms, p95 {ms["p95"]} ms, max {ms["max"]} ms')
    print('the node: ' + ', '.join(f'{k} {result["node"].get(k, "?")}' for k in COUNTS)
          + f'; {result["frames_complete"]} overlays came back')
    if 'ground_truth' in result:
        truth = result['ground_truth']
        print(f'mIoU {truth["miou"]} %, pixel accuracy {truth["pixel_accuracy"]} % over {truth["frames"]} '
              'frames with ground truth')
    print(f'classes seen: {", ".join(result["classes_seen"])}')
    print(f'look at {out / "contact_sheet.png"}, {out / "demo.webm"}, {out / "summary.json"}')
    if num_classes < 2:
        print(f'ERROR: {"no label image came back" if not num_classes else "all labels are of one class"}; '
              f'see {out / "segmentation.log"} and {out / "camera.log"}')
        return 1
    return 0


def _write_video(path: Path, album: Album) -> None:
    """Write frame and overlay side by side: VP8 in WebM, which browsers play and OpenCV can write."""
    first = album.page(0)
    height, width = first['frame'].shape[:2]
    with _silent_stderr():  # OpenCV complains of the tag, and writes the file as it should
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'VP80'), VIDEO_FPS, (2 * width, height))
    for i in range(len(album.pages)):
        page = album.page(i)
        if page['frame'].shape == first['frame'].shape:
            writer.write(np.hstack([page['frame'], page['overlay']]))
    writer.release()


def _write_sheet(path: Path, album: Album, labels: LabelSet) -> None:
    """Write rows of frame, overlay and ground truth (if any), spread over the run, and a legend below."""
    chosen = np.unique(np.linspace(0, len(album.pages) - 1, SHEET_ROWS).round().astype(int))
    pages = [album.page(i) for i in chosen]
    columns = [k for k in ('frame', 'overlay', 'truth') if all(k in p for p in pages)]
    pages = [p for p in pages if p['frame'].shape == pages[0]['frame'].shape]
    sheet = np.vstack([np.hstack([p[k] for k in columns]) for p in pages])
    for i, name in enumerate(columns):
        at = 10 + i * pages[0]['frame'].shape[1], 26
        for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
            cv2.putText(sheet, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, thickness, cv2.LINE_AA)
    legend = np.full((30 * -(-len(labels) // 6) + 10, sheet.shape[1], 3), 255, np.uint8)
    step = sheet.shape[1] // 6
    for i, (name, (r, g, b)) in enumerate(zip(labels.names, labels.colors)):
        x, y = 10 + step * (i % 6), 8 + 30 * (i // 6)
        cv2.rectangle(legend, (x, y), (x + 24, y + 20), (b, g, r), -1)
        cv2.putText(legend, name, (x + 32, y + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.imwrite(str(path), np.vstack([sheet, legend]))


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what C++ code writes to stderr."""
    kept = os.dup(2)
    with open(os.devnull, 'w') as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _jpeg(rgb: np.ndarray) -> np.ndarray:
    return cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
