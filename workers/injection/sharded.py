"""A base that lies in shards over several workers, seen from outside: whole for a moment."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def is_sharded(model: nn.Module) -> bool:
    """Whether each forward pass gathers weights from all workers: they must run this model the same
    number of times."""
    cut = getattr(model, "is_distributed_loading_by_transformers", False)
    return bool(cut) or any(hasattr(weight, "ds_id") for weight in model.parameters())


@contextmanager
def whole(layer: nn.Module) -> Iterator[None]:
    """A decoder layer has all its weights for the length of the block, on every worker; a
    collective where they are in shards. They are to be read only."""
    partitioned = [weight for weight in layer.parameters() if hasattr(weight, "ds_id")]
    if partitioned:
        import deepspeed

        with deepspeed.zero.GatheredParameters(partitioned):
            yield
        return
    unshard = getattr(layer, "unshard", None)  # FSDP2 gives it to the modules that it cuts.
    if unshard is None:
        yield
        return
    unshard()
    try:
        yield
    finally:
        layer.reshard()  # type: ignore[operator]
