"""`moetune adapter …`: what its commands print."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from workers.config.train import TrainSpec
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun

ROWS, COLUMNS = 24, 80
"""Of the smallest terminal in use."""


@pytest.fixture
def folder(make_spec: Callable[..., TrainSpec], tmp_path: Path) -> Path:
    """Of a trial's adapter, with everything that training leaves in a manifest."""
    spec = make_spec(
        optimizer__steps=1,
        evaluation__every=1,
        adapter__routing="top_p",
        adapter__use_rslora=True,
        adapter__dropout=0.05,
    )
    run = TrainingRun(spec, RunPlan(tmp_path / "run", "a study", trial=0))
    run.base_metrics, _ = run.measure_base()
    run.advance()
    run.save_adapter(tmp_path / "adapter")
    run.close()
    return tmp_path / "adapter"


def test_inspect_prints_one_screen(folder: Path) -> None:
    def run(*more: str) -> str:
        told = CliRunner().invoke(app, ["adapter", "inspect", str(folder), *more])
        assert told.exit_code == 0, told.output
        return told.stdout

    whole, lines = json.loads(run("--json")), run().splitlines()
    assert len(lines) < ROWS
    assert max(map(len, lines)) <= COLUMNS
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert shown["study"] == "a study"
    assert shown["trial"] == "0"
    assert shown["target_modules"] == "gate_proj up_proj down_proj q_proj k_proj v_proj o_proj"
    assert (shown["routing"], shown["top_p"], shown["use_rslora"]) == ("top_p", "0.8", "True")
    assert "top_k" not in shown, "it says nothing of this adapter"
    for name, metrics in (("loss", "metrics"), ("base_loss", "base_metrics")):
        loss = whole[metrics]["validation"]["loss"]
        assert float(shown[name]) == pytest.approx(loss, rel=1e-3)
    assert whole["spec"]["optimizer"]["steps"] == 1, "JSON holds all of it"
    assert whole.keys() > shown.keys() - {"field", "loss", "base_loss"}
