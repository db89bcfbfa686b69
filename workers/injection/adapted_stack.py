"""A mixture-of-experts base's stacked experts, where adapters attach.

Shapes: T tokens of the batch, K slots, D width.
"""

import torch
from torch import Tensor, nn

from workers.injection.row_map import RowMap
from workers.injection.wrapper import AdaptedModule
from workers.layers.expert_stack import ExpertStack
from workers.layers.stack_lora import Choice, StackLora, run_stack


class AdaptedStack(AdaptedModule):
    """Stacked experts, with one layer for each slot; called as the base calls its experts."""

    def __init__(self, base: nn.Module, rows: RowMap, stack: ExpertStack, number: int = 0) -> None:
        super().__init__(base, rows, number=number)
        self.stack = stack

    def forward(
        self,
        hidden: Tensor,
        expert_TK: Tensor | None = None,
        gate_TK: Tensor | None = None,
    ) -> Tensor:
        """The base's experts with each row's adapter, [T, D]; the base's router has chosen."""
        assert expert_TK is not None
        assert gate_TK is not None
        choice = Choice(expert_TK, gate_TK)
        if not self.rows.is_mixed():
            layer = self._stack_lora(self.rows.only())
            output: Tensor = (
                self.base(hidden, *choice) if layer is None else layer(self.stack, hidden, choice)
            )
            return output
        return self._mixed(hidden, choice)

    def _mixed(self, hidden_TD: Tensor, choice: Choice) -> Tensor:
        """All rows, each with its own adapter or none."""
        partition = self.rows.partition(hidden_TD)
        layers = map(self._stack_lora, partition.names)
        seeds = partition.seeds(self.number)
        shares = [
            layer.share(self.stack, token_t, seed)
            for layer, token_t, seed in zip(layers, partition.tokens, seeds, strict=True)
            if layer is not None and len(token_t)
        ]
        if not shares:
            bare: Tensor = self.base(hidden_TD, *choice)
            return bare
        return run_stack(self.stack, shares, hidden_TD, choice)

    def _stack_lora(self, slot: str | None) -> StackLora | None:
        layer = self._layer(slot)
        assert layer is None or isinstance(layer, StackLora)
        return layer


@torch.no_grad()
def is_as_read(stack: ExpertStack) -> bool:
    """Whether the module computes what its parts say, as it shows by running."""
    width = stack.sizes(stack.inner)[0]
    weight = next(stack.module.parameters())
    seeded = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(8, width, generator=seeded).to(weight.device, stack.dtype)
    expert_TK = torch.stack([torch.randperm(stack.experts, generator=seeded)[:2] for _ in range(8)])
    gate_TK = torch.rand(8, 2, generator=seeded).to(hidden_TD)
    choice = Choice(expert_TK.to(weight.device), gate_TK)
    expected_TD: Tensor = stack.module(hidden_TD, *choice)
    distance = (run_stack(stack, [], hidden_TD, choice) - expected_TD).norm()
    return bool(distance <= torch.finfo(stack.dtype).eps ** 0.5 * expected_TD.norm())
