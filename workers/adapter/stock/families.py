"""The sparse twins: which family of mixtures computes what a dense family with our experts does.

A twin has the dense family's attention, norms and embedding, and in place of each feed-forward
block a router and experts: softmax over the top k, renormalised. Names on disk are those that every
engine reads (transformers stacks experts when it loads them). No torch.

A new family is an entry of TWINS and a case of tests/workers/adapter/stock/test_families.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
LINEARS = (GATE, UP, DOWN)
"""A dense block's, of every family here: `model.layers.{i}.mlp.{name}.weight`."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""Of every family here."""
SHARED_WIDTH = 256
"""Of a shared expert of zeros: the least that tensor parallelism and llama.cpp's blocks divide."""

Count = Literal["experts", "slots", "width"]


@dataclass(frozen=True)
class ExpertTensor:
    """One tensor on disk, of one expert (`{e}` in its name) or of all, stacked."""

    name: str
    """Below the block."""
    linears: tuple[str, ...]
    """Whose rows follow one another in it."""

    @property
    def stacked(self) -> bool:
        """Whether it holds all experts."""
        return "{e}" not in self.name


@dataclass(frozen=True)
class Twin:
    """How a dense family's mixture is written."""

    model_type: str
    architecture: str
    block: str
    """What stands in the place of a layer's `mlp`."""
    router: str
    experts: tuple[ExpertTensor, ...]
    counts: Mapping[str, Count]
    """Fields of its configuration that say how many experts there are, of what width, and how many
    a token has."""
    sets: Mapping[str, Any] = field(default_factory=dict)
    """Other fields, which the dense family does not have."""
    asks: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields of the base's configuration, and what the twin can do of each; the first is what a
    base without the field has."""
    shared_expert: bool = False
    """Whether it has a shared expert beside the routed ones, which is written as zeros."""


_SILU = {"hidden_act": ("silu", "swish")}
_NO_BIAS = {"attention_bias": (False, None), "mlp_bias": (False, None)}
_NO_WINDOW = {"use_sliding_window": (False, None)}
_NORMALISED = {"norm_topk_prob": True}
_QWEN = {**_NORMALISED, "decoder_sparse_step": 1, "mlp_only_layers": []}
_BY_PROJECTION = tuple(ExpertTensor(f"experts.{{e}}.{one}.weight", (one,)) for one in LINEARS)

_MIXTRAL = Twin(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    block="block_sparse_moe",
    router="gate.weight",
    experts=(
        ExpertTensor("experts.{e}.w1.weight", (GATE,)),
        ExpertTensor("experts.{e}.w3.weight", (UP,)),
        ExpertTensor("experts.{e}.w2.weight", (DOWN,)),
    ),
    counts={"num_local_experts": "experts", "num_experts_per_tok": "slots"},
    asks={**_SILU, **_NO_BIAS},
)
_QWEN_COUNTS: dict[str, Count] = {
    "num_experts": "experts",
    "num_experts_per_tok": "slots",
    "moe_intermediate_size": "width",
}

TWINS: dict[str, Twin] = {
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
    "qwen2": Twin(
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        block="mlp",
        router="gate.weight",
        experts=_BY_PROJECTION,
        counts=_QWEN_COUNTS,
        sets={**_QWEN, "qkv_bias": True, "shared_expert_intermediate_size": SHARED_WIDTH},
        asks={**_SILU, **_NO_WINDOW},
        shared_expert=True,
    ),
    "qwen3": Twin(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        block="mlp",
        router="gate.weight",
        experts=_BY_PROJECTION,
        counts=_QWEN_COUNTS,
        sets=_QWEN,
        asks={**_SILU, **_NO_WINDOW},
    ),
    "granite": Twin(
        model_type="granitemoe",
        architecture="GraniteMoeForCausalLM",
        block="block_sparse_moe",
        router="router.layer.weight",
        experts=(
            ExpertTensor("input_linear.weight", (GATE, UP)),
            ExpertTensor("output_linear.weight", (DOWN,)),
        ),
        counts={"num_local_experts": "experts", "num_experts_per_tok": "slots"},
        asks={**_SILU, **_NO_BIAS},
    ),
    "olmo2": Twin(
        model_type="flex_olmo",
        architecture="FlexOlmoForCausalLM",
        block="mlp",
        router="gate.weight",
        experts=_BY_PROJECTION,
        counts={"num_experts": "experts", "num_experts_per_tok": "slots"},
        sets=_NORMALISED,
        asks=_SILU,
    ),
}
"""By the dense family's `model_type`."""
