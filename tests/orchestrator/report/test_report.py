"""The report: everything in one page, for studies in every state."""

import json
import re
from collections.abc import Callable
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec, override_job
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.report import figures
from orchestrator.report.gain import Gain, TaskGain
from orchestrator.report.report import write
from orchestrator.tuning.one_run import one_run
from orchestrator.tuning.study import Study
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.run.events import EventLog
from workers.run.samples import Sample, samples_beside, write_samples
from workers.train.used import base_file

Play = Callable[..., list[dict[str, Any]]]
ALL = {"curves", "training", "history", "parallel", "importance", "slice", "load"}


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
        self.text += " "

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
    assert {trace["opacity"] < 0.5 for trace in curves if trace not in thick} == {True}
    training = {trace["name"]: trace for trace in page.figure("training")}
    assert len(training) == 11
    reports = home.progress(best.number)
    for name, part in (("best", "train"), ("validation", "validation")):
        drawn = training[f"T{best.number:03d} {name}"]["y"]
        assert drawn == pytest.approx([report[part]["loss"] for report in reports])
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


def test_passes_that_became_smaller_are_told_with_their_trial(job: JobSpec, play: Play) -> None:
    play(job, ["finished", "finished"])
    study = Study.open(job.cluster, job.name)
    log = EventLog(study.folder / "trials" / "T001")
    log.note("memory", "out of memory: 2 rows at most in a forward pass from here on", step=3)
    log.note("data", "a thousand rows")
    text = " ".join(Page(write(job.cluster, job.name)).text.split())
    assert text.count("after step 3, out of memory: 2 rows at most in a forward pass") == 1
    assert "a thousand rows" not in text


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
        (["finished"], {"curves", "training", "history", "load"}),
        (["finished", "finished"], {"curves", "training", "history", "parallel", "slice", "load"}),
        (["failed"], {"curves", "training"}),
        (["cut"], {"curves", "training"}),
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


def test_a_trial_that_ended_early_says_so(job: JobSpec, play: Play) -> None:
    job = override_job(job, {"optimizer.early_stopping": {"patience": 1}}, "test")
    play(job, ["early"])
    page = Page(write(job.cluster, "home"))
    text = " ".join(page.text.split())
    assert "stopped early; its best was at step 20" in text
    assert "it ends early (patience 1), and its best evaluation counts" in text


EVIL = "<script>alert('x')</script>"


def leave_base(study: Study, samples: int = 2) -> None:
    """What the trials of a study leave of the base and of their own answers."""
    best = study.best()
    assert best is not None
    trial = study.folder / "trials" / f"T{best.number:03d}"
    spec = TrainSpec.model_validate_json((trial / "train.json").read_text())
    task = {"metric": "exact_match", "rows": 20, "value": 0.25, "loss": 9.0}
    validation = {"loss": 8.0, "score": 0.9, "tasks": {"intent": task}}
    figures = base_file(study.folder, spec)
    figures.parent.mkdir(exist_ok=True)
    figures.write_text(json.dumps({"used": {}, "metrics": {"validation": validation}}))
    row = {"task": "intent", "metric": "exact_match", "expected": "on"}
    asked = [Sample(**row, question=f"{n} {EVIL}", answer="", score=0) for n in range(samples)]
    write_samples(samples_beside(figures), asked)
    taught = [one.model_copy(update={"answer": EVIL, "score": 1.0}) for one in asked]
    write_samples(trial / "samples.json", taught)


def test_the_page_tells_what_was_gained_and_what_was_promoted(
    job: JobSpec, play: Play, store: str, make_adapter: Callable[..., Path]
) -> None:
    job = override_job(job, {"cluster.store": store}, "test")
    play(job, ["finished", "finished"])
    study = Study.open(job.cluster, "home")
    leave_base(study)
    best = study.best()
    assert best is not None
    with closing(Registry(job.store_url(), job.cluster.storage)) as registry:
        version = registry.register("home", best.number, make_adapter(71), {})
        promote(registry, version, "desk", actor="ada", metric="x", reason=EVIL, force=True)
    path = write(job.cluster, "home")
    page = Page(path)
    assert page.sections >= {"gain", "samples", "promoted", "training"}
    assert EVIL not in path.read_text()
    words = " ".join(page.text.split())
    intent = best.metrics["validation"]["tasks"]["intent"]
    for base, ours, measure in (
        (0.25, intent["value"], "exact_match"),
        (9.0, intent["loss"], "loss"),
    ):
        assert f"{base:.4g} {ours:.4g} {ours - base:+.4g}" in words, measure
    assert "all mean of the tasks \N{EN DASH} 0.9 0.5 -0.4" in words
    assert f"0 {EVIL} on (nothing) exact_match 0 {EVIL} exact_match 1" in words
    assert f"desk {version.id} T{best.number:03d} promote" in words
    assert f"ada {EVIL} champion" in words
    assert page.loads == []


