"""What goes on: where a run is, and a study. Read from files and Optuna's storage, as it is now."""

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from orchestrator.config.cluster import ClusterSpec
from orchestrator.monitoring.eta import eta
from orchestrator.monitoring.format import duration, number, plain
from orchestrator.monitoring.stalls import Stall, stalls
from orchestrator.tuning.study import ENDS, SAME_AS, STATES, Study, best_of, trial_name
from workers.config.losses import AUXILIARY
from workers.config.metrics import BEST_STEP, STOPPED
from workers.run import heartbeat
from workers.run.events import RunEvent, read_events
from workers.run.heartbeat import ENDED
from workers.run.progress import Progress

_IN_ORDER = ("started", "pack", "attention", "norms", "compile", "exchange", "data", "finished")
"""Kinds of events that say nothing went wrong."""


class RunStatus(BaseModel):
    """Where a run is."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    trial: int | None = None
    """Its number; None for a run that belongs to no study."""
    phase: str = "starting"
    """What the run's slowest worker does, as `Heartbeat.phase`; starting before there is one."""
    progress: Progress | None = None
    """After its last step."""
    stalls: tuple[Stall, ...] = ()
    event: RunEvent | None = None
    """The last thing that happened to it which should not."""

    @property
    def step(self) -> int:
        """Optimizer steps that it says it has done."""
        return self.progress.step if self.progress else 0

    @property
    def news(self) -> frozenset[object]:
        """What people should hear of at once, if it was not there before."""
        return frozenset((*(stall.place for stall in self.stalls), self.event)) - {None}

    def lines(self) -> list[str]:
        """One line, and one more for each thing that is not as it should be."""
        name = "training" if self.trial is None else f"trial {self.trial}"
        lines = [f"{name} · {self._figures()}", *(f"  ! {stall}" for stall in self.stalls)]
        if self.event:
            ago = duration(max(0.0, time.time() - self.event.at))
            lines.append(f"  ~ {self.event.kind} {ago} ago: {plain(self.event.message)}")
        return lines

    def _figures(self) -> str:
        now = self.progress
        if now is None:
            return self.phase
        parts = [f"{now.step}/{now.steps} steps"]
        parts += [self.phase] if self.phase in ("evaluate", "save") else []
        parts.append(f"{duration(now.eta_seconds)} left")
        parts.append("loss not finite" if now.loss is None else f"loss {now.loss:.3f}")
        shown = {name: loss.short for name, loss in AUXILIARY.items() if loss.short}
        parts += [f"{shown[n]} {v:.2f}" for n, v in now.auxiliary.items() if n in shown]
        parts += [f"{now.tokens_per_second:.0f} tokens/s", f"{now.step_seconds:.3g} s a step"]
        parts += [f"lr {now.lr:.2e}", f"epoch {now.epoch:.2f}"]
        parts += [f"{now.workers} workers"] if now.workers > 1 else []
        return " · ".join(parts)


class StudyStatus(BaseModel):
    """Where a study is."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    study: str
    trials: int
    """That it will have."""
    ended: dict[str, int]
    """How many are finished, stopped and failed."""
    running: tuple[RunStatus, ...]
    metric: str
    best: float | None
    best_trial: int | None
    best_step: int | None = None
    """With early stopping, the step that it is of."""
    stopped_early: int = 0
    """Trials that are finished and had got no better before their last step."""
    eta_seconds: float | None
    """Until the last trial's end; None before anything is known."""

    interrupted: str | None = None
    """How to go on with it, where trials are left and no process runs it."""
    at: float
    """When this was so, in seconds since 1970."""

    @property
    def news(self) -> frozenset[object]:
        """Of all running trials."""
        return frozenset((run.trial, one) for run in self.running for one in run.news)

    def lines(self) -> list[str]:
        """What goes on, for people."""
        if self.interrupted:
            cut = (f"trial {run.trial} · cut off after step {run.step}" for run in self.running)
            return [self.headline(), *cut, f"interrupted; go on with: {self.interrupted}"]
        return [self.headline(), *(line for run in self.running for line in run.lines())]

    def headline(self) -> str:
        """The study in one line."""
        states = ", ".join(
            f"{count} {state}{self._early(state)}" for state, count in self.ended.items() if count
        )
        ended = sum(self.ended.values())
        parts = [f"study {self.study}", f"{ended} of {self.trials} trials ended"]
        parts[-1] += f" ({states})" if states else ""
        if self.best is not None:
            step = "" if self.best_step is None else f", step {self.best_step}"
            parts.append(f"best {self.metric} {number(self.best)} (trial {self.best_trial}{step})")
        if self.interrupted:
            parts.append("interrupted")
        elif self.eta_seconds is not None:
            parts.append(f"about {duration(self.eta_seconds)} left")
        return " · ".join(parts)

    def _early(self, state: str) -> str:
        told = self.stopped_early and state == "finished"
        return f" ({self.stopped_early} early)" if told else ""


def run_status(folder: Path, trial: int | None = None) -> RunStatus:
    """Where the run in `folder` is."""
    workers = heartbeat.read(folder)
    alive = [one for one in workers if one.phase != ENDED]
    last = min(alive, key=lambda one: one.beats, default=None)
    return RunStatus(
        trial=trial,
        phase=last.phase if last else ENDED if workers else "starting",
        progress=next((one.progress for one in workers if one.progress), None),
        stalls=stalls(workers),
        event=next((e for e in reversed(read_events(folder)) if e.kind not in _IN_ORDER), None),
    )


def study_status(study: Study) -> StudyStatus:
    """Where a study is; cheap enough to ask every second."""
    trials = study.optuna.get_trials(deepcopy=False)
    alive = [trial for trial in trials if not trial.state.is_finished()]
    running = [trial for trial in alive if SAME_AS not in trial.user_attrs]
    runs = [run_status(study.folder / "trials" / trial_name(t.number), t.number) for t in running]
    states = [STATES[trial.state.name] for trial in trials if trial.state.is_finished()]
    best = best_of(trials, study.mode)
    in_all = max(int(study.job["search"]["trials"]), len(trials))
    return StudyStatus(
        study=study.name,
        trials=in_all,
        ended={state: states.count(state) for state in ENDS},
        running=tuple(runs),
        metric=study.metric,
        best=best and best.value,
        best_trial=best and best.number,
        best_step=best and best.user_attrs.get(BEST_STEP),
        stopped_early=sum(
            trial.user_attrs.get(STOPPED, False)
            for trial in trials
            if trial.state.name == "COMPLETE"
        ),
        eta_seconds=eta(trials, _remaining(runs), in_all),
        at=time.time(),
    )


def status_from_outside(study: Study, cluster: ClusterSpec) -> StudyStatus:
    """`study_status` for who is not its driver: also whether there is one."""
    from orchestrator.tuning.lifecycle import resume_command

    now = study_status(study)
    return now.model_copy(update={"interrupted": resume_command(study, cluster)})


def _remaining(runs: Sequence[RunStatus]) -> dict[int, float | None]:
    """What each trial's run says itself."""
    return {
        run.trial: run.progress.eta_seconds if run.progress else None
        for run in runs
        if run.trial is not None
    }
