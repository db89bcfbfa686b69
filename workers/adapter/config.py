"""adapter_config.json: MixLoRA's and PEFT's keys, read strictly. No torch.

What those keys have no word for stands under the one key `moetune`, as fields of AdapterSpec.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from workers.adapter import folder as folders
from workers.adapter import legacy
from workers.adapter.routing_keys import RoutingKeys, most_experts
from workers.adapter.targets import TargetKeys
from workers.config.adapter import AdapterSpec
from workers.config.base import Fraction, InputError, Size, Spec, validated
from workers.config.routing import UNROUTED, RoutingSpec

PeftType = Literal["MIXLORA", "MOELORA", "LORA"]
Alpha = Annotated[float, Field(gt=0)]
TokenId = Annotated[int, Field(ge=0)]

# Keys that may be set without changing what a trained adapter computes. Any other key that is
# set (layer_replication, lora_bias, …) would be silently wrong, so it is refused.
HARMLESS = frozenset(
    (
        *("auto_mapping", "peft_version", "revision", "inference_mode"),
        *("fan_in_fan_out", "megatron_core", "qalora_group_size", "eva_config"),
        *("ensure_weight_tying", "lora_init", "ephemeral_gpu_offload"),
        *("router_aux_loss_coef", "router_z_loss_coef", "router_loss"),
        *("initializer_factor", "ffn_dropout", "sparse_step"),
    )
)


def _plainly(patterns: Any) -> Any:
    """PEFT writes `.*\\.experts\\.down_proj` for stacked experts of some families: a plain name."""
    if not isinstance(patterns, dict):
        return patterns
    return {
        key.removeprefix(r".*\.").replace(r"\.", ".") if key.startswith(r".*\.") else key: value
        for key, value in patterns.items()
    }


# Fields of AdapterSpec that may stand under `moetune`.
OURS = frozenset((*RoutingSpec.model_fields, "use_dora", "shared_a", "goat_lr_ratio")) - {
    "experts",
    "routing",
}


class ExpertLora(Spec):
    """MixLoRA's own shape for the experts, where it differs from the attention's."""

    model_config = ConfigDict(extra="ignore")

    r: Size | None = None
    lora_alpha: Alpha | None = None
    use_rslora: bool | None = None


class AdapterConfig(RoutingKeys, TargetKeys):
    """The keys that we understand; `extra` are checked by `read_config`."""

    model_config = ConfigDict(extra="allow")

    peft_type: PeftType
    r: Size
    lora_alpha: Alpha
    lora_dropout: Fraction = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    """Means something in PEFT's files only: the reference implementation does not save the
    magnitudes, and takes the weights' own norms when it loads, which is LoRA without DoRA."""
    rank_pattern: Annotated[dict[str, Size], BeforeValidator(_plainly)] = Field(
        default_factory=dict
    )
    alpha_pattern: Annotated[dict[str, Alpha], BeforeValidator(_plainly)] = Field(
        default_factory=dict
    )
    bias: Literal["none"] = "none"
    init_lora_weights: bool | Literal["gaussian", "eva", "orthogonal"] = True
    """Others (PiSSA, OLoRA, …) change the base weights too, which no adapter file holds."""
    act_fn: str | None = None
    expert_lora: ExpertLora = ExpertLora()
    base_model_name_or_path: str | None = None
    task_type: Literal["CAUSAL_LM", "QUESTION_ANS"] | None = None
    modules_to_save: tuple[str, ...] | None = None
    """What the file has whole copies of: the base's embedding, or its output head."""
    trainable_token_indices: (
        Annotated[tuple[TokenId, ...], Field(min_length=1)]
        | Annotated[dict[str, tuple[TokenId, ...]], Field(min_length=1)]
        | None
    ) = None
    """Tokens of whose rows it has its own: of the embedding, or by the modules' names."""
    moetune: dict[str, Any] = Field(default_factory=dict)

    @property
    def copied(self) -> tuple[str, ...]:
        """Names of the modules of whose weight the file has a copy."""
        return tuple(map(_last_word, self.modules_to_save or ()))

    @property
    def fewest_slots(self) -> int:
        """How many experts a token has at least."""
        ours = {name: one for name, one in self.moetune.items() if name in RoutingSpec.model_fields}
        return RoutingSpec.model_construct(**{**self.routing_fields(), **ours}).fewest_slots

    def rank(self, path: str, routed: bool) -> int:
        """Rank of one linear as stored; `path` is its name in the model."""
        own = self.expert_lora.r if routed else None
        return own or _match(self.rank_pattern, path) or self.r

    def scale(self, path: str, routed: bool) -> float:
        """Scale of one linear's update as stored."""
        expert = self.expert_lora if routed else ExpertLora()
        alpha = expert.lora_alpha or _match(self.alpha_pattern, path) or self.lora_alpha
        rslora = self.use_rslora if expert.use_rslora is None else expert.use_rslora
        rank = self.rank(path, routed)
        return alpha / float(rank**0.5 if rslora else rank)

    @property
    def rows_of(self) -> tuple[str, ...]:
        """Names of the modules of which it has rows for tokens, where it says them."""
        given = self.trainable_token_indices
        return tuple(map(_last_word, given)) if isinstance(given, dict) else ()

    def tokens(self, where: str) -> tuple[int, ...]:
        """Those of whose rows the file has its own. InputError where they differ by module."""
        given = self.trainable_token_indices
        if not isinstance(given, dict):
            return given or ()
        first, *others = given.values()
        if any(one != first for one in others):
            raise InputError(
                f"{where}: trainable_token_indices has other tokens of {' than of '.join(given)}, "
                "which is not supported"
            )
        return first

    def spec(
        self, targets: Sequence[str], rank: int, where: str, parameters: Sequence[str] = ()
    ) -> AdapterSpec:
        """The adapter's shape on these linears and stacked `parameters`, with all ranks padded to
        `rank`; alpha is the configuration's own, changed so that the scale stays."""
        if not self.moetune.keys() <= OURS:
            raise InputError(f"{where}: moetune has {sorted(self.moetune.keys() - OURS)[0]}")
        if "goat_lr_ratio" in self.moetune and (self.rank_pattern or self.alpha_pattern):
            raise InputError(f"{where}: moetune.goat_lr_ratio cannot stand beside a pattern")
        padding = (rank / self.r) ** (0.5 if self.use_rslora else 1)
        shape = {
            "experts": "linear" if self.peft_type == "MOELORA" else "block",
            **(self.routing_fields() if self.num_experts > 1 else UNROUTED),
            "rank": rank,
            "alpha": self.lora_alpha * padding,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora and self.peft_type == "LORA",
            "dropout": self.lora_dropout,
            "target_modules": targets,
            "target_parameters": parameters,
            "train_also": self.copied,
            "train_tokens": self.tokens(where),
            "train_tokens_of": self.rows_of,
        }
        spec = validated(AdapterSpec, {**shape, **self.moetune}, where)
        if most_experts(spec) != self.num_experts:
            raise InputError(
                f"{where}: moetune.num_experts is {spec.num_experts}, but num_experts "
                f"{self.num_experts}"
            )
        return spec


