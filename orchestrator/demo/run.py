"""The main job, whole, on a local cluster: tune, train on, promote, serve and ask."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.job import JobSpec, load_job, override_job
from orchestrator.evaluation.compare import Comparison, Measurement, compare_version
from orchestrator.monitoring.console import Narrator, dashboard_line, training_line
from orchestrator.monitoring.display import run_display, study_display
from orchestrator.tuning.study import TRAINED_ON, Study, trial_name
from workers.config.base import InputError, override
from workers.config.extras import installing
from workers.config.train import TrainSpec
from workers.run.files import write_text
from workers.run.record import RunPlan

if TYPE_CHECKING:
    from orchestrator.demo.questions import DemoQuestion
    from orchestrator.registry.registry import Registry

NAME = "home"
PACKAGES = ("hassil", "home_assistant_intents", "gguf")
"""What it needs beside moetune's own."""
LONGER = {
    "optimizer.steps": 200,
    "optimizer.lr": 1e-3,
    "evaluation.every": 100,
    "evaluation.generate": True,
    "evaluation.rows_per_task": 20,
    "parallel.workers": 2,
}
"""How the winner is trained on: with two workers, a fresh schedule, and answers that are scored.
Its peak is gentler than those of the trials, for routers have learned their part."""
ALONE = "each trial has a base of its own: on CPUs packs (search.pack) spare memory and no time"


