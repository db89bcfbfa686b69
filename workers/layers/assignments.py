"""A routing decision as (token, expert) pairs: token by token, and sorted by expert.

Shapes: T tokens, K slots of a token, P pairs (T * K at most), N experts, R rank; `...` any sizes.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.layers.ops.grouped_mm import Groups, waits


class ExpertAssignments:
    """Which experts each token is sent to. A slot with expert N is void: it has no expert.

    `apart`: the experts are several adapters', whose numbers must not meet others' tokens, not even
    times zero: infinity times zero is not zero. The last of the N is then the void, an expert of
    zeros (`bank.join`).
    """

    def __init__(
        self,
        expert_TK: Tensor,
        gate_TK: Tensor,
        num_experts: int,
        voids: bool = False,
        apart: bool = False,
    ) -> None:
        self.gate_TK = gate_TK
        self.num_experts = num_experts
        self.apart = apart
        self.real_TK1 = (expert_TK < num_experts).unsqueeze(-1) if voids else None
        """False in void slots whose values are to be masked; None where there are none."""
        # What a void slot gives is masked, so any of the adapter's own experts may do it.
        self.expert_TK = expert_TK.clamp(max=num_experts - 1) if voids else expert_TK
        self._one_hot_TKN: Tensor | None = None
        self._each: ExpertAssignments | None = None

    def sorted_for(self, like: Tensor, spread: bool = True) -> "SortedAssignments":
        """`sorted`, for products with such tensors. Where the host has to know where groups end it
        asks, once for all of them: no zeros may stand for others' numbers in products of several
        adapters, nor in large ones, which cannot be `spread`."""
        pairs = self.sorted
        if pairs.ends is None and waits(like) and (self.apart or not spread):
            pairs = pairs._replace(ends=pairs.end_N.tolist())
            self.__dict__["sorted"] = pairs
        return pairs

    @property
    def is_told(self) -> bool:
        """Whether the host knows where groups end."""
        pairs: SortedAssignments | None = self.__dict__.get("sorted")
        return pairs is not None and pairs.ends is not None

    @cached_property
    def sorted(self) -> "SortedAssignments":
        """The pairs in the order of their experts, without a word from the device."""
        slots = self.expert_TK.shape[1]
        if self.expert_TK.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._sorted_on_host(slots)
        expert_P = self.expert_TK.flatten()
        order_P = expert_P.argsort(stable=True)
        expert_N = torch.arange(1, self.num_experts + 1, device=expert_P.device)
        end_N = torch.searchsorted(expert_P[order_P], expert_N).to(torch.int32)
        return SortedAssignments(order_P, order_P // slots, end_N, None)

    def _sorted_on_host(self, slots: int) -> "SortedAssignments":
        """Where indices lie in the host's own memory, slots without weight can be left out (top_p
        has many), and chunks can take their experts only. numpy calls cost a tenth of torch's."""
        expert_P = self.expert_TK.flatten().numpy()
        order_P = expert_P.argsort(kind="stable")
        real_TK = self._real_TK
        if real_TK is not None:
            counts_P = (real_TK | (self.gate_TK != 0)).flatten().numpy()
            order_P = order_P[counts_P[order_P]]
        ends = np.bincount(expert_P[order_P], minlength=self.num_experts).cumsum()
        return SortedAssignments(
            torch.from_numpy(order_P),
            torch.from_numpy(order_P // slots),
            torch.from_numpy(ends.astype(np.int32)),
            ends.tolist(),
        )

    def part(self, rows: slice) -> "ExpertAssignments":
        """Those of some tokens."""
        expert_tK, gate_tK = self.expert_TK[rows], self.gate_TK[rows]
        if self.real_TK1 is not None:
            void_tK = ~self.real_TK1[rows].squeeze(-1)
            expert_tK = expert_tK.masked_fill(void_tK, self.num_experts)
        voids = self.real_TK1 is not None
        return ExpertAssignments(expert_tK, gate_tK, self.num_experts, voids, self.apart)

    @property
    def _real_TK(self) -> Tensor | None:  # noqa: N802
        """False in void slots; None where there are none."""
        if self.apart:
            return self.expert_TK < self.num_experts - 1
        return None if self.real_TK1 is None else self.real_TK1.squeeze(-1)

    @property
    def each(self) -> "ExpertAssignments":
        """Every pair as a token of its own, with one slot."""
        if self._each is None:  # Of a cached_property torch.compile refuses the lock.
            expert_P1, gate_P1 = self.expert_TK.view(-1, 1), self.gate_TK.reshape(-1, 1)
            self._each = ExpertAssignments(expert_P1, gate_P1, self.num_experts, apart=self.apart)
        return self._each

    def masked(self, values_TKR: Tensor) -> Tensor:
        """`values`, zero in void slots, whatever stood there."""
        return values_TKR if self.real_TK1 is None else values_TKR.where(self.real_TK1, 0)

    def pick(self, all_TNR: Tensor) -> Tensor:
        """Of every token's N vectors those of its experts: [T, K, R]."""
        tokens, slots = self.expert_TK.shape
        first_T1 = torch.arange(tokens, device=all_TNR.device).unsqueeze(1) * self.num_experts
        chosen_P = (self.expert_TK + first_T1).flatten()
        return all_TNR.flatten(0, 1).index_select(0, chosen_P).view(tokens, slots, all_TNR.shape[2])

    def spread_sum(self, values_TKR: Tensor) -> Tensor:
        """Each vector in its expert's place among zeros, summed over the slots: [T, N, R]."""
        one_hot_TKN = self.one_hot_TKN.to(values_TKR.dtype)
        if values_TKR.shape[1] == 1:
            return values_TKR * one_hot_TKN.transpose(1, 2)
        return torch.bmm(one_hot_TKN.transpose(1, 2), values_TKR)

    @property
    def one_hot_TKN(self) -> Tensor:  # noqa: N802
        """One where slot k of token t has expert n, in the gates' type."""
        if self._one_hot_TKN is None:  # No cached_property either.
            zero_TKN = self.gate_TK.new_zeros(*self.expert_TK.shape, self.num_experts)
            self._one_hot_TKN = zero_TKN.scatter_(-1, self.expert_TK.unsqueeze(-1), 1)
        return self._one_hot_TKN


class AssignmentChunk(NamedTuple):
    """A stretch of the sorted pairs, and the experts that it meets."""

    rows: slice
    """Its place among the P pairs."""
    experts: slice
    """Its experts among the N."""
    token_p: Tensor
    groups: Groups
    """Of the experts within the chunk."""


class SortedAssignments(NamedTuple):
    """Pairs in the order of their experts, P of the T * K."""

    order_P: Tensor
    """Place of each among the pairs token by token."""
    token_P: Tensor
    end_N: Tensor
    """Where each expert's group ends, int32."""
    ends: list[int] | None
    """`end_N` as numbers, where reading them costs nothing."""

    @property
    def groups(self) -> Groups:
        """Where they end, for grouped products."""
        return Groups(self.end_N, self.ends)

    def take(self, values_TK: Tensor) -> Tensor:
        """[T, K, ...] sorted: [P, ...]."""
        return values_TK.flatten(0, 1).index_select(0, self.order_P)

    def put_back(self, sorted_P: Tensor, like_TK: Tensor) -> Tensor:
        """[P, ...] token by token again, in the shape of `like` but for what follows [T, K]; zero
        for pairs that were left out."""
        values = sorted_P.new_zeros(like_TK.shape[:2].numel(), *sorted_P.shape[1:])
        values[self.order_P] = sorted_P
        return values.view(*like_TK.shape[:2], *sorted_P.shape[1:])

    def chunks(self, rows: int) -> Iterator[AssignmentChunk]:
        """Stretches of at most `rows` pairs."""
        for start in range(0, len(self.order_P), rows):
            stop = min(start + rows, len(self.order_P))
            part, token_p = slice(start, stop), self.token_P[start:stop]
            if self.ends is None:
                end_n = (self.end_N - start).clamp(0, stop - start)
                yield AssignmentChunk(part, slice(None), token_p, Groups(end_n))
                continue
            # The experts with pairs in here; empty groups before and behind cost their share.
            first, last = bisect_right(self.ends, start), bisect_left(self.ends, stop)
            ends = [min(end, stop) - start for end in self.ends[first : last + 1]]
            groups = Groups(torch.tensor(ends, dtype=torch.int32), ends)
            yield AssignmentChunk(part, slice(first, last + 1), token_p, groups)
