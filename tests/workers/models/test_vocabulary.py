"""Token ids that the embedding has no row for: another pad token, or a refusal before any run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.config.train import TrainSpec
from workers.models.base import check_base, load_base
from workers.models.vocabulary import with_token_ids

Change = Callable[[PreTrainedTokenizerBase], object]


@pytest.fixture
def changed(tiny_model_dir: Path, tmp_path: Path) -> Callable[[Change], ModelSpec]:
    """The tiny model with another tokenizer, and its embedding as it was."""

    def make(change: Change) -> ModelSpec:
        folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        change(tokenizer)
        tokenizer.save_pretrained(folder)
        return ModelSpec(path=str(folder), device="cpu")

    return make


def rows(spec: ModelSpec) -> int:
    found: int = json.loads((Path(spec.path) / "config.json").read_text())["vocab_size"]
    return found


def test_a_pad_token_beyond_the_embedding_gives_way(
    changed: Callable[[Change], ModelSpec],
) -> None:
    spec = changed(lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "[FILL]"}))
    assert AutoTokenizer.from_pretrained(spec.path).pad_token_id == rows(spec)
    base = load_base(spec)
    assert base.tokenizer.pad_token == "<|pad|>"
    assert base.tokenizer.pad_token_id < base.model.get_input_embeddings().num_embeddings


def test_the_end_of_text_fills_up_where_there_is_nothing_else(
    changed: Callable[[Change], ModelSpec],
) -> None:
    spec = changed(lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "[FILL]"}))
    path = Path(spec.path) / "tokenizer.json"
    text = path.read_text()
    for token in ("<|pad|>", "<|endoftext|>"):
        assert token in text
        text = text.replace(token, f"no {token}")
    path.write_text(text)
    tokenizer = check_base(spec)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("change", "token"),
    [
        (lambda tokenizer: tokenizer.add_tokens(["newword"]), "newword"),
        (lambda tokenizer: tokenizer.add_tokens(["one", "two"]), "two"),
        (lambda tokenizer: tokenizer.add_special_tokens({"eos_token": "[END]"}), "[END]"),
        (lambda tokenizer: tokenizer.add_special_tokens({"bos_token": "[BEGIN]"}), "[BEGIN]"),
    ],
)
def test_a_token_beyond_the_embedding_is_refused(
    changed: Callable[[Change], ModelSpec], change: Change, token: str
) -> None:
    spec = changed(change)
    with pytest.raises(InputError) as refused:
        check_base(spec)
    number = AutoTokenizer.from_pretrained(spec.path).convert_tokens_to_ids(token)
    assert str(refused.value) == (
        f"model.path: {spec.path}: its tokenizer's token {token!r} has id {number}, but its "
        f"embedding has {rows(spec)} rows"
    )


def test_tokens_of_a_template_are_refused_where_they_have_no_row(
    changed: Callable[[Change], ModelSpec],
) -> None:
    """The tokens of a chat were added, and the embedding not resized."""

    def change(tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")

    with pytest.raises(InputError, match=r"its tokenizer's token '<\|turn\|>' has id"):
        check_base(changed(change))


def test_a_special_token_that_nothing_yields_needs_no_row(
    changed: Callable[[Change], ModelSpec],
) -> None:
    """Gemma 3's 1B has one for images, which it cannot see."""
    spec = changed(lambda one: one.add_special_tokens({"extra_special_tokens": ["<image>"]}))
    assert AutoTokenizer.from_pretrained(spec.path).convert_tokens_to_ids("<image>") == rows(spec)
    check_base(spec)


def test_a_pad_id_of_the_model_itself_is_refused(changed: Callable[[Change], ModelSpec]) -> None:
    """torch's embedding would not be made with it."""
    spec = changed(lambda _: None)
    path = Path(spec.path) / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"pad_token_id": rows(spec)}))
    with pytest.raises(InputError, match=r"pad_token_id in its config\.json is \d+, but its embed"):
        load_base(spec)


def test_tokens_by_name_get_their_ids(make_spec: Callable[..., TrainSpec]) -> None:
    tokenizer = check_base(make_spec().model)
    e = tokenizer.get_vocab()["e"]
    named = with_token_ids(make_spec(adapter__train_tokens=["e", 9]), tokenizer)
    assert named.adapter.train_tokens == (e, 9)
    assert with_token_ids(named, tokenizer) == named
    assert with_token_ids(make_spec(), tokenizer) == make_spec()
    with pytest.raises(InputError, match=r"train_tokens: '<x>' is no token of the base's token"):
        with_token_ids(make_spec(adapter__train_tokens=["e", "<x>"]), tokenizer)
    with pytest.raises(InputError, match=rf"train_tokens has {e} twice"):
        with_token_ids(make_spec(adapter__train_tokens=["e", e]), tokenizer)
