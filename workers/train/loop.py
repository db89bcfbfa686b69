"""The train loop. It knows nothing of Ray: workers.train.ray_worker starts it in both ways."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workers.adapter import files
from workers.adapter.manifest import Manifest
from workers.adapter.routing_sample import RoutingSample
from workers.config.metrics import EARLY_STOPPING, expert_load
from workers.config.train import TrainSpec
from workers.data.counts import RowCounts
from workers.data.epoch import in_steps, steps_of_run
from workers.injection.inject import inject
from workers.models.packing import check_packing
from workers.models.vocabulary import with_token_ids
from workers.parallel.exchange_choice import share_out
from workers.parallel.mesh import Mesh
from workers.parallel.strategy import update_for
from workers.parallel.world import World
from workers.run.early_stopping import Patience
from workers.run.heartbeat import HeartbeatWriter
from workers.run.record import Metrics, RunPlan
from workers.run.samples import Sample
from workers.train.checkpoint import state as checkpoint
from workers.train.compiled import CompiledLayers, compiled_layers
from workers.train.evaluation.evaluator import Evaluation, ScoredRows
from workers.train.inputs import Inputs
from workers.train.layout import micro_batch, run_batches
from workers.train.report import check_finite
from workers.train.run_steps import RunSteps
from workers.train.start import start_from
from workers.train.step import TrainStep
from workers.train.used import data_before, read_used, used_file


class TrainingRun:
    """One adapter in training, on this worker. Every worker of a run calls the same methods."""

    compiled: CompiledLayers | None = None
    """With model.compile, its layers."""

    def __init__(  # noqa: PLR0913 -- what a run may share with others
        self,
        spec: TrainSpec,
        plan: RunPlan,
        *,
        world: World | None = None,
        inputs: Inputs | None = None,
        heartbeat: HeartbeatWriter | None = None,
        slot: str = "default",
    ) -> None:
        """`inputs` are those of an earlier run with the same model and data, if there was one;
        `heartbeat` is told where this worker is, and stops with the run. `slot` is the adapter's on
        the model, which other runs may train theirs on."""
        self.plan = plan
        mesh = Mesh.of(spec.parallel) if world is None else Mesh(world, dp=world)
        self.world = mesh.world
        self.heartbeat = heartbeat or HeartbeatWriter(self.world.rank, self.world.size)
        self.inputs = inputs or Inputs.load(spec)
        spec = spec.with_model(self.inputs.spec.model)
        self.spec = spec = with_token_ids(spec, self.inputs.base.tokenizer)
        """What it computes, in the precision of its base and with the ids of its tokens."""
        self.metrics: Metrics = {}
        """The last report."""
        self.patience = Patience.of(spec.optimizer.early_stopping, plan.watched)
        """With early stopping, what its evaluations came to."""
        self.base_metrics: Metrics = {}
        """The same of the bare base, as far as it has any; kept with the adapter."""
        self.samples: list[Sample] = []
        """Some validation rows with what was answered to them in the last report, if it has any."""
        self._sample: RoutingSample | None = None
        self._earlier_data: tuple[str, ...] = ()
        if spec.parallel.threads:
            torch.set_num_threads(spec.parallel.threads)
        checkpoint.seed_worker(spec.seed, self.world)
        if spec.data.packing:
            check_packing(self.inputs.base.model)
        self.heartbeat.beat("encode")
        self.inputs.encode(lambda *_: self.heartbeat.moving())  # all: it must not fail after hours
        self.heartbeat.beat("loading")
        base = self.inputs.base
        total = steps_of_run(spec.optimizer, lambda: self.inputs.parts)
        batches = run_batches(spec, self.inputs, self.world, self.heartbeat.moving)
        self.taking = RunSteps(spec, plan, self.inputs, self.world, batches, total, self.heartbeat)
        self.adapter = inject(base.model, spec.adapter, slot=slot, seed=spec.seed)
        self.evaluation = Evaluation(
            self.inputs,
            self.adapter,
            spec,
            self.world,
            self.heartbeat.moving,
            fitting=self.taking.fitting,
        )
        try:
            start_from(spec, self.adapter, self.inputs.base_record)
            micro = micro_batch(spec, self.inputs, self.world.size, batches)
            self._shards = share_out(spec, base.model, self.adapter, mesh, micro)
            self.exchange = self._shards.choice
            """With expert parallelism, how experts and tokens meet, and why so."""
            self._update = update_for(spec, base.model, self.adapter, self._shards)
            self.train_step = TrainStep(
                in_steps(spec, total), base, self.adapter, self._update, self.heartbeat
            )
            self.compiled = compiled_layers(spec, base, self.adapter)
        except BaseException:
            self.close()
            raise

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.taking.taken

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.taking.total

    @property
    def done(self) -> bool:
        """Whether all steps are taken, or no better evaluation is waited for."""
        return self.step >= self.steps or (self.patience is not None and self.patience.is_over)

    @property
    def may_be_last(self) -> bool:
        """Whether the next report may be the one that the run ends with."""
        return self.done or self.patience is not None

    @property
    def is_best(self) -> bool:
        """Whether the adapter of the last report is the one to leave: without early stopping it
        always is."""
        return self.patience is None or self.patience.best_step == self.step

    @property
    def has_best(self) -> bool:
        """Whether an evaluation is kept that later ones may not replace."""
        return self.patience is not None and self.patience.best is not None

    @property
    def train_counts(self) -> RowCounts:
        """What encoding did to the rows to learn from; of a stream to those of this window."""
        return self.taking.counts

    def advance(self, after_step: Callable[["TrainingRun"], None] | None = None) -> Metrics:
        """Train to the next report, and `report`. `after_step` is called after each step but the
        last."""
        until = self.taking.next_report
        model = self.inputs.base.model.train()
        try:
            self._train_until(until, after_step)
        finally:
            model.eval()
        return self.report()

    def report(self, scored: ScoredRows | None = None) -> Metrics:
        """Evaluate, in eval mode; the same figures on every worker. `scored` as in Evaluation.

        `{"step", "steps", "epoch", "train": {"loss", "cross_entropy", …, "grad_norm", "lr",
        "tokens_per_second"}, "validation": …}`, losses as means over the steps since the last
        report (auxiliary ones only where they are on) and `validation` as Evaluation gives it;
        with early stopping, `early_stopping` too (workers.run.early_stopping). `skipped_steps` are
        not in the means. Raises DivergedError if more steps in a row than allowed, or anything of
        the report, is not finite.
        """
        train = self.taking.summary(self.metrics.get("train", {}))
        if self.exchange:
            sent, steps = self._shards.traffic.take(), max(len(self.taking.results), 1)
            train["exchanged_bytes_per_step"] = sent / steps
        self.taking.reported()
        self.heartbeat.beat("evaluate")
        rows, slot = self.adapter.rows, self.adapter.slot
        with self._shards.gathered(), self._as_written(), rows.everywhere(slot):
            measured = self.evaluation.measure(last=self.may_be_last, scored=scored)
        self._sample, self.samples = measured.routing_sample, measured.samples
        self.metrics = {
            "step": self.step,
            "steps": self.steps,
            "epoch": self.taking.epoch,
            "train": train,
            "validation": measured.metrics,
        }
        check_finite(self.metrics, self.step)
        if self.patience:  # the workers' figures are the same, but who stops must not hang on it
            self.patience = self.world.gather(self.patience.after(self.metrics))[0]
            stopped = self.patience.is_over and self.step < self.steps
            self.metrics[EARLY_STOPPING] = self.patience.figures(stopped=stopped)
        return self.metrics

    def measure_base(self) -> tuple[Metrics, list[Sample]]:
        """Validation without the adapter, as part of a report, and samples of its answers; the same
        on every worker."""
        self.inputs.base.model.eval()
        self.heartbeat.beat("evaluate")
        with self._shards.gathered(), self._as_written(), self.adapter.rows.everywhere(None):
            measured = replace(self.evaluation, adapter=None).measure(last=True)
        metrics = {"validation": measured.metrics}
        check_finite(metrics, self.step)
        return metrics, measured.samples

    def save_adapter(self, folder: Path) -> None:
        """The adapter alone, with its lineage, whole or not at all."""
        self.heartbeat.beat("save")
        tensors = self._update.whole_adapter()
        if self.world.is_first:
            files.save(self.adapter, folder, self._manifest(), tensors)

    def save(self, folder: Path) -> None:
        """Everything needed to continue exactly, into an existing folder."""
        state = self.state()
        if self.world.is_first:
            self.write(folder, state)
        self.heartbeat.beat("report")

    def state(self) -> dict[str, Any]:
        """What `write` needs. All that the workers do together for a checkpoint happens here, so
        that a disk that is full fails one of them alone."""
        self.heartbeat.beat("save")
        return {
            **self.taking.state(),
            "metrics": self.metrics,
            "random": self.world.gather(checkpoint.random_states()),
            "schedule": self.train_step.schedule_state(),
            "update": self._update.whole_state(),
            "patience": self.patience.state() if self.patience else None,
        }

    def write(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write a `state` just taken, and the adapter, into an existing folder: for one worker."""
        optimizer = dict(state["update"])
        tensors = optimizer.pop("adapter")
        files.save(self.adapter, folder / "adapter", self._manifest(), tensors)
        checkpoint.write_state(folder, {**state, "update": optimizer})

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote. Raises InputError where the rows or the base are others
        than then."""
        state = checkpoint.read_state(folder)
        adapter = files.read(folder / "adapter")
        if adapter.manifest and self.world.is_first:
            shared = self.plan.shared
            study = read_used(used_file(shared, self.spec)) if shared else None
            self._earlier_data = data_before(adapter.manifest, self.inputs.used, study, str(folder))
        self._update.load_whole_state({**state["update"], "adapter": adapter.tensors})
        self._sample = adapter.manifest.routing_sample if adapter.manifest else None
        self.train_step.load_schedule_state(state["schedule"])
        self.metrics = state["metrics"]
        if self.patience and self._same_rows(adapter.manifest):  # else they do not compare
            self.patience = self.patience.resumed(state["patience"])
        if self.metrics:  # accepted new rows may have made it another number
            self.metrics = {**self.metrics, "steps": self.steps}
        self.taking.load_state(state)
        checkpoint.restore_random_states(state["random"], self.world)

    def close(self) -> None:
        """Take the adapter off the base model, which the next run may use."""
        if self.taking.stream:
            self.taking.stream.close()
        if self.compiled:
            self.compiled.remove()
        self.adapter.remove()
        self.heartbeat.stop()

    def _as_written(self) -> AbstractContextManager[None]:
        return self.compiled.as_written() if self.compiled else nullcontext()

    def _train_until(self, step: int, after_step: Callable[["TrainingRun"], None] | None) -> None:
        self.taking.begin()
        while self.step < step:
            self.taking.take(self.train_step)
            if after_step and self.step < step:
                after_step(self)

    def _same_rows(self, then: Manifest | None) -> bool:
        """Whether a checkpoint's evaluations were on the rows of today; the same on all workers."""
        same = then is None or then.data_digest in (None, self.inputs.data_digest)
        return bool(self.world.gather(same)[0])

    def _manifest(self) -> Manifest:
        return Manifest(
            base=self.inputs.base_record,
            spec=self.spec.model_dump(mode="json"),
            data_digest=self.inputs.data_digest,
            earlier_data=self._earlier_data,
            study=self.plan.study,
            trial=self.plan.trial,
            metrics=self.metrics,
            base_metrics=self.base_metrics,
            expert_load=expert_load(self.metrics),
            routing_sample=self._sample,
        )
