"""The main job, whole, on a local cluster: tune, train on, promote, serve and ask."""

import getpass
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.comparison import Comparison, compare_version
from orchestrator.progress import Narrator, StudyProgress, training_line
from orchestrator.spec import JobSpec, load_job, override_job
from orchestrator.study import Study, trial_name
from workers.spec import TrainSpec, override
from workers.train.record import RunPlan, write_text

NAME = "home"
LONGER = {"optimizer.steps": 50, "evaluation.every": 25, "parallel.workers": 2}
"""How the winner is trained on: with two workers and a fresh schedule."""
QUESTIONS = (
    "Call the intent for this request: please switch the desk lamp in the office on",
    "Name the area in this request: how warm is it in the guest room",
    "Call the intent for this German request: mach bitte das Licht in der Küche aus",
)


@dataclass
class Demo:
    """One run of the demo: its folder, and what `demo-summary.json` will say."""

    folder: Path
    narrator: Narrator = field(default_factory=Narrator)
    summary: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and note its seconds."""
        self.narrator.say(f"== {name}")
        started = time.monotonic()
        yield
        self.summary.setdefault("seconds", {})[name] = round(time.monotonic() - started, 1)

    def tune(self, job: JobSpec) -> Study:
        """Search."""
        from orchestrator.tuner import preflight, run

        preflight(job, resume=False)
        search = job.search
        tell = StudyProgress(self.narrator, search.metric, search.mode, search.trials)
        study = run(job, on_progress=tell)
        rows = study.leaderboard()
        self.summary["trials"] = [row.as_dict() for row in rows]
        self.summary["best_trial"] = rows[0].number
        return study

    def train_on(self, job: JobSpec, study: Study) -> str:
        """Train the best trial's adapter for longer with two workers; its version's id."""
        from orchestrator.trainer import fit

        best = study.row(self.summary["best_trial"])
        trial = study.folder / "trials" / trial_name(best.number)
        spec = TrainSpec.model_validate_json((trial / "train.json").read_text())
        spec = override(spec, LONGER, "demo")
        plan = RunPlan(study.folder / "longer", study.name, best.number, trial / "adapter")
        adapter, report = fit(
            spec,
            plan,
            job.search,
            lambda one: self.narrator.say(training_line(one, spec.optimizer.steps)),
        )
        registry = self.registry(job)
        return str(registry.register(study.name, best.number, adapter, report).id)

    def promote(self, job: JobSpec, study: Study, versions: Sequence[str]) -> None:
        """Promote each version in turn, as far as the gate lets it."""
        from orchestrator.promotion import GateRefused, promote

        for version in versions:
            try:
                event = promote(
                    self.registry(job),
                    version,
                    NAME,
                    actor=getpass.getuser(),
                    metric=study.metric,
                    mode=study.mode,
                )
                self.narrator.say(f"{NAME} is now {NAME}@{event.version}: {event.reason}")
            except GateRefused as refusal:
                self.narrator.say(f"the gate keeps the champion: {refusal}")

    def compare(self, job: JobSpec) -> Comparison:
        """The base and the champion on the test rows, whose phrasings training never saw."""
        test = str(Path(job.train.data.validation).with_name("test.parquet"))
        result = compare_version(self.registry(job), NAME, test, rows=30)
        self.summary["metrics"] = result.as_dict()
        return result

    def ask(self, url: str, base: str) -> None:
        """The same questions to the base model and to the champion."""
        from orchestrator.client import ask

        for question in QUESTIONS:
            answers = {
                model: "".join(ask(url, model, question, temperature=0, max_tokens=48)).strip()
                for model in (base, NAME)
            }
            self.summary.setdefault("answers", []).append({"question": question, **answers})
            print(f"\n  {question}")
            for model, answer in answers.items():
                print(f"    {model:>22}: {' '.join(answer.split())}", flush=True)

    def registry(self, job: JobSpec) -> Any:
        """The run's registry."""
        from orchestrator.registry import Registry

        return Registry(job.store_url(), job.cluster.storage)

    def write_summary(self) -> Path:
        """Keep what was measured."""
        path = self.folder / "demo-summary.json"
        write_text(path, json.dumps(self.summary, indent=2, default=str) + "\n")
        return path


def run_demo(storage: Path, assignments: Sequence[str] = ()) -> None:
    """Run the demo in a new folder below `storage`. On a terminal the endpoint stays up until
    Ctrl-C; otherwise everything that was started is stopped at the end."""
    from cluster.session import session
    from orchestrator.commands.options import print_table
    from orchestrator.report import write
    from orchestrator.serving import deploy, undeploy

    demo = Demo(storage.resolve() / datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S"))
    with demo.stage("base model and data"):
        job = _job(demo, storage.resolve() / "assets", assignments)
    with session() as cluster:
        demo.narrator.say(f"dashboard {cluster.dashboard_url}")
        with demo.stage("tune"):
            study = demo.tune(job)
        with demo.stage("train the winner on"):
            longer = demo.train_on(job, study)
        with demo.stage("promote"):
            demo.promote(job, study, [study.version(), longer])
        with demo.stage("before and after"):
            result = demo.compare(job)
        print_table(result.columns(), result.rows(), "unseen phrasings, before and after")
        with demo.stage("serve"):
            endpoint = deploy(job.serve, None, job.store_url(), job.cluster.storage, NAME)
        demo.summary["endpoint"] = endpoint.openai_url
        with demo.stage("ask"):
            demo.ask(endpoint.url, endpoint.base)
        with demo.stage("report"):
            report = demo.summary["report"] = write(job.cluster, study.name)
        print(f"\nreport:   {report}\nsummary:  {demo.write_summary()}")
        if sys.stdout.isatty():
            print(f"endpoint: {endpoint.openai_url} (Ctrl-C stops it; in another terminal:")
            print(f'  moetune ask {NAME} "{QUESTIONS[0]}" --url {endpoint.url})')
            threading.Event().wait()
        undeploy()


def _job(demo: Demo, assets: Path, assignments: Sequence[str]) -> JobSpec:
    """The demo's job, with its base model and data made or found below `assets`."""
    from orchestrator.demo.base_model import prepare
    from orchestrator.demo.smart_home import make

    data = make(assets / "data")
    places = {
        "model.path": str(prepare(assets)),
        "data.train": str(data / "train.parquet"),
        "data.validation": str(data / "validation.parquet"),
        "cluster.storage": str(demo.folder),
    }
    return override_job(load_job("demo", assignments), places, "demo")