def test_better_and_worse_are_told_by_the_measures_own_sense(job: JobSpec, play: Play) -> None:
    play(job, ["finished"])
    study = Study.open(job.cluster, "home")
    leave_base(study)
    told = {(one.task, one.measure): one for one in Gain.of(study, study.best()).lines}
    assert told["all", "loss a token"].verdict == "better"
    assert told["all", "mean of the tasks"].verdict == "worse"
    assert told["reply", "rouge_l"].base is None, "a task that the base was not asked"
    assert told["reply", "rouge_l"].change is None
    assert TaskGain("a", "acc", 1, 0.5, 0.5).verdict == "same"


@pytest.mark.parametrize(
    ("name", "text", "sections"),
    [
        ("KEY.base.json", None, {"gain", "samples"}),
        ("KEY.base.json", "{", {"gain", "samples"}),
        ("KEY.base.json", '{"metrics": 3}', {"gain", "samples"}),
        ("KEY.base.samples.json", None, {"gain", "samples"}),
        ("KEY.base.samples.json", "[3]", {"gain", "samples"}),
        ("samples.json", None, {"gain"}),
        ("samples.json", "nonsense", {"gain"}),
        ("train.json", '{"of": "an older version"}', {"gain", "samples"}),
        ("train.json", None, {"gain", "samples"}),
    ],
)
def test_what_a_study_lacks_is_left_out(
    job: JobSpec, play: Play, name: str, text: str | None, sections: set[str]
) -> None:
    play(job, ["finished"])
    study = Study.open(job.cluster, "home")
    leave_base(study)
    [figures] = study.folder.glob("inputs/*.base.json")
    places = {
        "KEY.base.json": figures,
        "KEY.base.samples.json": samples_beside(figures),
        "samples.json": study.folder / "trials" / "T000" / "samples.json",
        "train.json": study.folder / "trials" / "T000" / "train.json",
    }
    if text is None:
        places[name].unlink()
    else:
        places[name].write_text(text)
    page = Page(write(job.cluster, "home"))
    assert page.sections & {"gain", "samples", "promoted"} == sections
    if name in ("KEY.base.json", "train.json"):
        assert "The bare base was not measured" in page.text


def test_one_run_has_a_page_too(job: JobSpec, play: Play) -> None:
    job = one_run(override_job(job, {"start_from": "runs/versions/v1"}, "test"))
    play(job, ["finished"])
    page = Page(write(job.cluster, job.name))
    assert "Begun with" in page.text
    assert "runs/versions/v1" in page.text
    assert "TPE" not in page.text
    assert all(page.figure(name) for name in ("curves", "training", "load"))


def test_a_share_is_told_as_one(job: JobSpec, play: Play) -> None:
    job = override_job(job, {"data.validation.share": 0.25}, "test")
    play(job, ["finished"])
    page = " ".join(Page(write(job.cluster, "home")).text.split())
    assert "a share of 0.25 of these, held out of training" in page


def test_several_sources_are_told_with_their_weights(job: JobSpec, play: Play) -> None:
    sources = ["s3://a/a.jsonl", {"source": "s3://b/<1>.jsonl", "weight": 0.5}]
    job = override_job(job, {"data.train": sources}, "test")
    play(job, ["finished"])
    page = Page(write(job.cluster, "home"))
    assert "s3://a/a.jsonl, s3://b/<1>.jsonl (weight 0.5)" in " ".join(page.text.split())


def test_no_report_of_an_unknown_study(job: JobSpec, play: Play) -> None:
    play(job, ["finished"])
    with pytest.raises(InputError, match="did you mean home"):
        write(job.cluster, "homes")


def test_a_report_says_what_can_be_exported(job: JobSpec, play: Play, tmp_path: Path) -> None:
    job = override_job(job, {"train.model.path": str(tmp_path)}, "test")
    play(job, ["finished", "failed", "finished"])
    assert "ordinary checkpoint" not in Page(write(job.cluster, "home")).text, "no base is here"
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    text = " ".join(Page(write(job.cluster, "home")).text.split())
    assert "As an ordinary checkpoint, which vLLM, SGLang and llama.cpp run: trial" in text
    assert "the family gpt_neox" in text
    assert "there is one for llama" in text
