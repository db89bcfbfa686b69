"""The report: everything in one page, for studies in every state."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator import figures
from orchestrator.report import write
from orchestrator.spec import ClusterSpec, JobSpec, override_job
from orchestrator.study import Study
from workers.spec import InputError

Play = Callable[..., list[dict[str, Any]]]
ALL = {"curves", "history", "parallel", "importance", "slice", "load"}


class Page(HTMLParser):
    """Sections, what the page would load, and its text outside of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sections: set[str] = set()
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")
        if tag == "section":
            self.sections.add(named["id"])
        self.loads += [named[name] for name in ("src", "href", "srcset", "data") if name in named]
        self.loads += re.findall(r"url\((.*?)\)|@import", named.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.loads += re.findall(r"url\(.*?\)|@import", data)
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def figure(self, name: str) -> list[dict[str, Any]]:
        """The traces that the page hands to plotly for a figure."""
        call = next(s for s in self.scripts if f'"figure-{name}"' in s and "Plotly.newPlot" in s)
        start = call.index("[", call.index(f'"figure-{name}"', call.index("Plotly.newPlot")))
        traces: list[dict[str, Any]] = json.JSONDecoder().raw_decode(call[start:])[0]
        return traces


@pytest.fixture(scope="module")
def home(
    job_in: Callable[[Path], JobSpec], play: Play, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """A study with trials in every state."""
    job = job_in(tmp_path_factory.mktemp("home"))
    play(job, ["finished", "finished", "failed", "finished", "stopped", *["finished"] * 4, "cut"])
    return Study.open(job.cluster, "home")


@pytest.fixture(scope="module")
def page(home: Study) -> Page:
    """Its report."""
    return Page(write(ClusterSpec.model_validate(home.job["cluster"]), "home"))


def test_the_page_loads_nothing_and_holds_plotly_once(page: Page) -> None:
    assert page.loads == []
    assert sum("plotly.js v" in script for script in page.scripts) == 1


def test_every_figure_is_there_with_the_studys_values(page: Page, home: Study) -> None:
    assert page.sections >= {*ALL, "what", "leaderboard", "tasks"}
    curves = page.figure("curves")
    assert len(curves) == 10
    best = home.best()
    assert best is not None
    thick = [trace for trace in curves if trace["line"]["width"] == 4]
    assert [trace["name"] for trace in thick] == [f"T{best.number:03d} best"]
    assert thick[0]["y"][-1] == pytest.approx(best.value)
    points = page.figure("history")[0]
    told = [(n, v) for n, v in zip(points["x"], points["y"], strict=True) if v is not None]
    ran = [(row.number, row.value) for row in home.leaderboard() if row.state == "finished"]
    assert told == [(n, pytest.approx(v)) for n, v in sorted(ran)]
    bars = page.figure("importance")[0]
    assert {*bars["y"]} == {
        "num_experts", "top_k", "rank", "lr", "load_balance_weight", "contrastive_weight",
    }  # fmt: skip
    assert sum(bars["x"]) == pytest.approx(1)
    heat = page.figure("load")[0]
    assert heat["y"] == [f"layers.{i}.mlp" for i in range(4)]
    experts = best.params["adapter.num_experts"]
    assert len(heat["x"]) == experts
    assert sum(heat["z"][0]) == pytest.approx(experts)


def test_the_leaderboard_tells_every_trial_and_escapes_what_it_quotes(page: Page) -> None:
    for number in range(10):
        assert f"T{number:03d}" in page.text
    assert "OutOfMemoryError: <b>CUDA</b> out of memory" in page.text
    assert "10 of 10 trials" in " ".join(page.text.split())
    assert "exact_match" in page.text


def test_trials_without_a_router_are_in_optunas_plots_too(job: JobSpec, play: Play) -> None:
    space = {
        "adapter.num_experts": {"choice": [1, 4]},
        "loss.contrastive_weight": {"float": [0.01, 0.05]},
        "optimizer.lr": {"log": [1e-4, 1e-3]},
    }
    suggested = play(override_job(job, {"search.space": space}, "test"), ["finished"] * 8)
    asked = [values for values in suggested if "loss.contrastive_weight" in values]
    assert 0 < len(asked) < 8
    page = Page(write(job.cluster, "home"))
    drawn = [x for trace in page.figure("slice") for x in trace["x"] if trace["xaxis"] == "x"]
    assert len(drawn) == 8
    assert drawn.count(0.0) == 8 - len(asked)


@pytest.mark.parametrize(
    ("ends", "figures"),
    [
        (["finished"], {"curves", "history", "load"}),
        (["finished", "finished"], {"curves", "history", "parallel", "slice", "load"}),
        (["failed"], {"curves"}),
        (["cut"], {"curves"}),
        ([], set()),
    ],
)
def test_a_young_or_unlucky_study_has_a_page_too(
    ends: list[str], figures: set[str], job: JobSpec, play: Play
) -> None:
    routed = {"adapter.num_experts": {"choice": [2, 4]}, "optimizer.lr": {"log": [1e-4, 1e-3]}}
    play(override_job(job, {"search.space": routed}, "test"), ends)
    page = Page(write(job.cluster, "home"))
    assert page.sections & ALL == figures
    assert page.loads == []


def test_experts_may_differ_by_layer(job: JobSpec, play: Play) -> None:
    space = {
        "adapter.num_experts": {"choice": [4, [1, 2, 4, 6], [2, 4]]},
        "adapter.routing": {"choice": ["top_k", "top_p", "switch"]},
        "adapter.use_dora": {"choice": [False, True]},
        "optimizer.lr": {"log": [1e-4, 1e-3]},
    }
    linears = {"adapter.target_modules": ["up_proj"], "search.space": space}
    play(override_job(job, linears, "test"), ["finished"] * 8)
    study = Study.open(job.cluster, "home")
    page = Page(write(job.cluster, "home"))
    assert page.sections >= ALL
    assert "[1, 2, 4, 6]" in page.text
    drawn = {str(row.params["adapter.num_experts"]) for row in study.leaderboard()}
    assert drawn == {"4", "[1, 2, 4, 6]", "[2, 4]"}
    heat = figures.expert_load({"layers.1.mlp": [0.5, 0.5], "layers.3.mlp": [0.1, 0.2, 0.3, 0.4]})
    assert heat is not None
    assert list(heat.data[0].z[0]) == [1.0, 1.0, None, None]
    assert list(heat.data[0].z[1]) == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert len(heat.data[0].x) == 4


def test_plain_lora_has_no_heat_map(job: JobSpec, play: Play) -> None:
    plain = {"adapter.num_experts": 1, "optimizer.lr": {"log": [1e-4, 1e-3]}}
    play(override_job(job, {"search.space": plain}, "test"), ["finished", "finished"])
    page = Page(write(job.cluster, "home"))
    assert "one expert and no router" in page.text


def test_no_report_of_an_unknown_study(job: JobSpec, play: Play) -> None:
    play(job, ["finished"])
    with pytest.raises(InputError, match="did you mean home"):
        write(job.cluster, "homes")
