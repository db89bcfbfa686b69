"""How many workers train one adapter, and what lies where."""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import PositiveInt, Spec


class WorkerRange(Spec):
    """An elastic number of workers: as many as the cluster has room for."""

    min: PositiveInt = 1
    """Training waits while there is room for fewer."""
    max: PositiveInt
    """More are never started."""
    check_every_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two looks whether there is room for another number. A change starts the
    workers again, from the last checkpoint."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, but must be at most max, which is {self.max}")
        return self


class ParallelSpec(Spec):
    """How many processes train one adapter."""

    workers: PositiveInt | WorkerRange = 1
    """Data-parallel workers of one run, one GPU each where there are GPUs. {min: 1, max: 4} goes on
    with fewer after the loss of a node, and with more when there is room again."""
    hang_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """A worker in which nothing moves for so many seconds is ended, with the names of those that
    lag; the run then goes on from its last checkpoint."""
    threads: PositiveInt | None = None
    """CPU threads of each worker; None takes the cores that Ray gives it."""
    ep_size: PositiveInt = 1
    """Expert parallelism: so many workers share the experts of one copy between them; 1 gives every
    worker all experts. Worth it where experts times rank exceed about 512."""
    exchange: Literal["tokens", "weights", "auto"] = "auto"
    """What travels between the workers of one copy. tokens: hidden states to their experts' owners
    and back; weights: the experts' weights, just before their use; auto: what the run's own routed
    layers take less time with, for a micro-batch that both are tried on when it starts."""
    strategy: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    """How the rest lies over the workers. ddp: a copy on each; fsdp2: everything in shards;
    deepspeed: by zero_stage."""
    zero_stage: Literal[1, 2, 3] = 2
    """With strategy deepspeed, what is in shards: 1 the optimizer's state, 2 gradients too, 3 also
    the weights, the frozen base's with them."""
    offload_optimizer: bool = False
    """With strategy deepspeed, keep the optimizer's state in the memory of the CPU."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while a run goes on."""
        return self.min_workers != self.max_workers

    @property
    def shards_base(self) -> bool:
        """Whether the frozen base lies in shards over several workers."""
        return self.strategy == "fsdp2" or (self.strategy == "deepspeed" and self.zero_stage == 3)

    @property
    def min_workers(self) -> int:
        """The fewest workers of the run."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def max_workers(self) -> int:
        """The most workers of the run."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_elastic and self.ep_size > 1:
            raise ValueError(
                f"ep_size is {self.ep_size}, but must be 1 with workers from {self.min_workers} to "
                f"{self.max_workers}: it does not divide each of them"
            )
        if self.min_workers % self.ep_size:
            raise ValueError(
                f"ep_size is {self.ep_size}, but must divide workers, which is {self.workers}"
            )
        if self.strategy == "deepspeed" and self.ep_size > 1:
            raise ValueError(
                f"ep_size is {self.ep_size}, but must be 1 with strategy deepspeed, which would "
                "average the gradients of different experts; take ddp or fsdp2"
            )
        if self.offload_optimizer and self.strategy != "deepspeed":
            raise ValueError(f"offload_optimizer is for strategy deepspeed, not {self.strategy}")
        return self


@dataclass(frozen=True)
class PassLimit:
    """At most; None: any number. One row is a pass, however long it is."""

    rows: int | None = None
    tokens: int | None = None
    """With the padding."""

    def held(self, rows: int, longest: int) -> int:
        """Of so many rows, the first of which is the longest: those that one pass takes."""
        if self.tokens is not None:
            return min(max(self.tokens // longest, 1), rows)
        return min(self.rows or rows, rows)

    def half_of(self, rows: int, longest: int) -> "PassLimit":
        """Half of a pass of so many rows of that length, counted as this is."""
        if self.tokens is not None:
            return PassLimit(tokens=rows * longest // 2)
        return PassLimit(rows=rows // 2)

    def as_dict(self) -> dict[str, int | None]:
        """For a checkpoint."""
        return asdict(self)

    def __str__(self) -> str:
        """`4 rows`, `1024 tokens`, `all rows`."""
        for count, what in ((self.tokens, "token"), (self.rows, "row")):
            if count is not None:
                return f"{count} {what}" if count == 1 else f"{count} {what}s"
        return "all rows"


NO_LIMIT = PassLimit()
