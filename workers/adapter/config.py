"""adapter_config.json: MixLoRA's and PEFT's keys, read strictly and written back. No torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from workers.adapter import folder as folders
from workers.spec import AdapterSpec, Fraction, InputError, PositiveInt, Spec, validated

PeftType = Literal["MIXLORA", "MOELORA", "LORA"]

# Keys that may be set without changing what a trained adapter computes. Any other key that is
# set (use_dora, layer_replication, jitter_noise, …) would be silently wrong, so it is refused.
HARMLESS = frozenset(
    (
        *("auto_mapping", "peft_version", "revision", "inference_mode", "exclude_modules"),
        *("fan_in_fan_out", "layers_pattern", "megatron_core", "qalora_group_size", "eva_config"),
        *("ensure_weight_tying", "lora_init"),
        *("router_aux_loss_coef", "router_init_range", "router_loss"),
    )
)


class ExpertLora(Spec):
    """MixLoRA's own shape for the experts, where it differs from the attention's."""

    model_config = ConfigDict(extra="ignore")

    r: PositiveInt | None = None
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    use_rslora: bool | None = None
    use_dora: Literal[False] = False


class AdapterConfig(Spec):
    """The keys that we understand; `extra` are checked by `read_config`."""

    model_config = ConfigDict(extra="allow")

    peft_type: PeftType
    r: PositiveInt
    lora_alpha: Annotated[float, Field(gt=0)]
    lora_dropout: Fraction = 0.0
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    target_modules: Annotated[list[str], Field(min_length=1)] | dict[str, bool] | str
    init_lora_weights: bool | Literal["gaussian", "eva", "orthogonal"] = True
    """Others (PiSSA, OLoRA, …) change the base weights too, which no adapter file holds."""
    num_experts: PositiveInt = 1
    top_k: PositiveInt | None = None
    routing_strategy: Literal["mixlora"] | None = None
    act_fn: str | None = None
    expert_lora: ExpertLora = ExpertLora()
    base_model_name_or_path: str | None = None
    task_type: Literal["CAUSAL_LM"] | None = None

    @property
    def targets(self) -> tuple[str, ...] | None:
        """Names of the adapted linears; None for a pattern, where only the tensors tell."""
        if isinstance(self.target_modules, str):
            return None
        if isinstance(self.target_modules, dict):
            return tuple(name for name, wanted in self.target_modules.items() if wanted)
        return tuple(self.target_modules)

    @property
    def expert_rank(self) -> int:
        """Rank of the experts as stored."""
        return self.expert_lora.r or self.r

    def spec(self, targets: Sequence[str], where: str) -> AdapterSpec:
        """The adapter's shape. Its rank is the larger of the attention's and the experts' (the
        tensors are padded to it), its scale the attention's."""
        rank = max(self.r, self.expert_rank)
        padding = (rank / self.r) ** (0.5 if self.use_rslora else 1)
        shape = {
            "experts": "linear" if self.peft_type == "MOELORA" else "block",
            "num_experts": self.num_experts,
            "top_k": self.top_k or min(2, self.num_experts),
            "rank": rank,
            "alpha": self.lora_alpha * padding,
            "use_rslora": self.use_rslora,
            "dropout": self.lora_dropout,
            "target_modules": targets,
        }
        return validated(AdapterSpec, shape, where)

    def expert_gain(self) -> float:
        """The experts' scale over the attention's; their B matrices are multiplied by it."""
        expert = self.expert_lora
        alpha = expert.lora_alpha or self.lora_alpha
        rslora = self.use_rslora if expert.use_rslora is None else expert.use_rslora
        return (alpha / _divisor(self.expert_rank, rslora)) / (
            self.lora_alpha / _divisor(self.r, self.use_rslora)
        )


def read_config(folder: Path) -> tuple[AdapterConfig, dict[str, Any]]:
    """The folder's configuration, understood and as it stands."""
    path = folders.required(folder, folders.CONFIG)
    values = folders.read_json(path)
    config = validated(AdapterConfig, values, str(path))
    unknown = [k for k, v in (config.model_extra or {}).items() if v and k not in HARMLESS]
    if unknown:
        raise InputError(
            f"{path}: {unknown[0]} is set to {values[unknown[0]]!r}, which is not supported"
        )
    if (config.peft_type == "LORA") != (config.num_experts == 1):
        raise InputError(
            f"{path}: num_experts is {config.num_experts}; LORA has one expert, "
            "MIXLORA and MOELORA have several"
        )
    return config, values


def peft_type(spec: AdapterSpec) -> PeftType:
    """The format that an adapter of this shape is written in."""
    if spec.num_experts == 1:
        return "LORA"
    return "MIXLORA" if spec.experts == "block" else "MOELORA"


def config_values(spec: AdapterSpec, linears: Sequence[str], base: str) -> dict[str, Any]:
    """The content of `adapter_config.json`, in the reference implementation's key order.

    `linears` are the adapted linears' names, which all-linear is written out as.
    """
    kind = peft_type(spec)
    targets = linears if spec.target_modules == "all-linear" else spec.target_modules
    routed = {
        "routing_strategy": "mixlora",
        "num_experts": spec.num_experts,
        "top_k": spec.top_k,
    }
    return {
        "use_rslora": spec.use_rslora,
        "bias": "none",
        "peft_type": kind,
        "r": spec.rank,
        # The reference implementation asserts an int.
        "lora_alpha": int(spec.alpha) if spec.alpha.is_integer() else spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": list(targets),
        **({} if kind == "LORA" else routed),
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
    }


def _divisor(rank: int, rslora: bool) -> float:
    return float(rank**0.5) if rslora else float(rank)
