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
        StepOutOfMemoryError, with nothing changed, where memory was lacking."""
        counts = [one.step.count(one.batches) for one in joining]
        try:
            sums = self._passes(joining, counts)
        except Exception as error:
            for one in joining:
                one.step.drop()
            if not is_out_of_memory(error):
                raise
        else:
            return _concluded(joining, counts, sums)
        release()  # The error, whose frames hold tensors, is forgotten by now.
        raise StepOutOfMemoryError

    def _passes(
        self, joining: Sequence[JoiningStep], counts: Sequence[StepCounts]
    ) -> list[list[Tensor]]:
        """All forward and backward passes; each run's parts of its losses, pass by pass."""
        sums: list[list[Tensor]] = [[] for _ in joining]
        packed = self._layout.packs(joining[0].batches)
        with taking_packed_rows(self._base.model) if packed else nullcontext():
            for number in range(max(len(one.batches) for one in joining)):
                there = [at for at, one in enumerate(joining) if number < len(one.batches)]
                for some in _groups(there, self._together):
                    members = [joining[at] for at in some]
                    found = self._pass(members, [counts[at] for at in some], number)
                    for at, parts in zip(some, found, strict=True):
                        sums[at].append(parts)
        return sums

    def _pass(
        self, members: Sequence[JoiningStep], counts: Sequence[StepCounts], number: int
    ) -> list[Tensor]:
        """One micro-batch of each."""
        batches = [one.batches[number] for one in members]
        joint = self._layout.joined(batches, self._pad)
        seeds: dict[Slot, int] = {one.adapter.slot: mixed(one.seed, number) for one in members}
        whose = self._layout.whose(joint, seeds, self._base.device)
        found = []
        with whose.computing(members[0].adapter.rows):
            with ExitStack() as recording:
                records = [
                    recording.enter_context(
                        one.adapter.record(mask_F, rank_space=one.step.auxiliary.needs_rank_space)
                    )
                    for one, mask_F in zip(members, whose.masks, strict=True)
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
    joining: Sequence[JoiningStep], counts: Sequence[StepCounts], sums: Sequence[list[Tensor]]
) -> list[StepResult | Exception]:
    """Clip and update, each run by itself. The device is waited for once."""
    figures = []
    for one, count, parts in zip(joining, counts, sums, strict=True):
        total = torch.stack(parts).sum(0).double()
        figures.append(one.step.reduce(total, total.new_zeros(2), count))
    sizes = [len(one) for one in figures]
    told = iter(torch.cat(figures).tolist())
    results: list[StepResult | Exception] = []
    for one, size in zip(joining, sizes, strict=True):
        own = [next(told) for _ in range(size)]
        try:
            results.append(one.step.conclude(own))
        except Exception as error:  # of this run alone: it diverged, perhaps
            results.append(error)
    return results


def _groups(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[at : at + size] for at in range(0, len(items), size))
