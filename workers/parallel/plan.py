"""Which exchange a run takes, from its adapter, its rows and its wires."""

import torch

from workers.inject import Adapter
from workers.layers.experts import BlockExperts
from workers.pack import Layer
from workers.parallel.bandwidth import measure
from workers.parallel.cost import Passes, RoutedPlace, choose, token_bytes, weight_bytes
from workers.parallel.mesh import Mesh
from workers.parallel.shards import ExpertShards
from workers.spec import TrainSpec


def routed_places(adapter: Adapter, *, contrastive: bool) -> list[RoutedPlace]:
    """The adapter's routed places; `contrastive`: rank space comes back too."""
    found = (_place(layer, contrastive=contrastive) for layer in adapter.layers)
    return [place for place in found if place is not None]


def share_out(
    spec: TrainSpec, adapter: Adapter, mesh: Mesh, tokens: float, dtype: torch.dtype
) -> ExpertShards:
    """The adapter with its experts in shards over `mesh.ep`, by the exchange that the run takes.

    Its workers each have so many tokens in a micro-batch, padding included, as activations of type
    `dtype`. A collective of all workers.
    """
    if mesh.ep.size == 1:
        return ExpertShards(adapter, mesh)
    places = routed_places(adapter, contrastive=spec.loss.contrastive_weight > 0)
    use_dora = spec.adapter.use_dora  # Its weights travel as the optimizer holds them.
    predicted = {
        "tokens": token_bytes(places, mesh.ep.size, tokens, dtype.itemsize),
        "weights": weight_bytes(places, mesh.ep.size, 4 if use_dora else dtype.itemsize),
    }
    bandwidth = measure(mesh.ep, next(adapter.parameters()).device)
    choice = choose("weights" if use_dora else spec.parallel.exchange, predicted, bandwidth)
    return ExpertShards(adapter, mesh, choice, Passes.of(spec))


def _place(layer: Layer, *, contrastive: bool) -> RoutedPlace | None:
    router = layer.router
    if router is None:
        return None
    parameters = layer.expert_parameters()
    lora_B = next(one for name, one in parameters.items() if name.endswith("lora_B"))
    width = router.weight.shape[1]
    out = width if isinstance(layer, BlockExperts) else lora_B.shape[1]
    rank_space = len(layer.compared) * router.slots * lora_B.shape[2]
    return RoutedPlace(
        experts=len(router.weight),
        slots=router.slots,
        row=width + out,
        expert_numbers=sum(one.numel() for one in parameters.values()),
        rank_space=rank_space if contrastive else 0,
    )
