"""Whether adapter and rows fit a base model, asked before any weights are read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from workers.adapter.files import AdapterFiles, check_activation
from workers.adapter.modules import check_modules
from workers.adapter.stacked.names import MATRICES
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.config.train import TrainSpec
from workers.injection.copies import plan_copies
from workers.injection.inject import check_places
from workers.injection.layer_kinds import layer_kinds
from workers.injection.targets import decoder_layers, stacks, weight_sizes
from workers.models.base import loading_options, readable
from workers.models.packing import check_packing
from workers.models.skeleton import skeleton


@dataclass(frozen=True)
class Fit:
    """Where adapters would have their routers."""

    layers: int
    routed: Mapping[AdapterSpec, list[str]]

    def routers(self, adapter: AdapterSpec) -> list[str]:
        """Places, as in `layers.0.mlp`, of one of the adapters that were asked about."""
        several = {i for i in range(self.layers) if adapter.experts_in(i, self.layers) > 1}
        found = self.routed[_shape(adapter, self.layers)]
        return [path for path in found if int(path.split(".")[1]) in several]


def check_fit(spec: TrainSpec, adapters: Iterable[AdapterSpec] = ()) -> Fit:
    """Raise InputError where the adapter, or the longest row that the data may have, does not fit
    models of this configuration. `adapters` are asked about in place of the spec's own.

    Makes one decoder layer of each kind with random weights, and the rest of the model without any.
    """
    adapters = tuple(adapters) or (spec.adapter,)
    config = base_config(spec.model)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context and spec.data.max_length > context:
        raise InputError(
            f"data.max_length is {spec.data.max_length}, but the base model reads at most "
            f"{context} tokens"
        )
    if spec.model.quantization or getattr(config, "quantization_config", None):
        _check_numbers(adapters)
    bare = skeleton(config)
    for adapter in adapters:
        plan_copies(bare, adapter)
    _, layers = decoder_layers(bare)
    _check_shares(layers, adapters, spec.parallel.ep_size)
    shapes = dict.fromkeys(_shape(adapter, len(layers)) for adapter in adapters)
    kinds = {shape: layer_kinds(layers, shape) for shape in shapes}
    _fill([layers[at] for at in set().union(*kinds.values())])
    return Fit(len(layers), {shape: _routed(layers, kinds[shape], shape) for shape in shapes})


def _fill(layers: Iterable[nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers:
            for weight in layer.to_empty(device="cpu").eval().parameters():
                weight.normal_(0.0, 0.05, generator=generator)


def _routed(layers: list[nn.Module], kinds: list[int], adapter: AdapterSpec) -> list[str]:
    """Where it has routers, each layer being like the one of its kind that is asked."""
    asked = check_places({at: layers[at] for at in set(kinds)}, adapter, len(layers))
    return [
        path.replace(f"layers.{like}.", f"layers.{at}.", 1)
        for at, like in enumerate(kinds)
        for path in asked
        if path.startswith(f"layers.{like}.")
    ]


def _check_shares(layers: list[nn.Module], adapters: Iterable[AdapterSpec], workers: int) -> None:
    """The base's own experts, where adapters have a part for each, must share out evenly."""
    if workers == 1 or not any(adapter.target_parameters for adapter in adapters):
        return
    for layer in layers:
        for stack in stacks(layer, "").values():
            if stack.experts % workers:
                raise InputError(
                    f"parallel.ep_size is {workers}, but must divide the base's {stack.experts} "
                    "experts, which adapter.target_parameters adapts"
                )


def check_packable(model: ModelSpec) -> None:
    """Raise InputError where models of this configuration do not keep packed rows apart."""
    bare = skeleton(base_config(model), torch.bfloat16)  # the one type of all kernels without data
    check_packing(bare)


def check_adapter(model: ModelSpec, files: AdapterFiles, where: str) -> None:
    """Raise InputError where an adapter does not lie on the linears of the base model, or has
    numbers of an embedding or head that it lacks. What only the weights show, `load_into` refuses.
    """
    config = base_config(model)
    bare = skeleton(config)
    check_activation(config, files, where)
    if files.config.peft_type == "LORA":
        check_modules(bare, files.tensors, files.layer_list, files.config, where)
    try:
        plan_copies(bare, files.spec)
    except InputError as error:
        raise InputError(f"{where}: does not fit {model.path}: {error}") from None
    _, layers = decoder_layers(bare)
    sizes = weight_sizes(layers)
    for name, tensor in files.tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf not in MATRICES:
            continue
        wanted = sizes.get(path)
        if wanted is None:
            raise InputError(
                f"{where}: does not fit {model.path}: it adapts {path}, and the {len(layers)} "
                f"layers there have no such linear"
            )
        mine, theirs = (
            (tensor.shape[2], wanted[0]) if leaf == "lora_A" else (tensor.shape[1], wanted[1])
        )
        if len(tensor) != wanted[2] > 1:
            raise InputError(
                f"{where}: does not fit {model.path}: {name} is made for {len(tensor)} experts, "
                f"but there are {wanted[2]}"
            )
        if mine != theirs:
            raise InputError(
                f"{where}: does not fit {model.path}: {name} is made for {mine} features, but that "
                f"linear has {theirs}"
            )


def base_config(model: ModelSpec) -> PretrainedConfig:
    """What the base's files say of it."""
    with readable(model):
        return AutoConfig.from_pretrained(model.path, **loading_options(model))


def _check_numbers(adapters: Iterable[AdapterSpec]) -> None:
    if any(adapter.use_dora for adapter in adapters):
        raise InputError(
            "use_dora: needs the base's weights as numbers, but model.quantization, or the "
            "model's own files, pack them"
        )


def _shape(adapter: AdapterSpec, layers: int) -> AdapterSpec:
    """What decides whether an adapter fits a layer, and nothing else, so that it is asked once:
    with the least that has a router, if any of the layers has one."""
    most = max(adapter.experts_in(layer, layers) for layer in range(layers))
    return AdapterSpec(
        experts=adapter.experts,
        num_experts=min(most, 2),
        top_k=1,
        rank=1,
        use_dora=adapter.use_dora,
        target_modules=adapter.target_modules,
        exclude_modules=adapter.exclude_modules,
        target_parameters=adapter.target_parameters,
    )
