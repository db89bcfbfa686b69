"""`moetune evaluate`: what it refuses, what it shows, and lm-eval on the cluster."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.session import Session
from orchestrator.cli import app
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from workers.config.base import InputError
from workers.config.extras import installing

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}, cache_dir: CACHE}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""


def evaluate(*words: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def refused(*words: object) -> str:
    """What it says, in one line; `main` prints it and exits with 2."""
    result = evaluate(*words)
    assert isinstance(result.exception, InputError), result.output
    said = str(result.exception)
    assert "\n" not in said
    return said


@pytest.fixture
def promoted(
    tmp_path: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Registry:
    """A registry in `runs` with a version, the champion of `home`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    registry = Registry(f"sqlite:///{tmp_path}/runs/moetune.db", tmp_path / "runs")
    version = registry.register("a-study", 1, make_adapter(3), {})
    promote(registry, version, "home", actor="t", metric="validation/loss", reason="t", force=True)
    return registry


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task of six rows."""
    rows = [{"question": f"{n}?", "choices": ["yes", "no"], "label": n % 2} for n in range(6)]
    file, folder = tmp_path / "rows.jsonl", tmp_path / "tasks"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.mkdir()
    text = TASK.replace("FILE", str(file)).replace("CACHE", str(tmp_path / "cache"))
    (folder / "colours.yaml").write_text(text)
    return folder


def test_what_was_measured_is_shown(promoted: Registry) -> None:
    [version] = promoted.versions()
    assert refused("home") == (
        f"home: version {version.id} was not measured yet; --data ROWS or --lm-eval TASKS measures "
        "it"
    )
    values = {"home": 0.5, "loss": 1.25}
    promoted.keep_evaluation(version, {"data": "t.jsonl"}, {"base": values, "home": values})
    told = {"version": 1, "shots": 0, "rows": 8, "metrics": {"acc": 0.25}, "stderr": {}}
    figures = {"base": {"lm_eval": "1", "tasks": {"colours": told}}}
    promoted.keep_evaluation(version, {"lm_eval": {"tasks": ["colours"]}}, figures)
    _, first, *_, last = evaluate("home").stdout.splitlines()
    assert first.split()[3:] == ["t.jsonl", "base", "home", "-", "0.5"]
    assert last.split()[3:] == ["lm-eval", "base", "colours", "acc", "0.25"]
    shown = json.loads(evaluate(f"home@{version.id}", "--json").stdout)
    assert [one["figures"] for one in shown] == [{"base": values, "home": values}, figures]


def test_what_does_not_go_together_is_refused(promoted: Registry) -> None:
    both = refused("home", "--data", "rows.jsonl", "--lm-eval", "arc_easy")
    assert both == "--data and --lm-eval: take one of them at a time"
    assert refused("home", "--lm-eval", " ,").startswith("--lm-eval: tasks: ")


@pytest.mark.parametrize("folder", [True, False])
def test_without_lm_eval_one_line_says_how_to_get_it(
    folder: bool, promoted: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a cluster starts."""
    monkeypatch.setattr("workers.train.evaluation.harness.find_spec", lambda _: None)
    what = promoted.versions()[0].folder if folder else "home"
    said = refused(what, "--lm-eval", "arc_easy")
    assert said.startswith("--lm-eval: needs the package lm_eval, which ")
    assert said.endswith(installing("lm-eval"))


@pytest.mark.skipif(find_spec("lm_eval") is None, reason=f"needs lm_eval: {installing('lm-eval')}")
def test_tasks_of_lm_eval_on_the_cluster(
    ray_cluster: Session, promoted: Registry, tasks: Path
) -> None:
    [version] = promoted.versions()
    asked = ["--lm-eval", "colours", "--tasks-folder", tasks, "--address", ray_cluster.address]
    result = evaluate("home", *asked, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found.keys() == {"base", f"home@{version.id}"}
    assert all(one["tasks"]["colours"]["rows"] == 6 for one in found.values())
    [kept] = promoted.evaluations(version)
    assert kept.figures == found
    assert kept.asked["lm_eval"]["tasks_folder"] == str(tasks)
