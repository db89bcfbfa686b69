"""The optimizers that a run may name, in one table, and what each reads. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from workers.config.base import InputError
from workers.config.extras import installing

ADAM_BETAS = (0.9, 0.999)
FLOAT = 4.0
"""Bytes of a float32 number."""
PACKED = 1 + FLOAT / 256
"""Of one in 8 bits: 256 share a scale."""
EVERYWHERE = ("ddp", "fsdp2", "deepspeed")


@dataclass(frozen=True)
class Optimizer:
    """What all but the step itself need to know of an optimizer."""

    implementation: str
    """The class as "module:Class"; imported when it is made."""
    betas: tuple[float, float] | None = None
    """Its decay rates where the job has AdamW's; None: it has none."""
    has_momentum: bool = False
    """Whether it reads `momentum`."""
    moments: tuple[str, ...] = ()
    """What it keeps of each weight, by the names in its state; a momentum comes to these."""
    bytes_of_moment: float = FLOAT
    factored: bool = False
    """Keeps moments of rows and columns in place of each weight's."""
    strategies: tuple[str, ...] = EVERYWHERE
    """Values of `parallel.strategy` with which it takes one process's steps. Where fsdp2 is not
    among them, a step of one number depends on others, and experts cannot be shared out either."""
    package: str | None = None
    """What has to be installed beside moetune's own."""
    needs_gpu: bool = False
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Further arguments of the class."""

    def kept(self, momentum: float) -> tuple[str, ...]:
        """Names of what it keeps of each weight."""
        return (*self.moments, "momentum_buffer") if momentum else self.moments

    def bytes_of_weight(self, momentum: float, rank: int) -> float:
        """What its state takes for each weight of an adapter of this rank."""
        if self.factored:
            return FLOAT / rank
        return len(self.kept(momentum)) * self.bytes_of_moment


def _packed(name: str, moments: tuple[str, ...], betas: tuple[float, float]) -> Optimizer:
    """One of bitsandbytes', in 8 bits."""
    return Optimizer(
        f"bitsandbytes.optim:{name}",
        betas,
        moments=moments,
        bytes_of_moment=PACKED,
        strategies=("ddp",),
        package="bitsandbytes",
        needs_gpu=name.startswith("Paged"),
    )


_ADAM = ("exp_avg", "exp_avg_sq")
_FUSED = MappingProxyType({"fused": True})
_BNB_ADAM, _BNB_LION, _LION_BETAS = ("state1", "state2"), ("state1",), (0.9, 0.99)

OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer("torch.optim:AdamW", ADAM_BETAS, moments=_ADAM, options=_FUSED),
    "adam": Optimizer("torch.optim:Adam", ADAM_BETAS, moments=_ADAM, options=_FUSED),
    # DeepSpeed makes it anew, with one rate for all groups.
    "adagrad": Optimizer("torch.optim:Adagrad", moments=("sum",), strategies=("ddp", "fsdp2")),
    "rmsprop": Optimizer("torch.optim:RMSprop", has_momentum=True, moments=("square_avg",)),
    "sgd": Optimizer("torch.optim:SGD", has_momentum=True),
    "adafactor": Optimizer("torch.optim:Adafactor", factored=True, strategies=("ddp",)),
    "adamw_8bit": _packed("AdamW8bit", _BNB_ADAM, ADAM_BETAS),
    "paged_adamw_8bit": _packed("PagedAdamW8bit", _BNB_ADAM, ADAM_BETAS),
    "lion_8bit": _packed("Lion8bit", _BNB_LION, _LION_BETAS),
    "paged_lion_8bit": _packed("PagedLion8bit", _BNB_LION, _LION_BETAS),
}


def check_installed(name: str) -> None:
    """InputError where an optimizer's package is missing."""
    package = OPTIMIZERS[name].package
    if package and find_spec(package) is None:
        raise InputError(
            f"optimizer.name is {name}, which needs {package}: {installing('quantized')}"
        )


def check_gpu(name: str, *, has_gpu: bool) -> None:
    """InputError where an optimizer needs a GPU that is not there."""
    if OPTIMIZERS[name].needs_gpu and not has_gpu:
        raise InputError(
            f"optimizer.name is {name}, which needs a GPU; {name.removeprefix('paged_')} does not"
        )
