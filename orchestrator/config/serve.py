"""How the winner is served."""

from typing import Annotated

from pydantic import Field

from orchestrator.config.audit import AuditSpec
from orchestrator.config.health import HealthSpec
from orchestrator.config.limits import LimitsSpec
from orchestrator.config.rollout import GuardSpec, RolloutSpec
from orchestrator.config.tls import TlsSpec
from workers.config.base import Listed, NonNegative, PositiveInt, Spec
from workers.config.engines import EngineName

Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]
HostName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.:_-]*$")]
Port = Annotated[int, Field(ge=0, le=65535)]


class ServeSpec(Spec):
    """The endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback a key is required."""
    port: Port = 8000
    """Port of the gateway; 0 takes a free one."""
    replicas: PositiveInt = 1
    """Engine replicas."""
    cpus_per_replica: NonNegative = 1
    """CPU cores reserved for each replica."""
    gpus_per_replica: NonNegative = 0
    """GPUs reserved for each replica."""
    wait_seconds: NonNegative = 600
    """How long the endpoint waits for room for its replicas, which an autoscaler is asked for."""
    engine: EngineName = "continuous"
    """What generates: `continuous` is transformers' continuous batching with the trained layers."""
    max_batch_tokens: PositiveInt = 512
    """Tokens of one forward pass, over all requests."""
    cache_tokens: PositiveInt = 8192
    """Tokens that the key-value cache of a replica holds."""
    max_new_tokens: PositiveInt = 256
    """Longest answer; also the default of a request that names none."""
    max_queued_requests: PositiveInt = 64
    """Requests that may wait on a replica; beyond that 429 is the answer to the latest of the key
    that has the most there."""
    max_adapters: PositiveInt = 8
    """Adapter versions that a replica holds at once; the idle one used longest ago makes room, but
    none that a name leads to for a version that a request names exactly."""
    share_prefixes: bool = False
    """Whether what one key's prompt has computed serves another's: quicker where keys ask alike,
    and the time of an answer then tells whether somebody has asked the same."""
    rollout: RolloutSpec = RolloutSpec()
    """How a version comes to its traffic."""
    guard: GuardSpec = GuardSpec()
    """When a version is taken out of service by itself."""
    health: HealthSpec = HealthSpec()
    """Router health and drift."""
    audit: AuditSpec = AuditSpec()
    """The audit log."""
    limits: LimitsSpec = LimitsSpec()
    """Limits of requests, and of those who send them."""
    tls: TlsSpec = TlsSpec()
    """HTTPS instead of HTTP, where its files are named."""
    examples: Annotated[int, Field(ge=0, le=20)] = 0
    """So many questions of a version's validation rows (`evaluation.samples`) are offered on the
    page, to everybody who may ask there; 0 offers none."""
    cors_origins: Listed[Origin] = ()
    """Other sites whose pages may call the endpoint, as in https://app.example; none by default."""
    allowed_hosts: Listed[HostName] = ()
    """Names that requests may be sent to while no key is set, besides this machine's own
    (localhost, 127.0.0.1, [::1]), as in chat.example behind a proxy; in small letters, without a
    port. With a key any name will do."""
