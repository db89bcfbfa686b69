"""What the demo says before it makes anything."""

import sys
from pathlib import Path

import pytest

from orchestrator.demo.run import run_demo
from workers.config.base import InputError


def test_packages_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hassil", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)  # What Python has where it finds nothing.
    with pytest.raises(InputError, match=r"demo needs hassil, gguf: in .* -e '\.\[demo\]'"):
        run_demo(tmp_path)
    assert not list(tmp_path.iterdir())
