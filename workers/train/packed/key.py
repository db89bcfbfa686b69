"""Which runs can be packed, and which of them together. Without torch."""

from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.train.used import inputs_key


def pack_key(spec: TrainSpec) -> tuple[object, ...]:
    """Equal for runs that can share a pack: one base, the same rows, as many workers."""
    return *inputs_key(spec), spec.parallel


def check_packs(spec: TrainSpec) -> None:
    """InputError for a run that cannot be packed, with the reason."""
    parallel, why = spec.parallel, ""
    if parallel.strategy != "ddp":
        why = f"parallel.strategy {parallel.strategy} lays one run's base out in shards"
    elif parallel.ep_size > 1:
        why = "with parallel.ep_size above 1 each run's experts lie on several workers"
    elif parallel.is_elastic:
        why = "the workers of a pack must not change while its runs go on"
    elif spec.model.compile:
        why = "model.compile would compile each set of adapters anew"
    elif spec.adapter.train_also:
        why = "each run's own copy of adapter.train_also is as large as what packs share"
    elif spec.adapter.train_tokens:
        why = "a pack makes logits with one head, and adapter.train_tokens give each run its own"
    if why:
        raise InputError(f"search.pack: {why}; leave search.pack at 1")
