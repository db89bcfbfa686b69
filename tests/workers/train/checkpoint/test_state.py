"""Checkpoint files and random states."""

import os
import random
from pathlib import Path

import pytest
import torch

from workers.config.base import InputError
from workers.parallel.world import World
from workers.train.checkpoint import state as checkpoint


def test_generators_continue_where_they_were(tmp_path: Path) -> None:
    checkpoint.seed_worker(3, World())
    random.random()
    torch.rand(5)
    checkpoint.write_state(tmp_path, {"random": [checkpoint.random_states()], "step": 7})
    expected = random.random(), torch.rand(3)
    state = checkpoint.read_state(tmp_path)
    checkpoint.restore_random_states(state["random"], World())
    assert state["step"] == 7
    assert random.random() == expected[0]
    assert torch.equal(torch.rand(3), expected[1])
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.STATE]


def test_workers_draw_different_numbers() -> None:
    draws = []
    for rank in range(2):
        checkpoint.seed_worker(0, World(rank, 2))
        draws.append(torch.rand(3))
    assert not torch.equal(*draws)


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    store = checkpoint.CheckpointStore(tmp_path)
    with pytest.raises(FileNotFoundError), store.written(2) as folder:
        (folder / "adapter" / "weights").write_text("into a folder that is not there")
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):  # after a failure a step may come again
        with store.written(2) as folder:
            (folder / "adapter").mkdir()
            (folder / "adapter" / "weights").write_text(content)
    assert store.whole() == [store.path(2)]
    assert (store.path(2) / "adapter" / "weights").read_text() == "second"


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    store = checkpoint.CheckpointStore(tmp_path)
    for step in (2, 4, 6, 8, 100):
        with store.written(step) as folder:
            (folder / "file").touch()
    store.prune(8, keep=2, spare=store.path(2))
    assert store.whole() == [store.path(step) for step in (2, 6, 8)]  # 100 is of a path not taken
    store.prune(8, keep=2)
    assert store.whole() == [store.path(step) for step in (6, 8)]


@pytest.mark.parametrize("where", [("update", "exp_avg", "gate"), ("results", 0)])
def test_a_tensor_without_elements_is_refused(tmp_path: Path, where: tuple[object, ...]) -> None:
    state: object = torch.empty(0, 4)
    for name in reversed(where):
        state = [state] if name == 0 else {name: state}
    with pytest.raises(InputError, match=rf"{where[-1]} of shape \[0, 4\] has no elements"):
        checkpoint.write_state(tmp_path, {"step": 1, **state})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("evil-was-here",)


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Evil()}, tmp_path / checkpoint.STATE)
    with pytest.raises(InputError, match="is no checkpoint that can be read"):
        checkpoint.read_state(tmp_path)
    assert not (tmp_path / "evil-was-here").exists()


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    for content in (b"", b"half a file", None):
        (tmp_path / checkpoint.STATE).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / checkpoint.STATE).write_bytes(content)
        with pytest.raises(InputError, match="is no checkpoint"):
            checkpoint.read_state(tmp_path)
