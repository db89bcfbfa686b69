"""What requests may cost."""

from typing import Annotated

from pydantic import Field

from orchestrator.config.limits import AllowanceText
from workers.config.train import PositiveInt, Spec
from workers.engine.request import SchemaLimits


class LimitsSpec(Spec):
    """Limits of requests and of those who send them. Longest answer and queue are the engine's."""

    max_body_bytes: PositiveInt = 2**20
    """Largest body of a request. Ray Serve's proxy holds to what it was when Serve started."""
    max_prompt_tokens: PositiveInt | None = None
    """Longest prompt in tokens; None is what context and cache leave."""
    schemas: SchemaLimits = SchemaLimits()
    """JSON schemas that answers are to obey."""
    request_seconds: Annotated[float, Field(gt=0)] = 300
    """From a request's arrival to its end; what takes longer is cut off with 504."""
    rate: AllowanceText | None = None
    """Requests, as in 60/min, of each key that has no rate of its own, and of all that send none
    together; the operator's key has no limit."""
    quota: AllowanceText | None = None
    """Tokens, as in 1000000/day, of each key that has no quota of its own; likewise."""
