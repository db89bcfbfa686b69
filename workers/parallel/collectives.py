"""Collectives that gradients pass through, and a count of the bytes that they send.

Shapes: n rows sent, m rows received, X numbers of a row.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workers.parallel.world import World


class Traffic:
    """Bytes that this worker has sent to others, by what they were."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()

    def count(self, kind: str, rows_nX: Tensor, rows: int) -> None:
        """Add the bytes of so many of the rows."""
        self.sent[kind] += rows * rows_nX.shape[1:].numel() * rows_nX.element_size()

    def take(self) -> int:
        """All bytes sent since the last call."""
        total = sum(self.sent.values())
        self.sent.clear()
        return total


class ExchangeSizes:
    """How many rows go to and come from each worker of a group, and what that costs."""

    def __init__(self, group: World, send: Sequence[int], receive: Sequence[int], traffic: Traffic):
        self.group, self.traffic = group, traffic
        self.send, self.receive = list(send), list(receive)

    @classmethod
    def plan(cls, group: World, send_W: Tensor, traffic: Traffic) -> "ExchangeSizes":
        """Tell every worker how many rows to expect: [W] counts, one for each worker."""
        receive_W = torch.empty_like(send_W)
        dist.all_to_all_single(receive_W, send_W, group=group.group)
        both = torch.stack([send_W, receive_W]).tolist()
        return cls(group, both[0], both[1], traffic)

    @property
    def back(self) -> "ExchangeSizes":
        """The way back."""
        return ExchangeSizes(self.group, self.receive, self.send, self.traffic)

    def move(self, kind: str, rows_nX: Tensor) -> Tensor:
        """Send the rows, sorted by receiver; gives those received, sorted by sender. No gradient.

        Also where a worker has none to send or gets none: the others wait for its part.
        """
        out_mX = rows_nX.new_empty(sum(self.receive), *rows_nX.shape[1:])
        dist.all_to_all_single(
            out_mX, rows_nX.contiguous(), self.receive, self.send, group=self.group.group
        )
        others = sum(self.send) - self.send[self.group.rank]
        self.traffic.count(kind, rows_nX, others)
        return out_mX


def all_to_all(route: ExchangeSizes, kind: str, rows_nX: Tensor) -> Tensor:
    """`ExchangeSizes.move` that gradients pass through, the other way."""
    moved: Tensor = _AllToAll.apply(rows_nX, route, kind)  # type: ignore[no-untyped-call]
    return moved


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_nX: Tensor, route: ExchangeSizes, kind: str) -> Tensor:
        ctx.route, ctx.kind = route, kind
        return route.move(kind, rows_nX)

    @staticmethod
    def backward(ctx: Any, grad_mX: Tensor) -> tuple[Tensor, None, None]:
        return ctx.route.back.move(ctx.kind, grad_mX), None, None
