"""What the endpoint's processes need to know."""

import gc
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from orchestrator.config.serve import ServeSpec
from orchestrator.replicas.golden import EXACT, ROUNDED, Golden
from workers.adapter.manifest import base_id
from workers.config.base import Spec
from workers.config.engines import ENGINES
from workers.config.model import ModelSpec
from workers.engine.request import Limits

Base = tuple[str | None, ...]


def _factory(known: Mapping[str, Any]) -> str:
    return ENGINES[known["serve"].engine] if "serve" in known else ""


class EndpointSpec(Spec):
    """Everything that the endpoint's processes need to know. No key is in it."""

    serve: ServeSpec
    model: ModelSpec
    store_url: Annotated[str, Field(repr=False)]
    """Database of the registry, with its password: the gateway has no other way to it."""
    storage: str
    """Folder of the registry's versions."""
    engine: str = Field(default_factory=_factory)
    """Factory of `serve.engine`, as ENGINES names it where the specification is made."""
    accepted_key: str | None = None
    """`orchestrator.auth.keys.key_hash` of the key."""

    @property
    def base_id(self) -> str:
        """What requests call the bare base."""
        return base_id(self.model.path)

    @property
    def base(self) -> Base:
        """What tells its base from another endpoint's: answers differ between them."""
        model = self.model
        return model.path, model.revision, model.dtype, model.quantization

    def limits(self) -> Limits:
        """The engine's share of the serving specification."""
        return Limits(
            max_batch_tokens=self.serve.max_batch_tokens,
            cache_tokens=self.serve.cache_tokens,
            max_new_tokens=self.serve.max_new_tokens,
            max_prompt_tokens=self.serve.limits.max_prompt_tokens,
            schemas=self.serve.limits.schemas,
            request_seconds=self.serve.limits.request_seconds,
            max_queued=self.serve.max_queued_requests,
            max_adapters=self.serve.max_adapters,
            share_prefixes=self.serve.share_prefixes,
        )

    def golden(self) -> Golden:
        """What every replica is asked before a version gets traffic."""
        asked, dtype = self.serve.rollout, self.model.settled_dtype
        if dtype is None and not self.serve.gpus_per_replica:  # Ray hides the machine's from it
            dtype = "float32"
        exact = dtype == "float32" and self.model.quantization is None
        tolerance = EXACT if exact else ROUNDED
        return Golden(asked.golden_prompt, asked.golden_tokens, tolerance)


class Serving(NamedTuple):
    """What a gateway says of itself to those who started it."""

    needs_key: bool
    """Whether who asks needs a key: the operator's, or one that was made."""
    refused: str | None
    """Why the name that is asked for is not served."""


def begun() -> None:
    """This process of the endpoint holds what it keeps to its end. The garbage collector looks at
    that no more: each of its full turns took a second in which nothing else ran, and what requests
    leave behind brings them about."""
    gc.collect()
    gc.freeze()
