"""Draws each request's next token by that request's own settings.

Tensor names: N rows that get a token, n rows of them that want something, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from workers.engine.request import RequestError, Sampling, TokenLogprobs
from workers.engine.structured_output.schema import Schema, refused_schema


@dataclass(eq=False)
class SamplingState:
    """How a request's tokens are drawn, and what its reader is to be told of them."""

    sampling: Sampling
    schema: Schema | None = None
    logprobs: deque[TokenLogprobs] = field(default_factory=deque)
    """Of drawn tokens that have not reached the reader."""
    error: RequestError | None = None
    """Why no token could be drawn."""

    @property
    def is_plain(self) -> bool:
        """Whether it takes the likeliest token, and tells nothing of it."""
        asked = self.sampling
        return asked.temperature == 0 and asked.logprobs is None and self.schema is None


@dataclass(frozen=True)
class SampleRequest:
    """One token to draw: for whom, and its position in the sequence."""

    state: SamplingState
    position: int

    @property
    def sampling(self) -> Sampling:
        """The request's settings."""
        return self.state.sampling

    def uniform(self) -> float:
        """A number in [0, 1) that depends on seed and position alone.

        So an answer that is taken up again, here or on another replica, goes on as it would have.
        """
        key = f"{self.sampling.seed}/{self.position}".encode()
        return int.from_bytes(blake2b(key, digest_size=6).digest()) / 2**48


GREEDY = Sampling(max_tokens=1, temperature=0.0)
"""For rows whose request has gone."""


class Sampler(LogitsProcessor):  # type: ignore[misc]
    """The last logits processor of a greedy generation loop: leaves the drawn token alone.

    The loop has one configuration for all requests; with its own choice reduced to the one token
    that is left, every request has its own settings. A request that no token can be drawn for gets
    an error, and any token; the others go on.
    """

    supports_continuous_batching: ClassVar[bool] = True

    def __init__(self, computed: Callable[[], object] = lambda: None) -> None:
        """`computed` is called when a pass's logits are there, before anything is drawn."""
        self._computed = computed
        self.requests: Sequence[SampleRequest] = ()
        """Row by row, what the coming step draws; the engine sets it before each forward pass."""

    def __call__(self, _input_ids: Tensor, scores_NV: Tensor) -> Tensor:
        spare = len(scores_NV) - len(self.requests)
        requests = [*self.requests, *[SampleRequest(SamplingState(GREEDY), 0)] * spare]
        scores_NV = _finite(requests, scores_NV)  # reads them: a GPU has computed them by then
        self._computed()
        if all(request.state.is_plain for request in requests):
            return scores_NV  # whose own choice is the right one
        allowed_NV = _obey(requests, scores_NV)
        drawn_N = allowed_NV.argmax(-1)
        if any(request.sampling.temperature > 0 for request in requests):
            hot_N = _row([request.sampling.temperature for request in requests], scores_NV) > 0
            drawn_N = torch.where(hot_N, _sample(requests, allowed_NV), drawn_N)
        _tell(requests, scores_NV, drawn_N)
        return torch.full_like(scores_NV, -torch.inf).scatter_(1, drawn_N[:, None], 0.0)


def _row(values: Sequence[float], like_NV: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like_NV.device)


def _finite(requests: Sequence[SampleRequest], scores_NV: Tensor) -> Tensor:
    """The scores, zero in rows that are not all finite: these requests fail."""
    finite_N = scores_NV.sum(-1).isfinite()  # reads once, and writes nothing as wide
    if bool(finite_N.all()):
        return scores_NV
    finite_N = scores_NV.isfinite().all(-1)  # a sum of large numbers may overflow
    for request, finite in zip(requests, finite_N.tolist(), strict=True):
        if not finite:
            request.state.error = RequestError(
                "the model's logits are not all finite numbers", None, 500, "non_finite"
            )
    return scores_NV.where(finite_N[:, None], 0.0)


def _obey(requests: Sequence[SampleRequest], scores_NV: Tensor) -> Tensor:
    """The scores, minus infinity where a request's schema forbids the token."""
    if all(request.state.schema is None for request in requests):
        return scores_NV
    masked_NV = scores_NV.clone()
    for request, scores_V in zip(requests, masked_NV, strict=True):
        if request.state.schema is None:
            continue
        allowed_V = request.state.schema.allowed()
        if allowed_V.any():
            scores_V.masked_fill_(~allowed_V.to(scores_V.device), -torch.inf)
        else:
            why = request.state.schema.error or "no token of this model fits it"
            request.state.error = request.state.error or refused_schema(why)
    return masked_NV


def _sample(requests: Sequence[SampleRequest], scores_NV: Tensor) -> Tensor:
    """Inverse of the cumulative distribution, over the tokens that top_k, then top_p, keep."""
    settings = [request.sampling for request in requests]
    # A temperature near zero would overflow float32; this one already takes the likeliest token.
    temperature_N = _row([one.temperature for one in settings], scores_NV).clamp_min(1e-4)
    scaled_NV = (scores_NV - scores_NV.amax(-1, keepdim=True)) / temperature_N[:, None]
    share_NV, order_NV = scaled_NV.softmax(-1).sort(-1, descending=True)
    columns = scores_NV.shape[1]
    top_N = torch.tensor([min(one.top_k or columns, columns) for one in settings])
    place_V = torch.arange(columns, device=scores_NV.device)
    share_NV = share_NV * (place_V < top_N.to(scores_NV.device)[:, None])
    total_NV = share_NV.cumsum(-1)
    part_N = _row([one.top_p for one in settings], scores_NV) * total_NV[:, -1]
    kept_NV = (total_NV - share_NV < part_N[:, None]) & (share_NV > 0)
    mass_N = (share_NV * kept_NV).sum(-1)
    uniform_N = torch.tensor([request.uniform() for request in requests], device=scores_NV.device)
    at_N = torch.searchsorted(total_NV, (uniform_N * mass_N)[:, None], right=True)
    last_N = kept_NV.sum(-1, keepdim=True) - 1  # rounding must not step past what is kept
    return order_NV.gather(1, at_N.minimum(last_N).clamp_min(0)).squeeze(1)


def _tell(requests: Sequence[SampleRequest], scores_NV: Tensor, drawn_N: Tensor) -> None:
    """Log-probabilities to those who want them, and the drawn tokens to the schemas."""
    wanted = [row for row, request in enumerate(requests) if request.sampling.logprobs is not None]
    if wanted:
        logprob_nV = scores_NV[wanted].log_softmax(-1)
        most = min(max(requests[row].sampling.logprobs or 0 for row in wanted), logprob_nV.shape[1])
        top, ids = (one.tolist() for one in logprob_nV.topk(most))
        drawn_n = drawn_N[wanted]
        own = logprob_nV.gather(1, drawn_n[:, None]).squeeze(1).tolist()
        for at, (row, token) in enumerate(zip(wanted, drawn_n.tolist(), strict=True)):
            count = requests[row].sampling.logprobs or 0
            pairs = tuple(zip(ids[at][:count], top[at][:count], strict=True))
            requests[row].state.logprobs.append(TokenLogprobs(token, own[at], pairs))
    for request, token in zip(requests, drawn_N.tolist(), strict=True):
        if request.state.schema is not None and request.state.error is None:
            request.state.schema.push(token)
