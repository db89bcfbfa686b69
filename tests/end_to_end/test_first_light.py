"""Tune, promote, serve and ask, through the real command line, Ray and OpenAI's client."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from cluster.session import Session
from orchestrator.cli import app
from tests.served import serving

Run = Callable[..., subprocess.CompletedProcess[str]]
Read = Callable[..., Any]
Trials = list[dict[str, Any]]


def test_a_study_ends_with_ranked_versions(trials: Trials, read: Read) -> None:
    assert [row["state"] for row in trials] == ["finished", "finished"]
    assert trials[0]["value"] <= trials[1]["value"]
    assert len({row["version"] for row in trials}) == 2
    assert read("leaderboard", "colours") == trials


def test_a_finished_study_is_not_run_again(
    trials: Trials, moetune: Run, ray_cluster: Session
) -> None:
    refused = moetune("tune", "job.yaml", code=2)
    assert "study colours: exists already in runs" in refused.stderr
    resumed = moetune("tune", "job.yaml", "--resume", "--address", ray_cluster.address)
    assert "started" not in resumed.stderr


def test_sigterm_is_ctrl_c_and_says_how_to_go_on(
    workspace: Path, user_environment: dict[str, str], read: Read, ray_cluster: Session
) -> None:
    command = ["tune", "job.yaml", "--set=name=cut", "--set=optimizer.steps=600"]
    command.append(f"--address={ray_cluster.address}")
    tuning = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *command],
        cwd=workspace,
        env=user_environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert tuning.stderr is not None
        begun: list[str] = []
        for line in tuning.stderr:
            begun.append(line)
            if "· reported ·" in line:
                break
        else:
            pytest.fail(f"the study ended before its first report: {begun}")
        tuning.send_signal(signal.SIGTERM)
        _, said = tuning.communicate(timeout=120)
    finally:
        tuning.kill()
    assert tuning.returncode == 143, said
    assert f"go on with: moetune {' '.join(command)} --resume" in said
    assert "Traceback" not in said
    assert [row["state"] for row in read("leaderboard", "cut")] == ["interrupted"]


def test_the_report_is_one_page(trials: Trials, read: Read) -> None:
    page = Path(read("report", "colours")["report"]).read_text()
    assert "colours" in page
    assert trials[0]["version"] in page


def test_promotion_history_and_rollback(trials: Trials, moetune: Run, read: Read) -> None:
    best, other = trials[0]["version"], trials[1]["version"]
    moetune("promote", "colours", "--to", "paint")
    refused = moetune(
        "promote", "colours", "--trial", str(trials[1]["number"]), "--to", "paint", code=2
    )
    assert "is not better than" in refused.stderr
    forced = ("--force", "--reason", "to try it")
    moetune("promote", "colours", "--trial", str(trials[1]["number"]), "--to", "paint", *forced)
    back = moetune("rollback", "paint", "--reason", "it was worse").stdout
    assert f"forward again: moetune promote paint --version {other}" in back
    refused = moetune("promote", "paint", "--version", other, code=2)
    assert "is not better than" in refused.stderr
    events = read("history", "paint")
    assert [(e["action"], e["version"]) for e in events] == [
        ("promote", best),
        ("promote", other),
        ("rollback", best),
    ]
    assert events[1]["evidence"]["forced"] is True
    assert read("models")["names"]["paint"]["id"] == best


def test_an_adapter_from_elsewhere_is_measured_as_the_study_was(
    trials: Trials, moetune: Run, read: Read, workspace: Path
) -> None:
    """The best trial's adapter in MoE-PEFT's format, on a local cluster of its own."""
    [folder] = (workspace / "runs" / "versions").glob(f"{trials[0]['version']}*")
    moetune("adapter", "export", str(folder), "--to", "theirs")
    said = moetune("promote", "colours", "--to", "brought", "--version", "theirs")
    [event] = read("history", "brought")
    mine = event["evidence"]["candidate"]
    assert mine["value"] == pytest.approx(trials[0]["value"], rel=1e-4)
    assert (mine["study"], mine["trial"]) == ("colours", None)
    assert mine["origin"] == "theirs"
    assert f"theirs: is version {mine['version']}: validation/loss" in said.stderr
    manifests = [
        json.loads((place / "manifest.json").read_text())
        for place in (
            folder,
            workspace / "runs" / "versions" / read("models")["names"]["brought"]["digest"],
        )
    ]
    assert manifests[0]["base_metrics"] == manifests[1]["base_metrics"] != {}, "not measured again"
    assert manifests[0]["data_digest"] == manifests[1]["data_digest"]
    (workspace / "theirs" / "adapter_model.safetensors").write_bytes(b"damaged")
    refused = moetune("promote", "brought", "--version", "theirs", code=2)
    assert "theirs/adapter_model.safetensors: is damaged" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.usefixtures("processes")
def test_the_champion_answers_and_a_promotion_shows(
    trials: Trials,
    moetune: Run,
    read: Read,
    workspace: Path,
    user_environment: dict[str, str],
) -> None:
    moetune("promote", "colours", "--to", "served")
    with until_ctrl_c("served", workspace, user_environment) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        names = {model.id for model in client.models.list()}
        assert {"served", "tiny-llama"} <= names
        first = chat(client, "served")
        assert first.usage is not None
        assert first.usage.completion_tokens > 0
        asked = read("ask", "served", "colour of sky?", "--url", url, "--max-tokens", "8")
        assert asked["answer"] == first.choices[0].message.content
        assert (asked["asked"], asked["model"]) == ("served", first.model)
        forced = ("--force", "--reason", "to see it live")
        number = str(trials[1]["number"])
        moetune("promote", "colours", "--trial", number, "--to", "served", *forced)
        seen = until(lambda: chat(client, "served").system_fingerprint or "", trials[1]["version"])
        assert trials[1]["version"] in seen
        pinned = chat(client, f"served@{trials[0]['version']}")
        assert pinned.choices[0].message.content == first.choices[0].message.content


def test_a_job_is_submitted_watched_and_found_again(
    ray_cluster: Session, moetune: Run, read: Read, workspace: Path
) -> None:
    assert ray_cluster.dashboard_url
    at = ("--address", ray_cluster.dashboard_url)
    named = ("--set", "name=shipped", "--set", "search.trials=1")
    slowly = ("--set", "optimizer.steps=300", "--set", "evaluation.every=150")
    job = read("submit", "job.yaml", *named, *slowly, *at)
    moving, words = watched("shipped", workspace / "runs", *at)
    assert (moving["study"], moving["trials"]) == ("shipped", 1)
    (trial,) = moving["running"]
    assert 0 < trial["progress"]["step"] < trial["progress"]["steps"] == 300
    assert trial["progress"]["tokens_per_second"] > 0
    assert trial["stalls"] == []
    assert "study shipped · 0 of 1 trials ended" in words
    assert "/300 steps · " in words
    told = moetune("logs", job["id"], "--follow", *at).stdout
    assert "trial 0 · finished" in told
    shown = read("status", job["id"], *at)
    assert (shown["state"], shown["metadata"]["study"]) == ("SUCCEEDED", "shipped")
    assert shown["progress"]["ended"]["finished"] == 1
    local = read("status", "shipped")
    assert {**local, "at": 0} == {**shown["progress"], "at": 0}, "the folder says the same"
    assert job["id"] in [one["id"] for one in read("status", *at)]
    assert read("leaderboard", "shipped")[0]["state"] == "finished"


def watched(study: str, storage: Path, *at: str) -> tuple[dict[str, Any], str]:
    """`moetune status` of a job once its trial has taken a step, as JSON and in words. In this
    process: the command takes longer to load than the job to end. It asks once the trial is there:
    questions take the processor from the job."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not any(storage.glob(f"**/{study}/trials/*/ranks/*.json")):
            time.sleep(0.1)
            continue
        shown = CliRunner().invoke(app, ["status", study, *at, "--json"]).stdout
        now = json.loads(shown)["progress"]
        if now and any(run["progress"] for run in now["running"]):
            return now, CliRunner().invoke(app, ["status", study, *at]).stdout
        time.sleep(0.2)
    pytest.fail("no step was seen")


@contextmanager
def until_ctrl_c(name: str, workspace: Path, environment: dict[str, str]) -> Iterator[str]:
    """`moetune serve` until the block ends; then Ctrl-C, which must end it in order."""
    with serving(name, cwd=workspace, env=environment) as (server, url):
        yield url
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=60)
    assert server.returncode == 130, said


def chat(client: openai.OpenAI, model: str) -> Any:
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "colour of sky?"}],
        max_tokens=8,
        temperature=0,
    )


def until(ask: Callable[[], str], wanted: str) -> str:
    """Ask until the answer holds what is wanted, for at most ten seconds."""
    deadline = time.monotonic() + 10
    while wanted not in (said := ask()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return said
