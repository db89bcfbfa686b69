"""What an engine would compute otherwise is said; the texts are of no other checkpoint."""

from pathlib import Path

import pytest

from tests.workers.adapter.stock.models import planned, write_adapter, write_base

SCALED = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}
GATES = ("llama.cpp does not renormalise the gates",)
POSITIONS = ("SGLang's own implementation ignores the scaling of positions",)
HEADS = ("SGLang's own implementation ignores head_dim",)
BOTH_HEADS = ("SGLang's and vLLM's own implementations ignore head_dim",)
WINDOW = (
    "SGLang's own implementation ignores sliding_window",
    "llama.cpp's converter leaves out sliding_window",
)
ALL = {"top_k": 4}
PLAIN = {"num_experts": 1, "top_k": 1}


@pytest.mark.parametrize(
    ("family", "fields", "shape", "said"),
    [
        ("llama", {}, {}, ()),
        ("llama", {"tie_word_embeddings": True}, {}, ()),
        ("llama", SCALED, {}, POSITIONS),
        ("llama", {"head_dim": 12}, {}, HEADS),
        ("llama", {**SCALED, "head_dim": 12}, {}, POSITIONS + HEADS),
        ("llama", {**SCALED, "head_dim": 12}, PLAIN, ()),
        ("mistral", {"sliding_window": 6}, {}, WINDOW),
        ("mistral", {"sliding_window": None}, {}, ()),
        ("qwen2", {}, {}, GATES),
        ("qwen2", {}, ALL, ()),
        ("qwen2", {}, PLAIN, ()),
        ("qwen2", SCALED, ALL, ()),
        ("qwen2", {"head_dim": 12}, {}, GATES + BOTH_HEADS),
        ("qwen3", {**SCALED, "head_dim": 16}, {}, ()),
        ("granite", {}, {}, ()),
        ("granite", SCALED, {}, POSITIONS),
        (
            "granite",
            {"head_dim": 12},
            {},
            (*BOTH_HEADS, "llama.cpp's converter leaves out head_dim"),
        ),
        ("olmo2", SCALED, {}, ()),
    ],
)
def test_command_and_card_say_what_an_engine_leaves_out(
    tmp_path: Path,
    family: str,
    fields: dict[str, object],
    shape: dict[str, object],
    said: tuple[str, ...],
) -> None:
    base = write_base(tmp_path / "base", family, **fields)
    plan = planned(base, write_adapter(base, tmp_path / "adapter", **shape))
    remark = plan.facts.as_dict()["remark"]
    parts = remark.split("; ") if remark else []
    for text in said:
        assert any(part.startswith(text) for part in parts), (text, remark)
    assert remark is None or sum(part.startswith(("SGLang", "llama.cpp")) for part in parts) == len(
        said
    )
    plan.write(tmp_path / "out", print)
    card = (tmp_path / "out" / "README.md").read_text()
    assert (f"**{remark}.**" in card) == bool(said)
