"""Where a pass needs more memory than there is: smaller passes from there on.

A step's rows stay the same, and so does what it gives: it is taken again in passes of half the
size, from the same random state. Training counts in rows or tokens, an evaluation in rows.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from workers.config.parallel import PassLimit
from workers.config.train import TrainSpec
from workers.data.batches import Batches
from workers.data.streaming.batches import StreamedBatches
from workers.parallel.world import World
from workers.run.events import EventLog


class DoesNotFitError(RuntimeError):
    """Not even the smallest pass fits into memory."""


class StepOutOfMemoryError(RuntimeError):
    """A step lacked memory on a worker, and was dropped on all of them."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory was not to be had, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = ("DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(one in str(error) for one in said)


def release() -> None:
    """Give back what a pass that failed has left. Its error must be forgotten before: the frames in
    it hold its tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def too_large(spec: TrainSpec) -> DoesNotFitError:
    """Of a run whose passes have one row each."""
    adapter = spec.adapter
    lower = [f"data.max_length ({spec.data.max_length})", f"adapter.rank ({adapter.rank})"]
    if max(adapter.expert_counts) > 1:
        lower.append(f"adapter.num_experts ({max(adapter.expert_counts)})")
    if spec.model.activation_checkpointing:
        return DoesNotFitError(f"out of memory with one row in a forward pass: lower {_or(lower)}")
    return DoesNotFitError(
        "out of memory with one row in a forward pass: set model.activation_checkpointing, or "
        f"lower {_or(lower)}"
    )


def cannot_repeat(spec: TrainSpec, field: str, now: object) -> DoesNotFitError:
    """Of workers that wait for each other in the midst of a pass."""
    parallel = spec.parallel
    shared = f"parallel.strategy {parallel.strategy}"
    if parallel.ep_size > 1:
        shared = f"parallel.ep_size {parallel.ep_size}"
    return DoesNotFitError(
        f"out of memory in a forward pass of {now}; with {shared} the workers wait for each other "
        f"in the midst of it, and it cannot be tried again: lower {field}"
    )


class FittingPasses:
    """How much the passes of a run hold: what its job says, or less since memory ran out."""

    def __init__(self, spec: TrainSpec, log: EventLog | None = None, rank: int = 0) -> None:
        """`log` is told where one becomes smaller."""
        self._spec, self._log, self._rank = spec, log, rank
        self.training: PassLimit = spec.pass_limit
        self.evaluation: PassLimit = spec.evaluation_limit

    def halve_training(self, batches: Batches | StreamedBatches, step: int) -> None:
        """After a step that lacked memory; every worker comes here."""
        before, self.training = self.training, batches.halved(step, self.training)
        size = f"{self.training} at most in a forward pass from here on (before: {before})"
        if self._rank == 0:
            rows = self._spec.optimizer.batch_size
            self._say(f"{size}; the batch stays {rows} rows", step, None)

    def evaluate(
        self, work: Callable[[Sequence[int]], None], rows: Sequence[int], longest: int
    ) -> bool:
        """Whether `work` is done; else its passes are to be smaller. An evaluation's workers do not
        wait for each other in the midst of it."""
        try:
            work(rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return True
        release()
        if len(rows) == 1:
            raise too_large(self._spec)
        before, self.evaluation = self.evaluation, self.evaluation.half_of(len(rows), longest)
        said = f"{self.evaluation} at most in an evaluation's pass from here on (before: {before})"
        self._say(said, None, self._rank)
        return False

    def state(self, world: World) -> dict[str, Any]:
        """For a checkpoint; a collective. An evaluation's passes are those of the worker with the
        smallest."""
        everyone = world.gather(self.evaluation)
        smallest = min(everyone, key=lambda one: (one.tokens or 0, one.rows or 0))
        return {"training": self.training.as_dict(), "evaluation": smallest.as_dict()}

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on with a `state`; an earlier moetune's checkpoint has none."""
        if state:
            self.training = PassLimit(**state["training"])
            self.evaluation = PassLimit(**state["evaluation"])

    def _say(self, message: str, step: int | None, worker: int | None) -> None:
        if self._log:
            self._log.note("memory", f"out of memory: {message}", step=step, worker=worker)


def _or(names: Sequence[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1]))
