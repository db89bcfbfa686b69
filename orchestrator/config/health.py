"""How routers are watched while they serve (`serve.health`)."""

from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Fraction, NonNegative, PositiveInt, Spec


class HealthSpec(Spec):
    """Router health and drift of the versions that an endpoint serves."""

    window: Annotated[int, Field(ge=10)] = 100
    """Requests of a window: each whole one is judged for drift once."""
    windows: PositiveInt = 10
    """Whole windows kept of each version; health is told of these and the one that fills."""
    versions: PositiveInt = 32
    """Versions watched at once; the one that answered longest ago makes room."""
    reference: Literal["auto", "training", "served"] = "auto"
    """What windows are held against. training: the rows of validation, as the version's manifest
    keeps their routing; served: the first requests that the version answered here; auto: training,
    or served where the manifest has no such rows."""
    reference_requests: Annotated[int, Field(ge=30)] = 200
    """Requests that make the reference where it is taken from those served."""
    confidence: Annotated[Fraction, Field(gt=0.5)] = 0.995
    """A window has drifted where fewer than one in 1 / (1 - confidence) windows of the reference
    itself would lie as far from it."""
    sustained: PositiveInt = 2
    """Whole windows in a row beyond the limit that make a drift; fewer are a suspicion."""
    tolerance: NonNegative = 0.002
    """Jensen-Shannon divergence of a layer's load (0 … ln 2) that is no drift however certain it
    is: answers are never quite the texts that validation had. 0.002 is about 3 % of the tokens
    that go to one expert of eight instead of another."""
