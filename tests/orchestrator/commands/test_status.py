"""`moetune status` of a study in a folder."""

import json
import socket
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config.job import JobSpec
from orchestrator.tuning.lifecycle import locked
from workers.config.base import InputError


@pytest.fixture
def storage(job: JobSpec, play: Callable[..., object]) -> str:
    """With a study of which one trial was finished and one was cut off."""
    play(job, ["finished", "cut"])
    return str(job.cluster.storage)


def test_a_study_is_shown_in_words_and_as_json(storage: str) -> None:
    run = CliRunner().invoke(app, ["status", "home", "--storage", storage])
    assert run.exit_code == 0, run.output
    assert "study home · 1 of 10 trials ended (1 finished)" in run.output
    assert "trial 1 · cut off after step 0" in run.output
    facts = json.loads(
        CliRunner().invoke(app, ["status", "home", "--storage", storage, "--json"]).stdout
    )
    assert facts["ended"] == {"finished": 1, "stopped": 0, "failed": 0}
    assert facts["running"][0]["trial"] == 1


def test_what_is_neither_a_study_nor_a_job_is_refused(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")  # none there
    run = CliRunner().invoke(app, ["status", "hom", "--storage", storage])
    assert isinstance(run.exception, InputError)
    assert "hom: no study in" in str(run.exception)


def test_a_study_without_a_driver_is_interrupted(job: JobSpec, storage: str) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, "--storage", storage])
        assert done.exit_code == 0, done.output
        return done.output

    again = f"interrupted; go on with: moetune tune {job.study_folder()}/job.json --resume"
    told = run("status", "home")
    assert "trial 1 · cut off after step 0" in told
    assert told.splitlines()[-1] == again
    assert run("leaderboard", "home").splitlines()[-1] == again
    assert json.loads(run("leaderboard", "home", "--json"))[1]["state"] == "interrupted"
    assert "study home · 1 of 10 trials ended (1 finished)" in run("models")
    with locked(job):
        for told in (run("status", "home"), run("leaderboard", "home"), run("models")):
            assert "interrupted" not in told
        assert "trial 1 · starting" in run("status", "home")
        assert json.loads(run("leaderboard", "home", "--json"))[1]["state"] == "running"
