"""What an endpoint's operator says about roll-outs, as `serve.rollout` and `serve.guard`."""

from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Listed, NonNegative, PositiveInt, Spec

AtLeastOne = Annotated[float, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class RolloutSpec(Spec):
    """How a version comes to its traffic."""

    golden_prompt: Annotated[str, Field(min_length=1)] = "The quick brown fox"
    """Every replica answers it with a version before that gets traffic: with finite numbers, all
    of them alike, and as when the version was first acknowledged on such hardware. Another prompt
    begins anew; it should be one that a version answers with more than its end."""
    golden_tokens: PositiveInt = 8
    """Tokens of that answer."""


class GuardSpec(Spec):
    """When a version is taken out of service without anybody being asked.

    The guard judges what this gateway has routed to a version by its name: requests that were
    answered, and those that failed by the version's own fault (the engine, or numbers that are not
    finite). Requests that pin a version never count, nor does what is the request's affair (its
    schema, its limits, a client that reads slowly or leaves, an answer too long for its time), nor
    full queues and lost replicas.
    """

    on: bool = True
    """False: nothing is judged, and plans go by time alone."""
    window_requests: PositiveInt = 500
    """A version is judged by its last so many requests …"""
    window_seconds: Annotated[float, Field(gt=0)] = 600
    """… of the last so many seconds."""
    min_requests: PositiveInt = 20
    """With fewer, neither error rate nor latency is judged; of latency, with fewer that can be
    compared. One answer with numbers that are not finite is enough in any case."""
    max_error_rate: Rate = 0.05
    """Failing share of requests that is too much: when it is surely higher (exact binomial test,
    p < 0.001), and higher than with the gateway's other requests."""
    latency_ratio: AtLeastOne = 2.0
    """What the engine computes for a token, of prompts and of answers, may take so many times as
    long as the champion's at like work: as many tokens, as much company in the batch, about the
    same time; of a new champion, as its predecessor's. Surely more than half of the requests must
    take longer (sign test, p < 0.001). Time in queues, and readers', is not in it."""
    probation_seconds: NonNegative = 3600
    """A new champion's latency is compared for so long, and not held against it where the gateway's
    other names have become as slow."""
    drift: Literal["off", "canary", "all"] = "canary"
    """Whose routing may not drift from the training's; a canary's may where the champion's does,
    since the requests are what has changed then."""
    fallback: Listed[Literal["previous", "base"]] = ("previous", "base")
    """Where a champion's name falls back to: first here, and if the guard acts again before
    anybody else did, then there. Empty: nowhere; a canary still ends."""
    plan_requests: Annotated[int, Field(ge=0)] = 20
    """A plan's next step waits until the canary has answered so many requests of its own share in
    this one."""
