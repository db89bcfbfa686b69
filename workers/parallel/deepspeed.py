"""DeepSpeed's ZeRO: the optimizer's state in shards (1), gradients too (2), and the weights (3).

It averages over the workers what we sum, so losses are multiplied by their number. Tensors of
ZeRO-3 are empty outside of the forward and backward pass: nothing here reads one that is not
gathered. deepspeed is imported inside functions: that takes seconds, and only this layout needs it.
"""

import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.config.optimizers import OPTIMIZERS
from workers.config.train import TrainSpec
from workers.injection.adapted_stack import AdaptedStack
from workers.injection.adapter import Adapter
from workers.injection.wrapper import AdaptedModule
from workers.parallel.optimizer import make_optimizer, rate_groups
from workers.parallel.update import State
from workers.parallel.world import World

BUCKET = 50_000_000
"""Most gradients that are sent as one message."""


def start() -> None:
    """Let deepspeed use the process group that is there."""
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It says at each message that it calls functions by their former names.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    # On a CPU it would compile, for minutes, an all-reduce for workers of one machine. It asks this
    # table whether it can, and there is no option to say that it need not.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


class DeepSpeedUpdate:
    """An `Update` through a DeepSpeed engine, for one adapter on `model`."""

    independent = False
    """Its hooks send gradients within the backward pass, and keep count of them."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        spec: TrainSpec,
        world: World,
        *,
        keep_whole: int = 100_000,
    ) -> None:
        """With ZeRO-3 `model` must have been read in partitions (models.sharded_loading), and
        tensors of up to `keep_whole` numbers stay whole: norms and routers cost more to gather than
        to keep."""
        import deepspeed

        start()
        self.world, self._stage = world, spec.parallel.zero_stage
        self._named = dict(adapter.named_parameters())
        self._moments = OPTIMIZERS[spec.optimizer.name].kept(spec.optimizer.momentum)
        parameters = list(self._named.values())
        zero: dict[str, Any] = {
            "stage": self._stage,
            "reduce_bucket_size": min(adapter.num_parameters(), BUCKET),
            "memory_efficient_linear": False,
            "stage3_param_persistence_threshold": keep_whole,
        }
        if spec.parallel.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if self._stage == 3:
            _announce(model)
        # ZeRO-1 and 2 look after the adapter alone, and the base is none of their business.
        self._engine, *_ = deepspeed.initialize(
            model=model if self._stage == 3 else nn.ParameterList(parameters),
            optimizer=make_optimizer(rate_groups(self._named, spec.optimizer), spec.optimizer),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": zero,
                "zero_force_ds_cpu_optimizer": False,  # That one is compiled, too.
                "zero_allow_untested_optimizer": True,
            },
        )
        self._zero: Any = self._engine.optimizer
        self.optimizer = self._zero.optimizer

    def backward(self, loss: Tensor) -> None:
        """See Update. Which micro-batch is the last shows in `reduce` alone."""
        # The engine would do this in its own forward, through which it passes models on; ours is
        # called directly.
        self._zero.clear_backward_seen_flag()
        self._engine.set_gradient_accumulation_boundary(False)
        self._engine.backward(loss * self.world.size, scale_wrt_gas=False)

    def reduce(self) -> None:
        """See Update: ZeRO-2 and 3 have sent the gradients already."""
        self._engine.set_gradient_accumulation_boundary(True)
        if self._stage == 1:
            self._engine.allreduce_gradients()
        else:
            self._zero.finalize_gradient_accumulation_boundary()

    def clip(self, max_norm: float) -> Tensor:
        """See Update: the gradients themselves are scaled with the step. Infinite where any number
        is not finite."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        self._zero.clip_grad = max_norm if math.isfinite(max_norm) else 0.0
        if self._stage < 3:
            norm: Tensor = self._zero.scaled_global_norm()
        else:
            norm = combine_grad_norm_groups(self._zero._get_norm_groups())
        return norm

    def apply(self) -> None:
        """See Update."""
        self._engine.step()

    def drop(self) -> None:
        """See Update."""
        self._zero.zero_grad(set_to_none=True)
        self._zero.averaged_gradients.clear()
        if self._stage < 3:
            self._zero.all_grad_tensors.clear()
            self._zero.micro_step_id = -1  # The next micro-batch is the first of a step.

    def whole_adapter(self) -> dict[str, Tensor]:
        """See Update."""
        return {name: self._gathered(one) for name, one in self._named.items()}

    def whole_state(self) -> State:
        """See Update."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state = {"adapter": self.whole_adapter()}
        if not self.optimizer.state:
            return state
        self._link_state()
        for step in [kept["step"] for kept in self.optimizer.state.values() if "step" in kept][:1]:
            state["step"] = {name: step.clone().cpu() for name in self._named}
        for key in self._moments:
            state[key] = {
                name: safe_get_full_optimizer_state(one, key).cpu().clone()
                for name, one in self._named.items()
            }
        return state

    def load_whole_state(self, state: State) -> None:
        """See Update: every worker must have read it."""
        for name, parameter in self._named.items():
            self._overwrite(parameter, state["adapter"][name])
        self._zero.refresh_fp32_params()
        if state.keys() == {"adapter"}:
            return
        for flat in self._flat_masters():
            kept = self.optimizer.state[flat]
            for step in list(state.get("step", {}).values())[:1]:
                kept["step"] = step.to(flat.device, copy=True)
            for key in self._moments:
                kept.setdefault(key, torch.zeros_like(flat))
        self._link_state()
        for key in self._moments:
            self._fill(key, state[key])

    def _link_state(self) -> None:
        """Let ZeRO-1 and 2 find each parameter's part of the optimizer's state. By themselves they
        look for it once, after the first group's first step, when the others have none yet."""
        if self._stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _flat_masters(self) -> list[Tensor]:
        """What the optimizer sees: this worker's shards, one after the other."""
        groups = "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"
        masters: list[Tensor] = getattr(self._zero, groups[self._stage == 3])
        return masters

    def _fill(self, key: str, whole: Mapping[str, Tensor]) -> None:
        """Set one of the optimizer's averages."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        for name, parameter in self._named.items():
            if self._stage < 3:
                safe_set_full_optimizer_state(parameter, whole[name], key)
                continue
            size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            flat = whole[name].flatten()
            padded = nn.functional.pad(flat, (0, size * self.world.size - len(flat)))
            safe_set_local_optimizer_state(parameter, padded[self.world.rank * size :][:size], key)

    def _gathered(self, parameter: nn.Parameter) -> Tensor:
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameter):
            return parameter.detach().cpu().clone()

    def _overwrite(self, parameter: nn.Parameter, whole: Tensor) -> None:
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0), torch.no_grad():
            parameter.copy_(whole)


def _announce(model: nn.Module) -> None:
    """An adapter's layer reads the weights of the modules inside it, which are not called; and
    stacked experts, those of the base."""
    import deepspeed

    for module in (module for module in model.modules() if isinstance(module, AdaptedModule)):
        if isinstance(module, AdaptedStack):
            for parameter in module.base.parameters(recurse=False):
                deepspeed.zero.register_external_parameter(module, parameter)
        for layer in module.adapters.values():
            for inner in (module for module in layer.modules() if module is not layer):
                for parameter in inner.parameters(recurse=False):
                    deepspeed.zero.register_external_parameter(layer, parameter)