def read_config(folder: Path) -> tuple[AdapterConfig, dict[str, Any]]:
    """The folder's configuration, understood and as it stands (an old layout's brought up to
    date)."""
    path = folders.required(folder, folders.CONFIG)
    values = legacy.modern_values(folders.read_json(path))
    known = HARMLESS | AdapterConfig.model_fields.keys()
    if unknown := [key for key, value in values.items() if value and key not in known]:
        raise _unsupported(path, unknown[0], values)
    config = validated(AdapterConfig, values, str(path))
    for key in ("layers_to_transform", "target_parameters"):
        if config.peft_type != "LORA" and values.get(key):
            raise _unsupported(path, key, values)
    if (config.peft_type == "LORA") != (config.num_experts == 1):
        raise InputError(
            f"{path}: num_experts is {config.num_experts}; LORA has one expert, "
            "MIXLORA and MOELORA have several"
        )
    for name in (*config.rank_pattern, *config.alpha_pattern):
        if not re.fullmatch(r"\^?[\w.]+", name):
            raise InputError(
                f"{path}: rank_pattern, alpha_pattern: {name!r} is no name of a linear"
            )
    return config, values


def _unsupported(path: Path, key: str, values: Mapping[str, Any]) -> InputError:
    return InputError(f"{path}: {key} is set to {values[key]!r}, which is not supported")


def _last_word(path: str) -> str:
    return path.rpartition(".")[2]


def _match(pattern: Mapping[str, Any], path: str) -> Any:
    """PEFT's rule: the first key that ends the path, at a dot, or with ^ is all of it."""
    for key, value in pattern.items():
        if path == key.removeprefix("^") or (f".{path}".endswith(f".{key}")):
            return value
    return None
