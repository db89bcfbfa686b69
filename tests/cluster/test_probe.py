"""What a process finds in its own Python; tests/orchestrator/doctor has whole clusters."""

import json
import platform
import sys
from pathlib import Path

import pytest
import ray

from cluster.probe import look


def test_looks_at_versions_and_imports_and_never_fails(tmp_path: Path) -> None:
    found = look(["ray", "of-no-index"], ["json", "no.such.module"])
    assert found["python"] == platform.python_version()
    assert found["executable"] == sys.executable
    assert found["packages"] == {"ray": ray.__version__, "of-no-index": None}
    assert list(found["broken"]) == ["no.such.module"]
    assert found["broken"]["no.such.module"].startswith("ModuleNotFoundError: No module named 'no'")
    assert json.loads(json.dumps(found)) == found


def test_a_module_that_breaks_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "breaks_here.py").write_text("raise OSError('libcuda.so:\\n not found')")
    monkeypatch.syspath_prepend(tmp_path)
    said = look([], ["breaks_here"])["broken"]["breaks_here"]
    assert said == "OSError: libcuda.so: not found"
