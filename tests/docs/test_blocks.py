"""What pages show as a job, a space, a policy or rows is one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from orchestrator.config.job import load_job
from orchestrator.retraining.policy import load_policy
from search_spaces.space import SearchSpace
from tests.docs.pages import PAGES, Block
from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.config.train import TrainSpec
from workers.data.rows import read_rows

KNOWN: Mapping[str, set[str]] = {
    "console": {"elsewhere", "exit=1", "exit=2"},
    "yaml": {"job", "space", "policy"},
    "jsonl": {"rows"},
}
"""Words that may stand behind a language."""
FILES = {"train": "rows.jsonl", "validation": "rows.jsonl"}
TRAIN = TrainSpec.model_validate({"model": {"path": "m"}, "data": FILES})


def job(path: Path) -> None:
    load_job(path)


def space(path: Path) -> None:
    SearchSpace.resolve(str(path), TRAIN)


def policy(path: Path) -> None:
    load_policy(path)


def rows(path: Path) -> None:
    assert list(read_rows(DataSpec.model_validate(FILES), str(path)))


def plain_yaml(path: Path) -> None:
    yaml.safe_load(path.read_text())


def plain_json(path: Path) -> None:
    json.loads(path.read_text())


def python(path: Path) -> None:
    compile(path.read_text(), str(path), "exec")


READERS: Mapping[tuple[str, ...], Callable[[Path], None]] = {
    ("yaml", "job"): job,
    ("yaml", "space"): space,
    ("yaml", "policy"): policy,
    ("jsonl", "rows"): rows,
    ("yaml",): plain_yaml,
    ("json",): plain_json,
    ("python",): python,
}
BLOCKS = [block for page in PAGES for block in page.blocks()]


def read(block: Block, folder: Path) -> None:
    """Read a block by its kind, as the product reads such a file."""
    path = folder / f"block.{block.language}"
    path.write_text(block.text)
    READERS[block.language, *block.words](path)


SHOWN = [one for one in BLOCKS if (one.language, *one.words) in READERS]


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.where)
def test_the_product_reads_it(block: Block, tmp_path: Path) -> None:
    read(block, tmp_path)


def test_every_block_says_what_it_is() -> None:
    unknown = [
        block.where
        for block in BLOCKS
        if not block.language or not {*block.words} <= KNOWN.get(block.language, set())
    ]
    assert not unknown


def test_a_console_block_has_commands() -> None:
    assert not [one.where for one in BLOCKS if one.language == "console" and not one.commands()]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("yaml", "job"), "name: x\ntrain: {model: {path: m}, data: {train: t}}"),
        (("yaml", "space"), "adapter.rnk: 4"),
        (("yaml", "policy"), "job: job.yaml\ndata: fresh"),
        (("jsonl", "rows"), '{"prompt": "only"}'),
    ],
)
def test_a_wrong_one_is_found(words: tuple[str, ...], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read(Block("here", words[0], words[1:], text), tmp_path)
