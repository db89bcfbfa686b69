"""A chat template of one's own: named by its file, held as text."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import dump_job, load_job
from workers.config.base import InputError, override, validated
from workers.config.data import DataSpec

TEXT = "{% for m in messages %}{{ m['content'] }}{% endfor %} see https://example.org"


def spec(**fields: Any) -> DataSpec:
    return validated(DataSpec, {"train": "t", "validation": "v", **fields}, "job")


def test_a_file_is_read_once_and_its_text_travels(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(TEXT)
    made = spec(chat_template=str(path))
    path.unlink()
    assert made.chat_template == TEXT
    assert override(made, {"max_length": 9}, "x").chat_template == TEXT
    assert DataSpec.model_validate(made.model_dump(mode="json")) == made


def test_a_job_names_it_beside_itself_and_tells_its_text(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "own.jinja").write_text(TEXT)
    job = tmp_path / "jobs" / "job.yaml"
    data = {"train": "t.jsonl", "validation": "v.jsonl", "chat_template": "own.jinja"}
    job.write_text(json.dumps({"name": "x", "train": {"model": {"path": "m"}, "data": data}}))
    loaded = load_job(job)
    assert loaded.train.data.chat_template == TEXT
    job.write_text(dump_job(loaded))
    assert load_job(job).train.data.chat_template == TEXT
    other = tmp_path / "other.jinja"
    other.write_text(TEXT * 2)
    changed = load_job(job, [f"data.chat_template={other}"])
    assert changed.train.data.chat_template == TEXT * 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "own.jinja: cannot be read: No such file or directory"),
        (b"no template", "own.jinja: is no chat template, which is a Jinja file of up to"),
        (b"{{ x }}" + b" " * 2**18, "own.jinja: is no chat template"),
        (b"\xff\xfe{{", "own.jinja: cannot be read: it is no text"),
    ],
    ids=["missing", "no template", "large", "no text"],
)
def test_what_is_no_template_is_said(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "own.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        spec(chat_template=str(path))
    assert str(caught.value).startswith("job: chat_template: ")
    assert said in str(caught.value)


def test_plain_text_has_no_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chat_template wants template: chat"):
        spec(chat_template=TEXT, template="plain")
    with pytest.raises(InputError, match="loss_on: all wants template: chat"):
        spec(loss_on="all", template="plain")
