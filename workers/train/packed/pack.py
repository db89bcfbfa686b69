"""Several runs on one frozen base. It knows nothing of Ray, and has one thread.

A run joins with its task, takes its steps together with the others (`joint_step`), and leaves when
it is done, or when it is told to. Whatever fails in it fails it alone.
"""

import time
from collections.abc import Collection, Sequence

from workers.injection.inject import row_map
from workers.parallel.world import World
from workers.run.events import EventLog
from workers.run.record import Metrics, RunRecord
from workers.train.attempt import Attempt, in_precision, watched
from workers.train.checkpoint.state import seed_worker
from workers.train.evaluation.evaluator import ScoredRows
from workers.train.evaluation.together import scored_together
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.out_of_memory import StepOutOfMemoryError
from workers.train.packed.joint_layout import JointLayout
from workers.train.packed.joint_step import JoiningStep, JointStep
from workers.train.packed.key import check_packs
from workers.train.packed.slot import OwnState, PackSlot, SharedHeartbeat
from workers.train.step import StepResult
from workers.train.task import RunTask

Told = dict[str, Metrics | Exception]
"""By run its report, with "done" and "folder", or why it has ended."""


class Pack:
    """Runs that share a base. With several workers each has a Pack of the same runs, and all call
    the same methods in the same order."""

    def __init__(
        self, size: int, world: World | None = None, layout: JointLayout | None = None
    ) -> None:
        """`size`: so many runs share a pass at most. `layout`: not the one that suits the base."""
        self._world = world or World()
        self._together = size
        self._layout = layout
        self._inputs: Inputs | None = None
        self._slots: dict[str, PackSlot] = {}
        self._hearts: dict[str, SharedHeartbeat] = {}

    @property
    def names(self) -> list[str]:
        """Its runs, in the order in which they came."""
        return [*self._slots]

    def join(self, task: RunTask) -> None:
        """Begin a run, or go on with it from its last checkpoint; one of its name that is here goes
        first. Raises what makes that fail."""
        self.leave(task.name)
        first, own_state = self._world.is_first, OwnState()
        record = task.record() if first else RunRecord(task.plan.folder)
        if first:
            record.begin(task.spec)
        self._world.barrier()
        heart = SharedHeartbeat(self._world.rank, self._world.size, self._hearts)
        heart.write(record.folder, record.observe)
        self._hearts[task.name] = heart
        try:
            with watched(heart, task.spec, record), own_state():
                attempt = self._begun(task, record, heart)
        except BaseException:
            del self._hearts[task.name]
            heart.stop()
            raise
        self._slots[task.name] = PackSlot(attempt, own_state)

    def leave(self, name: str) -> None:
        """Take a run out, if it is here; it can join again."""
        if name in self._slots:
            self._slots.pop(name).close()
            self._hearts.pop(name)

    def round(self, wanting: Collection[str]) -> Told:
        """A step of each of these runs, together, and the reports of those that came to one. What
        is told as done, or as failed, has left."""
        slots = [self._slots[name] for name in self.names if name in wanting]
        for one in slots:
            one.wanted()
        told: Told = {}
        if stepping := [one for one in slots if not one.is_due]:
            self._step(stepping, told)
        self._report([one for one in slots if one.is_due and one.name not in told], told)
        return told

    def close(self) -> None:
        """Take all runs out."""
        for name in self.names:
            self.leave(name)

    def _begun(self, task: RunTask, record: RunRecord, heart: SharedHeartbeat) -> Attempt:
        task = in_precision(task)
        check_packs(task.spec)
        inputs = Inputs.load(task.spec, self._inputs)
        former = self._inputs
        assert not self._slots or (former and inputs.base is former.base), "a pack has one base"
        self._inputs = inputs
        inputs.base.model.eval()
        self._layout = self._layout or JointLayout.of(inputs.base)
        seed_worker(task.spec.seed, self._world)
        # Whoever looks how the base computes means the base.
        with row_map(inputs.base.model).everywhere(None):
            run = TrainingRun(
                task.spec,
                task.plan,
                world=self._world,
                inputs=inputs,
                heartbeat=heart,
                slot=task.name,
            )
            return Attempt.begin(run, record)

    def _step(self, slots: Sequence[PackSlot], told: Told) -> None:
        assert self._inputs is not None
        if not self._inputs.base.model.training:
            self._inputs.base.model.train()
        started = time.perf_counter()
        results = self._taken(slots)
        seconds = (time.perf_counter() - started) / len(slots)
        for one, result in zip(slots, results, strict=True):
            try:
                if isinstance(result, Exception):
                    raise result
                one.took(result, seconds)
            except Exception as error:
                self._fail(one, error, told)

    def _taken(self, slots: Sequence[PackSlot]) -> list[StepResult | Exception]:
        """What a step gave each of them, or why it ends."""
        before = [one.own_state.states for one in slots]
        while min(self._together, len(slots)) > 1:
            try:
                return self._joint([one.joining() for one in slots])
            except StepOutOfMemoryError:
                self._share_less(slots)
                again = True
            except Exception:
                if self._world.size > 1:  # the others wait in the midst of theirs
                    raise
                again = False
            for one, state in zip(slots, before, strict=True):
                one.own_state.states = state
            if not again:
                break  # Whatever ends one of them must not end the others.
        return [self._alone(one) for one in slots]

    def _alone(self, one: PackSlot) -> StepResult | Exception:
        """A step of one run; in smaller passes from here on, where memory runs out."""
        before = one.own_state.states
        while True:
            try:
                return self._joint([one.joining()])[0]
            except StepOutOfMemoryError:
                one.run.taking.halve()
            except Exception as error:
                if self._world.size > 1:
                    raise
                return error
            one.own_state.states = before

    def _joint(self, joining: Sequence[JoiningStep]) -> list[StepResult | Exception]:
        assert self._inputs is not None
        inputs = self._inputs
        step = JointStep(inputs.base, inputs.pad_token_id, self._together, self._layout)
        return step(joining)

    def _share_less(self, slots: Sequence[PackSlot]) -> None:
        """Fewer runs in a pass from here on, which changes nothing of what they learn. Every worker
        comes here, where one of them lacked memory."""
        together = min(self._together, len(slots))
        self._together = together // 2
        if not self._world.is_first:
            return
        said = f"out of memory: {self._together} of the pack's runs at most in a pass from here on"
        for one in slots:
            log = EventLog(one.attempt.record.folder)
            log.note("memory", f"{said} (before: {together})", step=one.run.step)

    def _report(self, slots: Sequence[PackSlot], told: Told) -> None:
        """The reports of those that came to one; their rows are scored together."""
        if not slots:
            return
        assert self._inputs is not None
        if self._inputs.base.model.training:
            self._inputs.base.model.eval()
        scored = self._scored([one for one in slots if one.evaluates])
        for one in slots:
            try:
                told[one.name] = report = one.report(scored.get(one.name))
            except Exception as error:
                self._fail(one, error, told)
            else:
                if report["done"]:
                    self.leave(one.name)

    def _scored(self, slots: Sequence[PackSlot]) -> dict[str, ScoredRows]:
        """By run; none where each is to do it by itself."""
        if len(slots) < 2:
            return {}
        try:
            found = scored_together(
                [one.run.evaluation for one in slots], [one.run.may_be_last for one in slots]
            )
        except Exception:
            if self._world.size > 1:
                raise
            return {}  # Whatever ends one of them must not end the others.
        return {one.name: rows for one, rows in zip(slots, found, strict=True)}

    def _fail(self, one: PackSlot, error: Exception, told: Told) -> None:
        one.failed(error)
        told[one.name] = error
        self.leave(one.name)
