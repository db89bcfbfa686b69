"""Folders that `save_to_disk` of the datasets package wrote."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from datasets import Dataset, DatasetDict

from tests.workers.data.sources.rows import ROWS, read
from workers.config.base import InputError
from workers.data.sources.records import digest


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """`one`, in shards; `two`, with splits."""
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one", num_shards=3)
    splits = {"train": Dataset.from_list(ROWS[:3]), "test": Dataset.from_list(ROWS[3:])}
    DatasetDict(splits).save_to_disk(tmp_path / "two")
    return tmp_path


@pytest.fixture
def remote(saved: Path) -> Iterator[str]:
    """The same folders on a filesystem that is not this machine's own."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{saved}/", "/saved-bucket", recursive=True)
    yield "fsspec+memory://saved-bucket"
    memory.rm("/saved-bucket", recursive=True)


def test_one_data_set_is_read_in_its_own_order(saved: Path, remote: str) -> None:
    assert read(f"{saved}/one") == read(f"{saved}/one/") == read(f"{remote}/one") == ROWS
    assert digest(f"{saved}/one") == digest(f"{remote}/one")


def test_a_split_is_named_behind_a_mark(saved: Path, remote: str) -> None:
    for place in (str(saved), remote):
        assert read(f"{place}/two") == read(f"{place}/two#train") == ROWS[:3]
        assert read(f"{place}/two#test") == ROWS[3:]
    assert digest(f"{saved}/two#test") != digest(f"{saved}/two")


def test_what_was_selected_and_shuffled_is_what_is_read(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).select([4, 1]).save_to_disk(tmp_path / "some")
    assert read(str(tmp_path / "some")) == [ROWS[4], ROWS[1]]


def test_a_folder_whose_name_has_the_mark_is_that_folder(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "run#1")
    assert read(f"{tmp_path}/run#1") == ROWS


def test_splits_that_are_not_there(saved: Path) -> None:
    (saved / "plain").mkdir()
    for source, said in (
        ("two#dev", r"two: has no split 'dev'; write \S+two#SPLIT with one of train, test"),
        ("one#train", "one: is one data set, without a split 'train'"),
        ("plain#train", "plain: was not written by save_to_disk, and has no split 'train'"),
        ("none#train", "none#train: no such file"),
    ):
        with pytest.raises(InputError, match=said):
            read(f"{saved}/{source}")
    DatasetDict({"dev": Dataset.from_list(ROWS)}).save_to_disk(saved / "dev")
    with pytest.raises(InputError, match=r"has no split 'train'; write .*#SPLIT with one of dev"):
        read(f"{saved}/dev")


@pytest.mark.parametrize(
    "state",
    [
        "{",
        "[]",
        "{}",
        pytest.param("[" * 200_000, id="deep"),
        json.dumps({"_data_files": [3]}),
        json.dumps({"_data_files": [{"filename": "../two/train/data-00000-of-00001.arrow"}]}),
        json.dumps({"_data_files": [{"name": "x"}]}),
    ],
)
def test_a_damaged_description_is_one_line(saved: Path, state: str) -> None:
    (saved / "one" / "state.json").write_text(state)
    with pytest.raises(InputError, match="one: its description by save_to_disk is damaged"):
        read(f"{saved}/one")


def test_every_file_that_a_description_names_is_of_a_known_format(saved: Path) -> None:
    """Not the first alone: nothing read the second."""
    first = next((saved / "one").glob("*.arrow")).name
    listed = {"_data_files": [{"filename": first}, {"filename": "b.bin"}]}
    (saved / "one" / "state.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match="one: is of no known format by its name"):
        read(f"{saved}/one")


def test_a_shard_that_is_lost_is_one_line(saved: Path) -> None:
    next((saved / "one").glob("*.arrow")).unlink()
    with pytest.raises(InputError, match=r"\.arrow: cannot be read as Arrow"):
        read(f"{saved}/one")


def test_a_selection_of_an_old_version_is_refused(saved: Path) -> None:
    path = saved / "one" / "state.json"
    state = json.loads(path.read_text()) | {"_indices_data_files": [{"filename": "indices.arrow"}]}
    path.write_text(json.dumps(state))
    with pytest.raises(InputError, match="one: is of an old version of datasets; save it anew"):
        read(f"{saved}/one")