@dataclass
class DemoSummary:
    """What the demo tells, and what `demo-summary.json` will say."""

    narrator: Narrator = field(default_factory=Narrator)
    summary: dict[str, Any] = field(default_factory=lambda: {"seconds": {}})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and note its seconds."""
        self.narrator.say(f"== {name}")
        started = time.monotonic()
        yield
        self.summary["seconds"][name] = round(time.monotonic() - started, 1)

    def write(self, folder: Path) -> Path:
        """Keep what was measured."""
        path = folder / "demo-summary.json"
        write_text(path, json.dumps(self.summary, indent=2, default=str) + "\n")
        return path


@dataclass(frozen=True)
class Demo:
    """The stages of one run, in order. Each notes what it measured in the journal."""

    job: JobSpec
    registry: "Registry"
    journal: DemoSummary

    def tune(self) -> Study:
        """Search."""
        from orchestrator.tuning.preflight import preflight
        from orchestrator.tuning.tuner import run

        preflight(self.job, resume=False)
        if self.job.search.pack == 1 and not self.job.search.gpus_per_worker:
            self.journal.narrator.say(ALONE)
        with study_display(self.job, self.journal.narrator) as display:
            study = run(self.job, on_progress=display)
        rows = study.leaderboard()
        self.journal.summary["trials"] = [row.as_dict() for row in rows]
        self.journal.summary["best_trial"] = rows[0].number
        return study

    def train_on(self, study: Study) -> str:
        """Train the best trial's adapter for longer with two workers; its version's id."""
        from orchestrator.tuning.trainer import fit

        best = study.row(self.journal.summary["best_trial"])
        trial = study.folder / "trials" / trial_name(best.number)
        spec = TrainSpec.model_validate_json((trial / "train.json").read_text())
        spec = override(spec, LONGER | {"start_from": str(trial / "adapter")}, "demo")
        plan = RunPlan(study.folder / TRAINED_ON, study.name, best.number)
        narrator = self.journal.narrator
        with run_display(plan.folder, narrator):
            adapter, report = fit(
                spec,
                plan,
                self.job.search,
                lambda one: narrator.say(training_line(one)),
            )
        return self.registry.register(study.name, best.number, adapter, report).id

    def promote(self, study: Study, versions: Sequence[str]) -> None:
        """Promote each version in turn, as far as the gate lets it."""
        from orchestrator.registry.log import this_user
        from orchestrator.registry.promote import GateRefused, promote

        for version in versions:
            try:
                event = promote(
                    self.registry,
                    version,
                    NAME,
                    actor=this_user(),
                    metric=study.metric,
                    mode=study.mode,
                )
                self.journal.narrator.say(f"{NAME} is now {NAME}@{event.version}: {event.reason}")
            except GateRefused as refusal:
                self.journal.narrator.say(f"the gate keeps the champion: {refusal}")

    def compare(self) -> Comparison:
        """The base and the champion on the test rows, whose phrasings training never saw."""
        test = str(Path(self.job.train.data.train_name).with_name("test.parquet"))
        result = compare_version(Measurement.of(self.registry, NAME, test, rows=30))
        self.journal.summary["metrics"] = result.as_dict()
        return result

    def ask(self, url: str, base: str) -> None:
        """The same questions to the base model and to the champion."""
        from orchestrator.client import Client

        client = Client(url)
        for one in self.questions():
            answers = {
                model: "".join(client.ask(model, one.prompt, temperature=0, max_tokens=48)).strip()
                for model in (base, NAME)
            }
            verdict = one.verdict(answers[NAME])
            told = {"question": one.prompt, "kind": one.kind, **answers, "verdict": verdict}
            self.journal.summary.setdefault("answers", []).append(told)
            print(f"\n  {one.prompt}  ({one.kind})")
            for model, answer in answers.items():
                said = f"  ({verdict})" if model == NAME else ""
                print(f"    {model:>22}: {' '.join(answer.split())}{said}", flush=True)

    def questions(self) -> "Sequence[DemoQuestion]":
        """Of the kinds that the champion answers best on the validation rows."""
        from orchestrator.demo.questions import questions

        champion = self.registry.resolve(NAME)
        return questions(self.registry.manifest(champion).metrics["validation"]["tasks"])


def run_demo(storage: Path, assignments: Sequence[str] = ()) -> None:
    """Run the demo in a new folder below `storage`. On a terminal the endpoint stays up until
    Ctrl-C; otherwise everything that was started is stopped at the end."""
    from cluster.session import session
    from orchestrator.output import print_table
    from orchestrator.registry.registry import Registry
    from orchestrator.report.report import write
    from orchestrator.serve.deploy import check_endpoint, deploy, undeploying
    from orchestrator.serve.served_base import served_base

    folder = storage.resolve() / datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S")
    journal = DemoSummary()
    with journal.stage("base model and data"):
        job = _job(folder, storage.resolve() / "assets", assignments)
        check_endpoint(job.serve, job.cluster)  # it comes last, and a port may be taken
    with session() as cluster, closing(Registry(job.store_url(), job.cluster.storage)) as registry:
        demo = Demo(job, registry, journal)
        journal.narrator.say(dashboard_line(cluster))
        with journal.stage("tune"):
            study = demo.tune()
        with journal.stage("train the winner on"):
            longer = demo.train_on(study)
        with journal.stage("promote"):
            demo.promote(study, [study.version(), longer])
        with journal.stage("before and after"):
            result = demo.compare()
        print_table(result.columns(), result.rows(), "unseen phrasings, before and after")
        with journal.stage("serve"):
            base = served_base(job.store_url(), job.cluster.storage, NAME)
            endpoint = deploy(job.serve, base)
        journal.summary["endpoint"] = endpoint.openai_url
        with undeploying():
            with journal.stage("ask"):
                demo.ask(endpoint.url, endpoint.base)
            with journal.stage("report"):
                report = journal.summary["report"] = write(job.cluster, study.name)
            print(f"\nreport:   {report}\nsummary:  {journal.write(folder)}")
            if sys.stdout.isatty():
                print(f"endpoint: {endpoint.openai_url} (Ctrl-C stops it; in another terminal:")
                first = demo.questions()[0].prompt
                print(f'  moetune ask {NAME} "{first}" --url {endpoint.url})')
                cluster.wait()


def _job(folder: Path, assets: Path, assignments: Sequence[str]) -> JobSpec:
    """The demo's job, with its base model and data made or found below `assets`."""
    _check_packages()
    from orchestrator.demo.base_model import prepare
    from orchestrator.demo.smart_home import make

    data = make(assets / "data")
    places = {
        "model.path": str(prepare(assets)),
        "data.train": str(data / "train.parquet"),
        "data.validation": str(data / "validation.parquet"),
        "cluster.storage": str(folder),
    }
    return override_job(load_job("demo", assignments), places, "demo")


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"the demo needs {', '.join(missing)}: {installing('demo')}")
