"""One optimizer step of several runs on one base: forward and backward passes together, all else
apart.

The rows of a pass are those of the runs' own micro-batches, so that every loss is made of what it
is made of alone; base, adapters and output head see them together (workers.injection.mixed_batch).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.data.batches import Batch
from workers.injection.adapter import Adapter
from workers.injection.row_map import Slot
from workers.layers.ops.random_state import mixed
from workers.models.base import Base
from workers.models.packing import taking_packed_rows
from workers.train.forward import part_losses
from workers.train.out_of_memory import StepOutOfMemoryError, is_out_of_memory, release
from workers.train.packed.joint_layout import JointLayout
from workers.train.step import StepCounts, StepResult, TrainStep


@dataclass(frozen=True)
class JoiningStep:
    """What a run brings to a joint step."""

    step: TrainStep
    adapter: Adapter
    batches: Sequence[Batch]
    """Its micro-batches on this worker."""
    seed: int
    """What dropout and the like hang on in this step, whoever else takes part."""
    own_state: Callable[[], AbstractContextManager[None]]
    """Inside the block torch's random state is the run's."""


@dataclass(frozen=True)
class JointPass:
    """One forward and backward pass of a joint step."""

    number: int
    """Of the micro-batches in it, from 0."""
    runs: Sequence[int]
    """Whose they are, by place."""


class JointStep:
    """A step of several runs; every worker takes the same ones, with the same runs."""

    def __init__(
        self, base: Base, pad_token_id: int, together: int, layout: JointLayout | None = None
    ) -> None:
        """`together`: so many runs share a pass at most. `layout`: None finds out what suits."""
        self._base, self._pad, self._together = base, pad_token_id, together
        self._layout = layout or JointLayout.of(base)

    def __call__(self, joining: Sequence[JoiningStep]) -> list[StepResult | Exception]:
        """Take it: of each run what its step gave, or why the run ends here. Raises
        StepOutOfMemoryError on all workers, with nothing changed, where one lacked memory."""
        counts = [one.step.count(one.batches) for one in joining]
        passes = list(_passes(joining, self._together))
        sums: list[list[Tensor]] = [[] for _ in joining]
        failed = None
        try:
            packed = self._layout.packs(joining[0].batches)
            with taking_packed_rows(self._base.model) if packed else nullcontext():
                for one_pass in passes:
                    failed = one_pass
                    self._take(one_pass, joining, counts, sums)
        except Exception as error:
            for one in joining:
                one.step.drop()
            if not is_out_of_memory(error):
                raise
        else:
            return _concluded(joining, counts, [torch.stack(parts).sum(0) for parts in sums])
        assert failed is not None, "a step has passes"
        sums.clear()
        release()  # The error, whose frames hold tensors, is forgotten by now.
        # The other workers make their passes all the same, and get zeros where they wait.
        for one_pass in passes:
            for at in one_pass.runs:
                one = joining[at]
                one.step.auxiliary.finish(one_pass.number + 1, one.adapter.routers.values())
        alone = len(joining) == 1 and joining[0].batches[failed.number].rows == 1
        return _concluded(joining, counts, None, alone=alone)

    def _take(
        self,
        one_pass: JointPass,
        joining: Sequence[JoiningStep],
        counts: Sequence[StepCounts],
        sums: Sequence[list[Tensor]],
    ) -> None:
        """A pass of some runs; adds each one's parts of its losses to its `sums`."""
        members = [joining[at] for at in one_pass.runs]
        found = self._pass(members, [counts[at] for at in one_pass.runs], one_pass.number)
        for at, parts in zip(one_pass.runs, found, strict=True):
            sums[at].append(parts)

    def _pass(
        self, members: Sequence[JoiningStep], counts: Sequence[StepCounts], number: int
    ) -> list[Tensor]:
        """One micro-batch of each."""
        batches = [one.batches[number] for one in members]
        joint = self._layout.joined(batches, self._pad)
        seeds: dict[Slot, int] = {one.adapter.slot: mixed(one.seed, number) for one in members}
        rows, found = members[0].adapter.rows, []
        block, masks = self._layout.computing(rows, joint, seeds, self._base.device)
        with block:
            with ExitStack() as recording:
                records = [
                    recording.enter_context(
                        one.adapter.record(mask_F, rank_space=one.step.auxiliary.needs_rank_space)
                    )
                    for one, mask_F in zip(members, masks, strict=True)
                ]
                loss_P = part_losses(self._base, joint.batch, joint.part_F, len(members))
            everything = zip(members, loss_P.unbind(), records, batches, counts, strict=True)
            for one, loss, own, batch, count in everything:
                with one.own_state():
                    micro = count.micro_tokens[number]
                    found.append(one.step.parts(loss, own, batch, count, micro))
            torch.autograd.backward(torch.stack([parts[-1] for parts in found]).sum())
        return [parts.detach() for parts in found]


def _concluded(
    joining: Sequence[JoiningStep],
    counts: Sequence[StepCounts],
    sums: Sequence[Tensor] | None,
    *,
    alone: bool = False,
) -> list[StepResult | Exception]:
    """Clip and update, each run by itself; no `sums` where this worker lacked memory, `alone` if
    that was in a pass that cannot be smaller. The device is waited for once. Raises
    StepOutOfMemoryError where any worker lacked memory."""
    figures = []
    for at, (one, count) in enumerate(zip(joining, counts, strict=True)):
        lacking = [float(sums is None), float(alone)]
        mine = one.step.no_sums() if sums is None else sums[at].double()
        figures.append(one.step.reduce(mine, mine.new_tensor(lacking), count))
    sizes = [len(one) for one in figures]
    told = iter(torch.cat(figures).tolist())
    results: list[StepResult | Exception] = []
    for one, size in zip(joining, sizes, strict=True):
        own = [next(told) for _ in range(size)]
        try:
            results.append(one.step.conclude(own))
        except Exception as error:  # of this run alone: it diverged, perhaps
            results.append(error)
    if any(isinstance(one, StepOutOfMemoryError) for one in results):
        raise StepOutOfMemoryError  # each run's figures say so
    return results


def _passes(joining: Sequence[JoiningStep], together: int) -> Iterator[JointPass]:
    """In their order, which is the same on every worker."""
    for number in range(max(len(one.batches) for one in joining)):
        there = [at for at, one in enumerate(joining) if number < len(one.batches)]
        for at in range(0, len(there), together):
            yield JointPass(number, there[at : at + together])
