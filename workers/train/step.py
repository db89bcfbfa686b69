"""One optimizer step: forward passes, losses, one all-reduce, clipping, update."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import Batch
from workers.injection.adapter import Adapter, LayerRecord
from workers.layers.ops.transfer import onto
from workers.losses.auxiliary import RoutedLayer
from workers.losses.enabled import EnabledLosses
from workers.models.base import Base
from workers.parallel.update import Update
from workers.run.heartbeat import HeartbeatWriter
from workers.train.forward import attending, batch_loss, laid_out, recorded
from workers.train.out_of_memory import (
    StepOutOfMemoryError,
    cannot_repeat,
    is_out_of_memory,
    release,
    too_large,
)


class DivergedError(RuntimeError):
    """Training or validation gave a number that is not finite."""


@dataclass(frozen=True)
class StepResult:
    """What one step gave, over all workers and micro-batches."""

    losses: Mapping[str, float]
    """Each part before its weight (`cross_entropy`, `load_balance`, …), and `loss`, their sum
    with weights."""
    grad_norm: float
    """Global norm of the gradients before clipping."""
    lr: float
    """Learning rate of this step, before its ratios for B matrices and routers."""
    tokens: int
    """Real tokens, prompts included."""

    @property
    def fault(self) -> str | None:
        """Which figure is not finite. The step was then left out: nothing has changed but the
        schedule."""
        for name, value in (*self.losses.items(), ("gradient norm", self.grad_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        return None


@dataclass(frozen=True)
class StepCounts:
    """Tokens of one step over all workers: what its losses are means over. Numbers in float64 on
    the base's device, so that nobody waits for other workers' before there is work to do."""

    targets: Tensor
    """Target tokens, or the sum of their weights."""
    tokens: Tensor
    micro_tokens: Sequence[Tensor]
    """Real tokens of each micro-batch, over all workers."""


class TrainStep:
    """Updates an adapter's parameters.

    Every loss is a mean over the tokens of the whole step: a micro-batch's sums are divided by the
    step's totals, and gradients are summed over micro-batches and workers. So the split into either
    changes nothing, but for the balance loss's f_e (counted over one micro-batch of all workers)
    and the contrastive loss (which compares tokens of one micro-batch of one worker).
    """

    def __init__(
        self,
        spec: TrainSpec,
        base: Base,
        adapter: Adapter,
        update: Update,
        heartbeat: HeartbeatWriter | None = None,
    ) -> None:
        """`update` is of this adapter's parameters; `heartbeat` is told each phase of a step."""
        self._beat = (heartbeat or HeartbeatWriter()).beat
        self._base, self._adapter, self._update = base, adapter, update
        self._world = update.world
        self._spec = spec
        self.auxiliary = EnabledLosses(spec.loss, self._world.all_reduce)
        enabled = self.auxiliary.weights if adapter.routers else ()
        self._names = ("cross_entropy", *enabled, "loss")
        self._max_grad_norm = spec.optimizer.max_grad_norm or math.inf
        self._max_skipped, self._skipped = spec.optimizer.max_skipped_steps, 0
        self._optimizer_spec = spec.optimizer
        self._peaks = [float(group["lr"]) for group in update.optimizer.param_groups]
        self._schedule_at(0)

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        """Take one step on this worker's micro-batches; every worker has the same number. Raises
        StepOutOfMemoryError on all of them, with nothing changed, where one lacked memory."""
        counts = self.count(batches)
        sums, lacking = self._passes(batches, counts)
        # Read only here, once, so that a GPU does not run dry between micro-batches.
        return self.conclude(self.reduce(sums, lacking, counts).tolist())

    def count(self, batches: Sequence[Batch]) -> StepCounts:
        """A step begins: what its losses are means over."""
        self._beat("forward")
        self.auxiliary.begin()
        targets = sum(batch.counted for batch in batches)
        tokens = [int(batch.attention_mask_BS.sum()) for batch in batches]
        in_all = self._world.totals([targets, *tokens], self._base.device)
        return StepCounts(in_all[0], in_all[1:].sum(), in_all[1:].unbind())

    def reduce(self, sums: Tensor, lacking: Tensor, counts: StepCounts) -> Tensor:
        """After the last pass: sum gradients and figures over the workers, and clip. `sums` are the
        parts of each loss, `lacking` whether memory was, and that with one row, as numbers."""
        self._beat("reduce")
        self._update.reduce()
        norm = self._update.clip(self._max_grad_norm)
        reduced = self._world.all_reduce(torch.cat([sums, lacking]))
        return torch.cat([reduced, torch.stack([norm.to(reduced), counts.tokens])])

    def conclude(self, figures: Sequence[float]) -> StepResult:
        """Take the step that `reduce` has told the figures of, or leave it out. Raises
        StepOutOfMemoryError, and DivergedError."""
        *losses, some, alone, grad_norm, tokens = figures
        if some:
            self._update.drop()
            raise too_large(self._spec) if alone else StepOutOfMemoryError
        result = StepResult(
            losses=dict(zip(self._names, losses, strict=True)),
            grad_norm=grad_norm,
            lr=self._optimizer_spec.lr * share_of_peak(self._optimizer_spec, self._done),
            tokens=int(tokens),
        )
        self._beat("update")
        if result.fault:
            self._skip(result)
        else:
            self._update.apply()
            self._skipped = 0
        self._schedule_at(self._done + 1)
        return result

    def no_sums(self) -> Tensor:
        """In place of the parts of each loss, of a worker that has none."""
        return self._zeros(len(self._names))

    def drop(self) -> None:
        """Leave the step as if it had not begun."""
        self._update.drop()

    def schedule_state(self) -> dict[str, Any]:
        """The schedule's state, for a later run."""
        return {"last_epoch": self._done}

    def load_schedule_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `schedule_state`, in any layout: the rates follow from the specification
        and how many steps were taken. An earlier moetune's has more in it."""
        self._schedule_at(state["last_epoch"])

    def _schedule_at(self, done: int) -> None:
        """Set the rate of each of the optimizer's groups for the step after so many."""
        self._done = done
        share = share_of_peak(self._optimizer_spec, done)
        for group, peak in zip(self._update.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share

    def _passes(self, batches: Sequence[Batch], counts: StepCounts) -> tuple[Tensor, Tensor]:
        """All forward and backward passes: this worker's part of each loss, and whether it lacked
        memory, and that with one row. Then the other workers make theirs all the same, and get
        zeros where they wait for its numbers."""
        parts: list[Tensor] = []
        failed = None
        try:
            with attending(self._base, batches):
                for batch, micro_tokens in zip(batches, counts.micro_tokens, strict=True):
                    failed = batch
                    with laid_out(self._adapter, self._base, batch):
                        parts.append(self._backward(batch, counts, micro_tokens))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            # Sums in float64 would be others than those of float32 before.
            sums = torch.stack(parts).sum(0)
            return sums.double(), self._zeros(2)
        assert failed is not None, "a step has passes"
        if not self._update.independent:
            field = "optimizer.micro_batch_size"
            raise cannot_repeat(self._spec, field, _words(failed))
        parts.clear()
        self._update.drop()
        release()
        self.auxiliary.finish(len(batches), self._adapter.routers.values())
        lacking = torch.tensor([1.0, failed.rows == 1], dtype=torch.float64)
        return self.no_sums(), onto(self._base.device, lacking)

    def _zeros(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.float64, device=self._base.device)

    def _backward(self, batch: Batch, counts: StepCounts, micro_tokens: Tensor) -> Tensor:
        """Forward and backward of one micro-batch; this worker's part of each loss of the step, in
        the order of their names."""
        self._beat("forward")
        rank_space = self.auxiliary.needs_rank_space
        # The backward pass runs outside: recomputed activations must not be recorded.
        with recorded(self._adapter, self._base, batch, rank_space=rank_space) as records:
            cross_entropy = batch_loss(self._base, batch)
        parts = self.parts(cross_entropy, records, batch, counts, micro_tokens)
        self._beat("backward")
        self._update.backward(parts[-1])
        return parts.detach()

    def parts(
        self,
        cross_entropy: Tensor,
        records: Sequence[LayerRecord],
        batch: Batch,
        counts: StepCounts,
        micro_tokens: Tensor,
    ) -> Tensor:
        """What a micro-batch adds to each loss of the step, in the order of their names; the last
        one is their sum with weights. Of its cross-entropy, and of what the layers did with it."""
        parts = {"cross_entropy": cross_entropy / counts.targets.to(cross_entropy.dtype)}
        parts |= self.auxiliary(
            [RoutedLayer(one.routing, one.mask_T, one.rank_space) for one in records],
            own=int(batch.attention_mask_BS.sum()) / counts.tokens,
            everyone=micro_tokens / counts.tokens / self._world.size,
        )
        weights = self.auxiliary.weights
        loss = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
        return torch.stack([*parts.values(), loss])

    def _skip(self, result: StepResult) -> None:
        """A number that is not finite would go into every later step: leave it out, and stop where
        that does not help. The figures are the same on all workers, and so is what they do."""
        self._update.drop()
        self._skipped += 1
        if self._skipped > self._max_skipped:
            raise DivergedError(
                f"training diverged: {result.fault} at learning rate {result.lr:.3g}, in "
                f"{self._skipped} steps in a row; lower optimizer.lr, add optimizer.warmup_steps, "
                "or set optimizer.max_grad_norm"
            )


def share_of_peak(spec: OptimizerSpec, step: int) -> float:
    """The learning rate of a step, from 0, over the peak. No step of the warm-up is wasted on a
    rate of 0, as transformers' schedules do with the first; after it they are the same."""
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    assert spec.steps is not None, "a run knows how many (workers.data.epoch)"
    done = (step - spec.warmup_steps) / (spec.steps - spec.warmup_steps)
    shapes = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return shapes[spec.schedule]


def _words(batch: Batch) -> str:
    count = "1 row" if batch.rows == 1 else f"{batch.rows} rows"
    return f"{count}, {batch.input_ids_BS.numel()} tokens"
