"""Stage `pack` of `gpu_first.py`: a joint step of several runs, and their steps one by one."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_model import GPU, llama, timed
from gpu_step import MIXTURE, PLAIN, Run, profiled, random_rows, spec_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.injection.inject import inject, row_map
from workers.models.base import Base
from workers.models.fused_norms import fuse_norms
from workers.parallel.update import Replicated
from workers.train.packed.joint_step import JoiningStep, JointStep
from workers.train.step import TrainStep

SHAPES = (MIXTURE, {**MIXTURE, "experts": "linear"}, PLAIN, {**MIXTURE, "rank": 8})
"""Of the runs: a space's trials differ so."""


@dataclass(frozen=True)
class Rows:
    """What each run has in a step."""

    rows: int
    length: int


FEW = (Rows(4, 96), Rows(8, 96)) if GPU else (Rows(2, 8),)
"""Of 96 tokens, as in multitask data; twice as many would not fit into 80 GiB."""


def pack() -> Iterator[dict[str, Any]]:
    """Milliseconds of both, by how much a run has of its own."""
    model = llama()
    fuse_norms(model)  # as a run does on a GPU
    base = Base(model, None, next(model.parameters()).device)  # type: ignore[arg-type]  # no text
    for few in FEW:
        with _runs(base, few) as runs:
            joint = JointStep(base, 0, len(runs))
            if GPU:
                torch.cuda.reset_peak_memory_stats()
            together = timed(lambda j=joint, r=runs: j(r), 4, 2)  # type: ignore[misc]
            peak = torch.cuda.max_memory_allocated() / 2**30 if GPU else None
            apart = timed(_apart(base, runs), 4, 2)
            yield {
                "runs": len(runs),
                **vars(few),
                "joint_ms": 1000 * together,
                "apart_ms": 1000 * apart,
                "joint_over_apart": together / apart,
                "peak_GiB": peak,
                **profiled(lambda j=joint, r=runs: j(r)),  # type: ignore[misc]
            }


@contextmanager
def _runs(base: Base, few: Rows) -> Iterator[list[JoiningStep]]:
    """Each with an adapter and random rows of its own."""
    runs = []
    for at, shape in enumerate(SHAPES):
        run = Run(f"run {at}", shape, few.rows, few.length)
        spec = spec_of(run)
        adapter = inject(base.model, spec.adapter, slot=run.name, seed=at)
        step = TrainStep(spec, base, adapter, Replicated(adapter, spec.optimizer))
        batches = [random_rows(run, int(base.model.config.vocab_size))]
        runs.append(JoiningStep(step, adapter, batches, at, nullcontext))
    try:
        yield runs
    finally:
        for one in runs:
            one.adapter.remove()


def _apart(base: Base, runs: list[JoiningStep]) -> Callable[[], None]:
    def take() -> None:
        for one in runs:
            with row_map(base.model).everywhere(one.adapter.slot):
                one.step(one.batches)

    return take
