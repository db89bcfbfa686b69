"""Stages of `gpu_first.py` on a whole model: a training step, and a decoding step."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_model import GPU, llama, synchronize, timed
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.adapter import AdapterSpec
from workers.config.data import DataSpec
from workers.config.model import ModelSpec
from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import Batch, collate
from workers.data.example import Example
from workers.injection.inject import inject, row_map
from workers.models.base import Base
from workers.models.fused_norms import fuse_norms
from workers.parallel.update import Replicated
from workers.train.step import TrainStep

MIXTURE: dict[str, Any] = {"num_experts": 8, "top_k": 2, "rank": 16, "alpha": 32}
PLAIN: dict[str, Any] = {"num_experts": 1, "top_k": 1, "rank": 80}
LONG, SHORT = (2048, 96) if GPU else (16, 8)


@dataclass(frozen=True)
class Run:
    """One training step."""

    name: str
    adapter: dict[str, Any] = field(default_factory=lambda: dict(MIXTURE))
    rows: int = 4
    length: int = LONG
    checkpointing: bool = False
    masked: bool = False
    """Whether the model is told of padding that a causal model need not know of."""


RUNS = [
    Run("mixture, checkpointing", checkpointing=True),
    Run("mixture"),
    Run("mixture, masked", masked=True),
    Run("mixture, no dropout", {**MIXTURE, "dropout": 0.0}),
    Run("plain LoRA of rank 80", PLAIN),
    Run("linear experts", {**MIXTURE, "experts": "linear"}, rows=2),
    Run("mixture, short rows", length=SHORT),
]


def step() -> Iterator[dict[str, Any]]:
    """Tokens a second and peak memory of one training step, and what the time goes into."""
    model = llama()
    yield from _steps(model, [Run("mixture, norms as written")])
    fuse_norms(model)  # as a run does on a GPU
    yield from _steps(model, RUNS)


def _steps(model: PreTrainedModel, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        with _training(model, run) as take:
            if GPU:
                torch.cuda.reset_peak_memory_stats()
            take()
            seconds = timed(take, 4, 1)
            peak = torch.cuda.max_memory_allocated() / 2**30 if GPU else None
            yield {
                "name": run.name,
                "step_ms": 1000 * seconds,
                "tokens_per_s": run.rows * run.length / seconds,
                "peak_GiB": peak,
                **profiled(take),
            }


@contextmanager
def _training(model: PreTrainedModel, run: Run) -> Iterator[Callable[[], object]]:
    """Takes a step on random rows."""
    spec = spec_of(run)
    adapter = inject(model, spec.adapter)
    device = next(model.parameters()).device
    change = model.gradient_checkpointing_enable if run.checkpointing else None
    (change or model.gradient_checkpointing_disable)()
    base = Base(model, None, device)  # type: ignore[arg-type]  # Nothing here reads a text.
    if run.masked:
        base.__dict__["needs_mask"] = True  # in place of the cached property
    taken = TrainStep(spec, base, adapter, Replicated(adapter, spec.optimizer))
    try:
        yield partial(taken, [random_rows(run, int(model.config.vocab_size))])
    finally:
        adapter.remove()
        if GPU:
            torch.cuda.empty_cache()


def spec_of(run: Run) -> TrainSpec:
    """What it trains, on no model or rows that have names."""
    return TrainSpec(
        model=ModelSpec(path="random"),
        adapter=AdapterSpec.model_validate(run.adapter),
        data=DataSpec(train="-", validation="-"),
        optimizer=OptimizerSpec(steps=100),
    )


def random_rows(run: Run, vocabulary: int) -> Batch:
    """A batch, the last row of which is a little shorter."""
    ids = torch.randint(vocabulary, (run.rows, run.length)).tolist()
    ids[-1] = ids[-1][:-3]
    half = run.length // 2
    return collate([Example.of(row[:half], row[half:]) for row in ids], 0)


def profiled(take: Callable[[], object]) -> dict[str, Any]:
    """The dearest kernels (operations, on a CPU), and how often the host waits and launches."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if GPU else [])
    with profile(activities=activities) as recorded:
        take()
        synchronize()
    key = "self_device_time_total" if GPU else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, key))
    return {
        "device_ms": sum(getattr(event, key) for event in events) / 1000,
        "waits": sum(event.count for event in events if "Synchronize" in event.key),
        "launches": sum(event.count for event in events if "LaunchKernel" in event.key),
        "top": [(e.key[:48], e.count, getattr(e, key) / 1000) for e in events[:12]],
    }


def decode() -> Iterator[dict[str, Any]]:
    """One decoding step of the model alone, without an engine."""
    model = llama()
    yield {"who": "base, norms as written", "batch": 1, "ms": _decoding(model, 1)}
    fuse_norms(model)
    for batch in (1, 16, 64):
        yield {"who": "base", "batch": batch, "ms": _decoding(model, batch)}
    for count, shape in ((1, MIXTURE), (1, {**MIXTURE, "experts": "linear"}), (8, MIXTURE)):
        slots = [f"slot-{index}" for index in range(count)]
        spec = AdapterSpec.model_validate(shape)
        adapters = [inject(model, spec, slot=slot) for slot in slots]
        for batch in (1, 16, 64):
            if batch >= count:
                rows = [slots[row % count] for row in range(batch)]
                with row_map(model).assign(rows):
                    milliseconds = _decoding(model, batch)
                who = f"{count} of {spec.experts}"
                yield {"who": who, "batch": batch, "ms": milliseconds}
        for adapter in adapters:
            adapter.remove()


@torch.no_grad()
def _decoding(model: PreTrainedModel, batch: int) -> float:
    """Milliseconds of one more token for each row, with a cache that has 64 of each."""
    device = next(model.parameters()).device
    ids = torch.randint(model.config.vocab_size, (batch, 64 if GPU else 8), device=device)
    cache = model(ids, use_cache=True).past_key_values
    return 1000 * timed(lambda: model(ids[:, :1], past_key_values=cache, use_cache=True), 6, 2)
