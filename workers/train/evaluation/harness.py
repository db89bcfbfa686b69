"""EleutherAI's lm-eval on a base with an adapter: its tasks and figures, our injected model."""

import contextlib
import difflib
import math
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.config.base import InputError, one_line
from workers.config.extras import installing
from workers.train.evaluation.harness_spec import HarnessSpec
from workers.train.evaluation.task_files import check_task_files

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

LIBRARY = "lm_eval"
Figures = dict[str, Any]
"""`{"lm_eval": version, "tasks": {task: {"version", "shots", "rows", "metrics": {name: value},
"stderr": {name: value}}}}`"""


def check_harness(spec: HarnessSpec) -> None:
    """InputError where lm-eval is not installed here, for a folder that would run code, and for a
    task that is not there."""
    _tasks(spec)


def run_harness(spec: HarnessSpec, folder: Path | None) -> Figures:
    """The tasks' figures with the adapter in `folder`, or of the bare base where that is None."""
    from lm_eval import simple_evaluate

    manager, names = _tasks(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = simple_evaluate(
                model=harness_model(spec, folder),
                tasks=list(names),
                num_fewshot=spec.shots,
                limit=spec.limit,
                apply_chat_template=spec.chat,
                log_samples=False,
                task_manager=manager,
            )
    except InputError:
        raise
    except Exception as error:  # whatever a task of others asks for
        raise InputError(
            f"--lm-eval {','.join(spec.tasks)}: {type(error).__name__}: {one_line(error)}"
        ) from error
    return {"lm_eval": version(LIBRARY), "tasks": _figures(found)}


def harness_model(spec: HarnessSpec, folder: Path | None) -> "HFLM":
    """The base with the adapter in `folder`, as lm-eval asks models."""
    from lm_eval.models.huggingface import HFLM

    from workers.adapter.files import attach
    from workers.models.base import load_base

    base = load_base(spec.model)
    if folder is not None:
        attach(base.model, folder)
    if spec.chat_template is not None:
        base.tokenizer.chat_template = spec.chat_template
    base.model.eval()
    return HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=spec.batch_size)


def _tasks(spec: HarnessSpec) -> tuple["TaskManager", list[str]]:
    """lm-eval's index of tasks, and those that are named."""
    if find_spec(LIBRARY) is None:
        raise InputError(
            f"--lm-eval: needs the package {LIBRARY}, which {socket.gethostname()} has not: "
            f"{installing('lm-eval')}"
        )
    from lm_eval.tasks import TaskManager

    if spec.tasks_folder is not None and not spec.run_task_code:
        _check_folder(Path(spec.tasks_folder))
    manager = TaskManager(include_path=spec.tasks_folder)
    return manager, matched(manager, spec.tasks)


def matched(manager: "TaskManager", asked: Sequence[str]) -> list[str]:
    """The names that these stand for, all of them; InputError for what stands for none."""
    for one in asked:
        if not manager.match_tasks([one]):
            close = difflib.get_close_matches(one, manager.all_tasks, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise InputError(f"--lm-eval {one}: there is no such task{hint}")
    names: list[str] = manager.match_tasks(list(asked))
    return names


def _check_folder(folder: Path) -> None:
    import lm_eval.tasks
    from lm_eval.api.registry import metric_registry

    if not folder.is_dir():
        raise InputError(f"--tasks-folder {folder}: there is no such folder")
    (own,) = lm_eval.tasks.__path__
    check_task_files(folder, Path(own), frozenset(metric_registry.keys()))


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """What it says of each task and group."""
    rows = found.get("n-samples", {})
    return {
        task: {
            "version": found.get("versions", {}).get(task),
            "shots": found.get("n-shot", {}).get(task),
            "rows": rows.get(task, {}).get("effective"),
            **_by_metric(told),
        }
        for task, told in found["results"].items()
    }


def _by_metric(told: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Values and their standard errors by metric, and by filter where a task has one. JSON has no
    number that is not finite: None stands for it."""
    parts: dict[str, dict[str, float | None]] = {"metrics": {}, "stderr": {}}
    for key, metric, value in _numbers(told):
        parts[key][metric] = value if math.isfinite(value) else None
    return parts


def _numbers(told: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for name, value in told.items():
        metric, comma, way = name.partition(",")
        if comma and isinstance(value, int | float):
            shown = metric if way == "none" else f"{metric},{way}"
            error = metric.endswith("_stderr")
            yield ("stderr" if error else "metrics"), shown.replace("_stderr", "", error), value
