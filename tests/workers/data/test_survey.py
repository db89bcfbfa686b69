"""All rows are looked at before a run, and what encoding does to them is counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.encode import Encoder
from workers.data.store.token_store import TokenStore
from workers.data.survey import Survey

Rows = Sequence[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def encoder(
    tokenizer: PreTrainedTokenizerBase, folder: Path, train: Rows, *validation: Any, **changes: Any
) -> Encoder:
    """Of two files, with one token a letter, in plain text."""
    for name, rows in (("train", train), ("validation", validation or [good()])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation")}
    whole = {**data, "template": "plain", "max_length": 10, **changes}
    return Encoder(tokenizer, DataSpec.model_validate(whole))


def good(prompt: str = "pppp", target: str = "ttt", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "target": target, **more}


def test_the_figures_are_those_of_the_rows(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [good(), good("p" * 9), good(), good("p" * 20, "ttttt"), good("pp", "a<|im_end|>")]
    counts = Survey(encoder(tokenizer, tmp_path, rows, max_length=20)).training()
    # A target has its end of text beside its letters; two prompts are longer than their room.
    assert counts.rows == 5
    assert (counts.prompts_cut, counts.targets_cut, counts.skipped) == (1, 0, 0)
    assert counts.longest == 26
    assert counts.longest_row.endswith("train.jsonl: line 4")
    assert (counts.tokens, counts.target_tokens) == (8 + 13 + 8 + 20 + 14, 4 + 4 + 4 + 6 + 12)
    assert counts.target_share == pytest.approx(30 / 63)
    assert counts.control_tokens == 1
    said = str(counts)
    for part in ("5 rows", "1 lose the beginning", "26 tokens", "line 4", "48%", "line 5"):
        assert part in said
    assert counts.as_dict()["target_share"] == counts.target_share


BAD = [
    (good("p", "t" * 10), "its target has 11 tokens, and leaves no room"),
    (good(""), "its prompt is empty"),
    ({"prompt": "p"}, "no column 'target'"),
    (good(metric="beauty"), "beauty"),
    (
        good(metric="acc", choices=["ttt", "b" * 11]),
        "its target has 11 tokens, and leaves no room",
    ),
]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_a_row_far_behind_is_named_as_the_first_would_be(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, bad: dict[str, Any], said: str
) -> None:
    rows = [*([good()] * 40), bad]
    looked = Survey(encoder(tokenizer, tmp_path, [good()], *rows))
    assert looked.training().rows == 1
    with pytest.raises(InputError) as caught:
        looked.validation()
    assert "validation.jsonl: line 41: " in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_what_a_run_takes_is_encoded(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [good(), good(target="t" * 10), good(task="u")]
    looked = Survey(encoder(tokenizer, tmp_path, rows, *rows, max_rows=1))
    assert looked.training().rows == 1
    assert looked.validation(rows_per_task=1).rows == 2
    with pytest.raises(InputError, match="line 2"):
        looked.validation()


def test_all_rows_are_encoded_and_it_tells_how_far_it_is(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [good() for _ in range(1000)]
    rows[501] = good("pp", "t" * 6)
    told: list[tuple[str, int]] = []
    looked = encoder(tokenizer, tmp_path, rows)
    counts = Survey(looked, lambda *how_far: told.append(how_far)).training()
    assert counts.rows == 1000
    assert counts.longest_row.endswith("line 502")
    assert {0, 256, 512, 768} <= {done for _, done in told}
    assert {source for source, _ in told} == {looked.data.train}
    rows[501] = good("pp", "t" * 10)
    with pytest.raises(InputError, match="line 502: its target"):
        Survey(encoder(tokenizer, tmp_path, rows)).training()


def test_what_was_looked_at_is_found_encoded(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the run, and by whoever looks again."""
    looked = encoder(tokenizer, tmp_path, [good("pp", "a<|im_end|>")], max_length=20)
    first = Survey(looked).training()
    monkeypatch.delattr(Encoder, "some_kept")
    assert Survey(looked).training() == first
    assert first.control_tokens == 1
    [example] = TokenStore(looked).training().examples
    assert len(example) == first.tokens
