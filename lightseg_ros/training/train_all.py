# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Trains several networks as parallel processes within a time limit, and scores the finished ones."""
from collections.abc import Sequence
from dataclasses import dataclass, field
import logging
import os
from pathlib import Path
import tempfile
import time

from .. import datasets, files, networks, weights
from . import archive, processes
from .devices import named_device
from .processes import finished_weights, Job

log = logging.getLogger(__name__)

RESERVE_S = 20.0  # at the end: for the checkpoints of the runs, and for the archive


class TrainAllError(ValueError):
    """Networks that do not exist; the text lists the known ones."""


@dataclass(frozen=True)
class Plan:
    """
    Which networks are trained and how; the fields are the arguments of `lightseg train-all`.

    `data_root` may be an archive that `datasets.pack` wrote. `test`: split to score finished weights on.
    `parallel`: processes at a time, 0: all. `source`: folder of an earlier archive to continue from. `leave`:
    folder that gets an archive of all runs, in parts of `part_bytes`. `arguments`: more arguments for
    `lightseg train`.
    """

    out: Path
    networks: Sequence[str] = ()
    data: str = 'camvid'
    data_root: str | None = None
    split: str = 'trainval'
    validate: str = ''
    test: str = ''
    recipe: str = 'best'
    device: str = 'auto'
    mode: str = 'auto'
    parallel: int = 0
    time_limit_s: float = float('inf')
    source: Path | None = None
    leave: Path | None = None
    part_bytes: int = 15 * 2 ** 20
    arguments: Sequence[str] = ()


@dataclass
class Summary:
    """What became of the networks. `table`: scores as Markdown; `parts`: files of the archive."""

    finished: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    table: str = ''
    parts: list[Path] = field(default_factory=list)


def train_all(plan: Plan) -> Summary:
    """
    Train all networks of a plan side by side; a later call with the same plan continues unfinished runs.

    Whatever fails, the archive is written. `TrainAllError` for an unknown network, `TrainError` for a device
    that is not there.
    """
    deadline = time.monotonic() + plan.time_limit_s
    names = list(plan.networks or networks.PAPER_NETWORKS)
    if unknown := [n for n in names if n not in networks.NETWORKS]:
        raise TrainAllError(f'unknown networks {", ".join(unknown)}; known: {", ".join(networks.NETWORKS)}')
    named_device(plan.device)  # else each network would fail twice, in a process of its own
    files.make_folder(plan.out)
    if plan.source:
        archive.read_parts(plan.source, plan.out)
    summary = Summary()
    with tempfile.TemporaryDirectory() as scratch:
        root = plan.data_root
        if root and Path(root).is_file():
            with open(root, 'rb') as file:
                archive.unpack(file, Path(scratch))
            root = scratch
        jobs = [_job(plan, name, root) for name in names]
        at_once = plan.parallel or len([j for j in jobs if not j.finished()]) or 1
        try:
            summary.failed = processes.run_side_by_side(
                jobs, at_once=at_once, threads=max(1, (os.cpu_count() or 1) // at_once), deadline=deadline,
                reserve_s=min(RESERVE_S, plan.time_limit_s / 4), report=_Reporter(jobs))
            if plan.test:
                summary.table, unscored = score(plan, names, root)
                summary.failed += unscored
        finally:
            if plan.leave:
                summary.parts = archive.write_parts(plan.out, plan.leave, plan.part_bytes)
    summary.finished = [j.name for j in jobs if j.finished()]
    summary.unfinished = [j.name for j in jobs if not j.finished()]
    return summary


def _job(plan: Plan, network: str, root: str | None) -> Job:
    arguments = ['--model', network, '--data', plan.data, '--split', plan.split, '--recipe', plan.recipe,
                 '--device', plan.device, '--mode', plan.mode]
    if plan.validate:
        arguments += ['--validate', plan.validate]
    if root:
        arguments += ['--data-root', root]
    return Job(network, plan.out / network, (*arguments, *plan.arguments),
               None if plan.mode == 'eager' else ('--mode', 'eager'))


class _Reporter:
    """Logs the progress of all jobs every ten seconds, if there is any."""

    def __init__(self, jobs: list[Job]):
        self.jobs, self.text, self.last = jobs, '', time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self.last < 10:
            return
        text, self.last = processes.describe(self.jobs), time.monotonic()
        if text != self.text:
            log.info('%s', text)
        self.text = text


def score(plan: Plan, names: Sequence[str], root: str | None) -> tuple[str, list[str]]:
    """
    Score finished weights on the split `plan.test`, once each, and write the result into their cards.

    Returns a Markdown table of all scores, and the networks that could not be scored.
    """
    from ..evaluation import evaluate  # needs rosbags, which training alone does not
    from ..evaluation.settings import ModelSpec
    rows: list[str] = []
    failed: list[str] = []
    for network in names:
        path = finished_weights(plan.out / network)
        if not path:
            continue
        if plan.test not in weights.read_card(path).metrics:
            try:
                dataset = datasets.load(plan.data, plan.test, root)
                model = ModelSpec(str(path), plan.device)
                result = evaluate.evaluate_dataset(dataset, model.load()).scores.result()
                log.info('%s', evaluate.record(model, dataset, result))
            except ValueError as e:
                log.error('%s could not be scored: %s', network, e)
                failed.append(network)
                continue
        card = weights.read_card(path)
        found = card.metrics[plan.test]
        iou = ' | '.join(f'{found["iou"].get(name, float("nan")):.1f}' for name in card.labels.names)
        if not rows:
            rows = [f'| network | recipe | epochs | {plan.test} mIoU | {" | ".join(card.labels.names)} |',
                    '|---' * (4 + len(card.labels)) + '|']
        rows.append(f'| {network} | {plan.recipe} | {card.recipe["epochs"]} | {found["miou"]:.2f} | {iou} |')
    return '\n'.join(rows), failed
