"""The optimizer of all layouts: which one, and how fast each of an adapter's parameters learns."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

from workers.config.optimizers import OPTIMIZERS, check_gpu, check_installed
from workers.config.train import OptimizerSpec

Groups = list[dict[str, Any]]


def rate_groups(named: Mapping[str, nn.Parameter], spec: OptimizerSpec) -> Groups:
    """Parameters by canonical name as an optimizer's groups, one for each learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault(_peak(name, spec), []).append(parameter)
    return [{"params": parameters, "lr": lr} for lr, parameters in groups.items()]


def make_optimizer(groups: Groups, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The one that the specification names. InputError where it does not run here."""
    kind = OPTIMIZERS[spec.name]
    check_installed(spec.name)
    check_gpu(spec.name, has_gpu=groups[0]["params"][0].is_cuda)
    options = {**kind.options, "weight_decay": spec.weight_decay}
    if kind.betas:
        options["betas"] = spec.decay_rates
    if kind.has_momentum:
        options["momentum"] = spec.momentum
    module, _, name = kind.implementation.partition(":")
    made = cast("type[torch.optim.Optimizer]", getattr(import_module(module), name))
    return made(groups, lr=spec.lr, **options)  # type: ignore[call-arg]


def _peak(name: str, spec: OptimizerSpec) -> float:
    """Peak learning rate of the parameter of this canonical name."""
    if name.endswith("router.weight"):
        return spec.lr * spec.router_lr_ratio
    if name.count(".") == 1:  # of no layer: a copy of the embedding, or of the head
        return spec.lr * spec.train_also_lr_ratio
    if name.endswith((".lora_B", ".lora_magnitude")):
        return spec.lr * spec.loraplus_lr_ratio
    return spec.lr
