# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Segments frames in order, and adds labels, times and stability to the scores."""
from collections.abc import Callable, Iterable
from dataclasses import replace
from time import perf_counter
from typing import Any

from ..inference.segmenter import Segmenter, Smoother
from .parts import Recorder
from .recordings import RecordedFrame, Skip
from .scores import Consistency, Scores


class Scorer:
    """
    Segments frames in order and adds them to `scores`.

    `batch`: how many go through the network at once. `recorder` gets every result. `smoothing`: share of the
    earlier frames in the labels; only with a batch of 1.
    """

    def __init__(self, segment: Segmenter, scores: Scores, batch: int = 1, recorder: Recorder | None = None,
                 smoothing: float = 0.0):
        self.segment, self.scores, self.batch, self.recorder = segment, scores, batch, recorder
        self._smoothers = [Smoother(smoothing)] if smoothing else []
        self._consistency = Consistency()
        self._waiting: list[RecordedFrame] = []
        self._sizes: set[tuple[int, ...]] = set()

    def add(self, item: RecordedFrame | Skip) -> None:
        """Take the next frame, or what came in place of one."""
        if isinstance(item, RecordedFrame):
            self._waiting.append(item)
            if len(self._waiting) == self.batch:
                self.flush()
        elif item.what == 'truth_failed':
            self.scores.skip(item.what, item.reason)
        else:
            self.flush()
            self._consistency.reset()
            for smoother in self._smoothers:
                smoother.forget()
            if item.what == 'failed':
                self.scores.skip(item.what, item.reason)

    @property
    def idle(self) -> bool:
        """Whether no frame waits for its batch to be full."""
        return not self._waiting

    def flush(self) -> None:
        """Segment the frames that wait for their batch to be full."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        overlay = self.recorder is not None
        frames = [f.rgb for f in waiting]
        # Compiling and allocating for a new size does not count as a frame's latency.
        if new := {f.shape for f in frames} - self._sizes:
            self.segment(frames, overlay=overlay, confidence=True)
            self._sizes.update(new)
        for smoother in self._smoothers:
            smoother.next(waiting[0].stamp_ns)
        began = perf_counter()
        started = self.segment.start(frames, overlay=overlay, confidence=True, smoothers=self._smoothers)
        started.labels()
        labels_ms = 1e3 * (perf_counter() - began) / len(waiting)
        predictions = started.finish()
        all_ms = 1e3 * (perf_counter() - began) / len(waiting)
        for frame, p in zip(waiting, predictions):
            stability = self._consistency.update(frame.rgb, p.labels, frame.stamp_ns)
            if not frame.counted:
                continue
            if frame.note:
                self.scores.skip(frame.note.what, frame.note.reason)
            p = replace(p, stage_ms={'decode': frame.decode_ms}
                        | {k: v / len(waiting) for k, v in p.stage_ms.items()}
                        | {'total': frame.decode_ms + labels_ms,
                           'with confidence': frame.decode_ms + all_ms})
            self.scores.add(frame.source, frame.index, frame.stamp_ns, frame.rgb, p.labels, frame.truth,
                            p.confidence, p.stage_ms, stability, frame.sample)
            if self.recorder:
                self.recorder.write(frame, p)


def score(frames: Iterable[RecordedFrame | Skip], segment: Segmenter, scores: Scores, *, batch: int = 1,
          recorder: Recorder | None = None, progress: Callable[[int], Any] = lambda n: None) -> Scores:
    """Segment frames in order and add them to the scores, which are returned; see `Scorer`."""
    scorer = Scorer(segment, scores, batch, recorder)
    for frame in frames:
        scorer.add(frame)
        progress(frame.counted)
    scorer.flush()
    return scores
