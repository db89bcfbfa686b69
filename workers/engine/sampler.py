"""Draws each request's next token by that request's own settings.

Tensor names: N rows that get a token, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from workers.engine.request import Sampling


@dataclass(frozen=True)
class Draw:
    """One token to draw: the request's settings, and the token's position in its sequence."""

    sampling: Sampling
    position: int

    def uniform(self) -> float:
        """A number in [0, 1) that depends on seed and position alone.

        So an answer that is taken up again, here or on another replica, goes on as it would have.
        """
        key = f"{self.sampling.seed}/{self.position}".encode()
        return int.from_bytes(blake2b(key, digest_size=6).digest()) / 2**48


GREEDY = Draw(Sampling(max_tokens=1, temperature=0.0), 0)


class Sampler(LogitsProcessor):  # type: ignore[misc]
    """The last logits processor of a greedy generation loop: leaves the drawn token alone.

    The loop has one configuration for all requests; with its own choice reduced to the one token
    that is left, every request has its own temperature, top_p and seed.
    """

    supports_continuous_batching: ClassVar[bool] = True

    def __init__(self) -> None:
        self.draws: Sequence[Draw] = ()
        """Row by row, what the coming step draws; the engine sets it before each forward pass."""

    def __call__(self, _input_ids: Tensor, scores_NV: Tensor) -> Tensor:
        draws = [*self.draws, *[GREEDY] * (len(scores_NV) - len(self.draws))]
        if all(draw.sampling.temperature == 0 for draw in draws):
            return scores_NV
        drawn_N = torch.where(
            _row(draws, "temperature", scores_NV) > 0,
            _sample(draws, scores_NV),
            scores_NV.argmax(-1),
        )
        return torch.full_like(scores_NV, -torch.inf).scatter_(1, drawn_N[:, None], 0.0)


def _row(draws: Sequence[Draw], name: str, like_NV: Tensor) -> Tensor:
    values = [getattr(draw.sampling, name) for draw in draws]
    return torch.tensor(values, dtype=torch.float32, device=like_NV.device)


def _sample(draws: Sequence[Draw], scores_NV: Tensor) -> Tensor:
    """Inverse of the cumulative distribution, over the tokens that top_p keeps."""
    # A temperature near zero would overflow float32; this one already takes the likeliest token.
    temperature_N = _row(draws, "temperature", scores_NV).clamp_min(1e-4)
    scaled_NV = (scores_NV - scores_NV.amax(-1, keepdim=True)) / temperature_N[:, None]
    share_NV, order_NV = scaled_NV.softmax(-1).sort(-1, descending=True)
    total_NV = share_NV.cumsum(-1)
    kept_NV = total_NV - share_NV < _row(draws, "top_p", scores_NV)[:, None]
    mass_N = (share_NV * kept_NV).sum(-1)
    uniform_N = torch.tensor([draw.uniform() for draw in draws], device=scores_NV.device)
    at_N = torch.searchsorted(total_NV, (uniform_N * mass_N)[:, None], right=True)
    last_N = kept_NV.sum(-1, keepdim=True) - 1  # rounding must not step past what top_p keeps
    return order_NV.gather(1, at_N.minimum(last_N).clamp_min(0)).squeeze(1)
