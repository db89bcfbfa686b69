"""Which engines compute something else than an exported checkpoint says.

Each was read in the engine's source. What an engine refuses is no remark: it says so itself. No
torch.

What an engine leaves out is an entry of REMARKS, and a case of
tests/workers/adapter/stock/test_remarks.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]
"""A checkpoint's config.json."""


@dataclass(frozen=True)
class Remark:
    """What one engine leaves out."""

    model_types: tuple[str, ...]
    """Of which checkpoints."""
    applies: Callable[[Values], bool]
    """Whether leaving it out changes what they compute."""
    text: str


def remark(values: Values) -> str | None:
    """What to know before this checkpoint is given to an engine; None where nothing is known."""
    found = [
        one.text
        for one in REMARKS
        if values.get("model_type") in one.model_types and one.applies(values)
    ]
    return "; ".join(found) or None


def _chooses(values: Values) -> bool:
    """Whether a token has some of the experts only."""
    return bool(values["num_experts_per_tok"] < values["num_experts"])


def _scales_positions(values: Values) -> bool:
    return values.get("rope_scaling") is not None


def _has_odd_heads(values: Values) -> bool:
    usual = values["hidden_size"] // values["num_attention_heads"]
    return bool((values.get("head_dim") or usual) != usual)


def _has_window(values: Values) -> bool:
    return values.get("sliding_window") is not None


_OWN = "--model-impl transformers is the way round it"
_SGLANG = f"SGLang's own implementation ignores {{}} ({_OWN})"
_ODD_HEADS = "head_dim, which is not hidden_size / num_attention_heads here"

REMARKS = (
    Remark(
        ("qwen2_moe",),
        _chooses,
        "llama.cpp does not renormalise the gates of Qwen2-MoE (it ignores norm_topk_prob): its "
        "answers differ; vLLM and transformers compute the same",
    ),
    Remark(
        ("mixtral", "granitemoe"),
        _scales_positions,
        _SGLANG.format("the scaling of positions (rope_scaling)"),
    ),
    Remark(
        ("mixtral",),
        _has_odd_heads,
        _SGLANG.format(_ODD_HEADS),
    ),
    Remark(
        ("qwen2_moe", "granitemoe"),
        _has_odd_heads,
        f"SGLang's and vLLM's own implementations ignore {_ODD_HEADS} ({_OWN})",
    ),
    Remark(("mixtral",), _has_window, _SGLANG.format("sliding_window")),
    Remark(
        ("mixtral",),
        _has_window,
        "llama.cpp's converter leaves out sliding_window: answers differ where a text is longer",
    ),
    Remark(
        ("granitemoe",),
        _has_odd_heads,
        f"llama.cpp's converter leaves out {_ODD_HEADS}",
    ),
)
