"""Which exchange a run takes, from its adapter, its rows and its wires."""

from torch import nn

from workers.config.train import TrainSpec
from workers.injection.adapter import Adapter
from workers.injection.mixed_batch import Layer
from workers.layers.experts import BlockExperts
from workers.parallel.cost import (
    ExchangeChoice,
    Passes,
    RoutedPlace,
    faster,
    token_bytes,
    weight_bytes,
)
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.mesh import Mesh
from workers.parallel.trial import MicroBatch, measured


def routed_places(adapter: Adapter, *, rank_space: bool) -> list[RoutedPlace]:
    """The adapter's routed places; `rank_space`: it comes back too."""
    found = (_place(layer, rank_space=rank_space) for layer in adapter.layers)
    return [place for place in found if place is not None]


def share_out(
    spec: TrainSpec, model: nn.Module, adapter: Adapter, mesh: Mesh, micro: MicroBatch
) -> ExpertShards:
    """The one adapter on `model` with its experts in shards over `mesh.ep`, by the exchange that
    the run takes. A collective of all workers."""
    if mesh.ep.size == 1:
        return ExpertShards(adapter, mesh)
    passes = Passes.of(spec)
    predicted = _predicted(spec, adapter, mesh.ep.size, micro)
    choice = _asked_for(spec, predicted)
    if choice is not None:
        return ExpertShards(adapter, mesh, choice, passes)
    shards = ExpertShards(adapter, mesh, ExchangeChoice("weights"), passes)
    shards.take(faster(predicted, measured(model, adapter, shards, micro)))
    return shards


def _predicted(
    spec: TrainSpec, adapter: Adapter, workers: int, micro: MicroBatch
) -> dict[str, float]:
    """By exchange, what each of the workers that share the experts sends for one micro-batch."""
    passes, size = Passes.of(spec), micro.dtype.itemsize
    if spec.adapter.target_parameters:
        return {"weights": weight_bytes(_stacked_places(adapter), workers, size)}
    places = routed_places(adapter, rank_space=passes.rank_space)
    # DoRA's weights travel as the optimizer holds them.
    weight_size = next(adapter.parameters()).itemsize if spec.adapter.use_dora else size
    return {
        "tokens": token_bytes(places, workers, micro.tokens, size, recomputed=passes.recomputed),
        "weights": weight_bytes(places, workers, weight_size),
    }


def _asked_for(spec: TrainSpec, predicted: dict[str, float]) -> ExchangeChoice | None:
    """What the specification settles; None leaves it to a trial."""
    if spec.adapter.use_dora:
        return ExchangeChoice("weights", "adapter.use_dora allows no other", predicted)
    if spec.adapter.target_parameters:
        return ExchangeChoice("weights", "adapter.target_parameters allows no other", predicted)
    if spec.parallel.exchange != "auto":
        return ExchangeChoice(spec.parallel.exchange, "parallel.exchange asks for it", predicted)
    return None


def _stacked_places(adapter: Adapter) -> list[RoutedPlace]:
    """Updates of the base's own experts: tokens stay where they are."""
    found = []
    for layer in adapter.layers:
        parameters = list(layer.expert_parameters().values())
        if parameters:
            numbers = sum(one.numel() for one in parameters)
            found.append(RoutedPlace(len(parameters[0]), slots=1, row=0, expert_numbers=numbers))
    return found


def _place(layer: Layer, *, rank_space: bool) -> RoutedPlace | None:
    router = layer.router
    if router is None:
        return None
    parameters = layer.expert_parameters()
    lora_B = next(one for name, one in parameters.items() if name.endswith("lora_B"))
    width = router.weight.shape[1]
    out = width if isinstance(layer, BlockExperts) else lora_B.shape[1]
    compared = len(layer.compared) * router.slots * lora_B.shape[2]
    return RoutedPlace(
        experts=len(router.weight),
        slots=router.slots,
        row=width + out,
        expert_numbers=sum(one.numel() for one in parameters.values()),
        rank_space=compared if rank_space else 0,
    )
