"""Rows of an embedding's or an output head's weight that an adapter trains: those of a few tokens.

Shapes: N tokens that are trained, V vocabulary, D width; `...` any leading sizes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from workers.config.base import InputError


class TrainedRows(nn.Module):
    """The rows, float32 beside a base that may be bfloat16; they stand in place of the frozen ones,
    as PEFT's trainable_token_indices do, and are not added to them."""

    leaf: ClassVar[str] = "token_rows"
    """What a canonical name ends in."""

    def __init__(self, base: nn.Module, tokens: Sequence[int]) -> None:
        """As the base's own are. InputError for a token that it has no row for."""
        super().__init__()
        weight_VD = base.weight
        assert isinstance(weight_VD, Tensor)
        if beyond := [one for one in tokens if one >= len(weight_VD)]:
            raise InputError(
                f"train_tokens: there is no token {beyond[0]}: the base has {len(weight_VD)} rows"
            )
        token_N = torch.tensor(tokens, device=weight_VD.device)
        place_V = torch.full((len(weight_VD),), -1, device=weight_VD.device)
        place_V[token_N] = torch.arange(len(tokens), device=weight_VD.device)
        self.register_buffer("token_N", token_N, persistent=False)
        self.register_buffer("place_V", place_V, persistent=False)
        precision = torch.promote_types(weight_VD.dtype, torch.float32)
        self.token_rows = nn.Parameter(weight_VD.detach()[token_N].to(precision))
        if isinstance(base, nn.Embedding):
            self._check(base)

    @property
    def own(self) -> nn.Parameter:
        """What is trained, [N, D]."""
        return self.token_rows

    def forward(self, base: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        """Of token ids [...] or hidden states [..., D], and what `base` makes of them: the same
        with these rows in place of its own. May change `output`."""
        token_N, place_V = self.token_N, self.place_V
        assert isinstance(token_N, Tensor)
        assert isinstance(place_V, Tensor)
        rows_ND = self.token_rows.to(output.dtype)
        if given.is_floating_point():
            return output.index_copy_(-1, token_N, linear(given, rows_ND).to(output.dtype))
        place = place_V[given]
        own = embedding(place.clamp(min=0), rows_ND)
        scale = getattr(base, "embed_scale", None)  # Gemma's
        own = own if scale is None else own * torch.as_tensor(scale, device=own.device).to(own)
        return torch.where((place < 0).unsqueeze(-1), output, own)

    @torch.no_grad()
    def _check(self, base: nn.Module) -> None:
        """Fresh rows must give what the base gives."""
        token_N = self.token_N
        assert isinstance(token_N, Tensor)
        given = base(token_N)
        if not token_N.is_meta and not torch.equal(self(base, token_N, given.clone() * 0), given):
            raise InputError(
                f"train_tokens: {type(base).__name__} computes more than rows of its weight"
            )
