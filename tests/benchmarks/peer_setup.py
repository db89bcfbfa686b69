"""What all contestants of peers.py are given: one base, one adapter, one batch.

No import but torch and the standard library: moe-peft's environment has nothing of ours.
"""

import json
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

LEARNING_RATE = 1e-5
"""So low that the routers, and with them the work, stay what they are."""


@dataclass(frozen=True)
class Sizes:
    """What is timed, whatever the shape of the base and the number of experts."""

    rank: int = 8
    top_k: int = 2
    alpha: int = 16
    dropout: float = 0.05
    rows: int = 8
    length: int = 128
    vocabulary: int = 8192
    rounds: int = 11


@dataclass(frozen=True)
class Setup:
    """One contest: a shape and a number of experts."""

    base: str
    """Folder of the base model."""
    adapter: str
    """Folder of the adapter, in MixLoRA's own format."""
    experts: int
    attention: str
    """How PEFT and moetune compute attention; moe-peft has only eager."""
    sizes: Sizes

    def to_json(self) -> str:
        """For the command line of a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Setup":
        """What `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"sizes": Sizes(**values["sizes"])})

    @property
    def tokens_BS(self) -> Tensor:
        """The batch: the same random tokens for all."""
        shape = (self.sizes.rows, self.sizes.length)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.sizes.vocabulary, shape, generator=generator)

    def labels_BS(self, ignored: int) -> Tensor:
        """The tokens but for each row's first, which nothing predicts, at their own positions."""
        labels_BS = self.tokens_BS
        labels_BS[:, 0] = ignored
        return labels_BS

    @property
    def probe_BS(self) -> Tensor:
        """A few tokens, whose logits are compared."""
        return self.tokens_BS[:2, :32].contiguous()


class Contestant(Protocol):
    """An adapted model that can be trained and asked."""

    trainable: int
    """Numbers that are trained."""

    def step(self) -> None:
        """One optimizer step on the batch, by the package's own training path."""

    def evaluate(self) -> Tensor:
        """Logits [B, S, V] of the batch, without dropout and gradients."""

    def logits(self, tokens_BS: Tensor, *, adapted: bool) -> Tensor:
        """Logits [B, S, V] with or without the adapter, and without dropout."""


def load(name: str, setup: Setup) -> Contestant:
    """The contestant of this name. Its packages are imported only here."""
    if name == "moe-peft":
        from peer_moe_peft import MoePeft

        return MoePeft(setup)
    if name == "moetune":
        from peer_moetune import Moetune

        return Moetune(setup)
    from peer_peft import PeftLora

    return PeftLora(setup)
