"""Checkpoint files and random states."""

import os
import random
from pathlib import Path

import pytest
import torch

from workers.parallel.world import World
from workers.spec import InputError
from workers.train import checkpoint


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
