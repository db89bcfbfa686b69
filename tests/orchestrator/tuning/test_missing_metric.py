"""A metric of a package that the driver has and the workers have not, both ways to run a trial."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.session import Session
from orchestrator.config.job import JobSpec
from orchestrator.tuning.preflight import preflight
from orchestrator.tuning.tuner import run
from tests.packages import giving, install
from workers.config.base import InputError
from workers.config.train import TrainSpec


@pytest.mark.parametrize("named_by", ["job", "row"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_node_says_what_it_lacks(
    workers: int,
    named_by: str,
    ray_cluster: Session,
    make_spec: Callable[..., TrainSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "def tone(answer, row):\n    return 1.0\n"
    package = giving("of-the-driver", "tone", "tone_of_the_driver:tone")
    monkeypatch.syspath_prepend(install(tmp_path / "site", package, {"tone_of_the_driver": text}))
    row = {"prompt": "hello", "target": "hi", "task": "talk"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row | ({"metric": "tone"} if named_by == "row" else {})) + "\n")
    train = make_spec(
        data__train=str(rows),
        data__validation=str(rows),
        data__metrics={"talk": "tone"} if named_by == "job" else {},
        evaluation__generate=True,
        parallel__workers=workers,
    )
    job = JobSpec.model_validate(
        {
            "name": "lacking",
            "train": train.model_dump(),
            "search": {"space": "smoke", "trials": 1},
            "cluster": {"storage": str(tmp_path / "runs")},
        }
    )
    preflight(job, resume=False)
    with pytest.raises(InputError) as caught:
        run(job)
    host = socket.gethostname()
    assert "unknown metric 'tone'" in str(caught.value)
    assert f"no package that is installed on {host} gives it" in str(caught.value)
    assert "\n" not in str(caught.value)
