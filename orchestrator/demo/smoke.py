"""What the job `smoke` trains on: a tiny random model and a few rows, made on the spot.

No download, no package beyond moetune's own; the same bytes wherever it is made.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from orchestrator.config.job import JobSpec, load_job, override_job
from orchestrator.demo.tiny_model import write_model
from orchestrator.demo.whole import whole
from orchestrator.tuning.preflight import check_storage

JOB = "smoke"
COLOURS = {"the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red"}
QUESTIONS = {"colour": "What is the colour of {}?", "thing": "What is {}?"}
"""Of each task."""
OTHERWISE = {"colour": "Say the colour of {}.", "thing": "Name something {}."}
"""How the validation rows ask the same."""


def with_its_files(job: JobSpec) -> JobSpec:
    """The job `smoke` with the model and the rows that it names, made in the storage folder where
    they are not there yet. Those that somebody has named instead stay. Raises InputError."""
    named, bare = _files(job), _files(load_job(JOB))
    ours = {field: path for field, path in named.items() if path == bare[field]}
    if not ours:
        return job
    check_storage(job)
    storage = Path(job.cluster.storage)
    whole(storage / JOB, _write)
    return override_job(job, {field: str(storage / path) for field, path in ours.items()}, JOB)


def _files(job: JobSpec) -> dict[str, str]:
    data = job.train.data
    return {
        "model.path": job.train.model.path,
        "data.train": data.train_name,
        "data.validation": data.validation_name,
    }


def _write(folder: Path) -> None:
    write_model(folder / "tiny-llama")
    for name, ways in (("train", QUESTIONS), ("validation", OTHERWISE)):
        lines = [json.dumps(row) for row in _rows(ways)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def _rows(ways: dict[str, str]) -> Iterator[dict[str, str]]:
    for thing, colour in COLOURS.items():
        for task, asked, answer in (("colour", thing, colour), ("thing", colour, thing)):
            yield {"task": task, "prompt": ways[task].format(asked), "target": answer}
