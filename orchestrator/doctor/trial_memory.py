"""What a job's trials hold in memory, each by itself and several in a pack, as estimates."""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator.config.job import JobSpec
from workers.config.base import override
from workers.config.optimizers import FLOAT, OPTIMIZERS

if TYPE_CHECKING:
    from workers.config.train import TrainSpec
    from workers.models.memory import MemoryEstimate


class TrialMemory:
    """Of a job that has passed `preflight`: this node has encoded its rows."""

    def __init__(self, job: JobSpec) -> None:
        from workers.data.encode import Encoder
        from workers.data.store.token_store import TokenStore
        from workers.data.streaming.windows import looked_at
        from workers.models.base import check_base
        from workers.models.vocabulary import with_token_ids

        self.job = job
        tokenizer, data = check_base(job.train.model), job.train.data
        trials = (with_token_ids(trial, tokenizer) for trial in job.search_space().samples())
        self._trials = _large(trials)
        encoders = {
            one: Encoder(tokenizer, one) for one in (data, *(trial.data for trial in self._trials))
        }
        self.rows = {one: looked_at(encoder) for one, encoder in encoders.items()}
        """Training rows, by what a trial says of its data."""
        own = with_token_ids(job.train, tokenizer).adapter.train_tokens
        known = self.rows[data].examples.having(one for one in own if isinstance(one, int))
        named = zip(job.train.adapter.train_tokens, own, strict=True)
        self.unseen_tokens = tuple(str(name) for name, one in named if one not in known)
        """Of adapter.train_tokens those that no training row has."""
        self.validation = TokenStore(encoders[data]).validation(job.train.evaluation.rows_per_task)

    @cached_property
    def largest(self) -> "tuple[TrainSpec, MemoryEstimate]":
        """The trial that holds most. InputError where nothing is known of any."""
        found = ((one, self.of(one)) for one in self._trials)
        return max(found, key=lambda pair: pair[1].total)

    def of(self, trial: "TrainSpec", runs: int = 1) -> "MemoryEstimate":
        """Of a worker of a pack with so many like this one."""
        from workers.data.store.epoch_figures import epoch_figures
        from workers.models.memory import estimate

        rows, on_worker = self.rows[trial.data], self.on_worker(trial)
        stored = rows.examples.bytes + self.validation.examples.bytes
        beside = [on_worker] * (runs - 1)
        return estimate(on_worker, epoch_figures(rows, trial).largest, stored, beside)

    @property
    def first(self) -> "TrainSpec":
        """One of those that may hold most."""
        return self._trials[0]

    def on_worker(self, trial: "TrainSpec") -> "TrainSpec":
        """With a worker's GPU and what it computes, which this node may lack."""
        if not on_gpu(self.job, trial):
            return trial
        dtype = trial.model.settled_dtype or "bfloat16"
        return override(trial, {"model.device": "cuda", "model.dtype": dtype}, "memory")


def on_gpu(job: JobSpec, trial: "TrainSpec") -> bool:
    """Whether a worker of the trial has one for certain."""
    device = trial.model.device
    return device == "cuda" or (device == "auto" and job.search.gpus_per_worker > 0)


def _large(trials: "Iterable[TrainSpec]") -> "list[TrainSpec]":
    """Those that may be the largest: with the most or longest rows at once, weights, or slots."""
    keys = (
        lambda one: one.data.max_length,
        lambda one: one.trained_at_once(one.parallel.max_workers),
        lambda one: one.pass_limit.tokens or 0,
        _trained_bytes,
        lambda one: one.adapter.slots(max(one.adapter.expert_counts)),
    )
    known = list(trials)
    found = [max(known, key=key) for key in keys]
    return [one for at, one in enumerate(found) if one not in found[:at]]


def _trained_bytes(trial: "TrainSpec") -> float:
    """In proportion to what adapter, gradients and optimizer take."""
    adapter, optimizer = trial.adapter, trial.optimizer
    kept = OPTIMIZERS[optimizer.name].bytes_of_weight(optimizer.momentum, adapter.rank)
    return max(adapter.expert_counts) * adapter.rank * (2 * FLOAT + kept)
