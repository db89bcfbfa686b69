"""What a training run is: one frozen, typed tree, loadable without torch.

Its larger parts lie beside: the base model, the rows, the adapter, its losses, the workers.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from workers.config.adapter import AdapterSpec
from workers.config.attention import ATTENTION
from workers.config.base import Fraction, NonNegative, OneOf, PositiveInt, Spec
from workers.config.credentials import Uri
from workers.config.data import RESULTS_APART, DataSpec
from workers.config.losses import LossSpec
from workers.config.model import ModelSpec
from workers.config.optimizers import ADAM_BETAS, OPTIMIZERS, check_gpu
from workers.config.parallel import ParallelSpec, PassLimit


class EarlyStoppingSpec(Spec):
    """When a run ends before its last step. It watches the metric that trials are compared on
    (search.metric and mode); what it leaves is the adapter of its best evaluation, also where it
    takes all steps."""

    patience: PositiveInt
    """So many evaluations in a row without a gain end the run."""
    min_delta: NonNegative = 0.0
    """A gain is a metric that is better by more than so much than at the gain before."""


class OptimizerSpec(Spec):
    """The optimizer and its schedule."""

    name: Annotated[str, OneOf(lambda: OPTIMIZERS)] = "adamw"
    """Whose steps are taken. Of torch: adamw, adam, adagrad (not with strategy deepspeed), rmsprop,
    sgd, adafactor (with strategy ddp and ep_size 1 only). Of bitsandbytes (extra `quantized`), with
    ddp and ep_size 1 only, their state in 8 bits: adamw_8bit, lion_8bit, and on a GPU
    paged_adamw_8bit and paged_lion_8bit, which move it to the CPU's memory where the GPU's is
    full. Each wants its own lr."""
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate, for every size of base: what MixLoRA was published with on 7B and 13B
    (arXiv 2404.15159). Published rules by size do not carry over (docs/search-spaces.md): search
    it."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    """The B matrices learn at so many times lr (LoRA+, arXiv 2402.12354, which takes 16 with a
    smaller lr), and with use_dora the magnitudes, as in PEFT."""
    router_lr_ratio: NonNegative = 1.0
    """Routers learn at so many times lr; 0 leaves them as they are drawn."""
    train_also_lr_ratio: Annotated[float, Field(gt=0)] = 0.2
    """What adapter.train_also and train_tokens name learns at so many times lr: the base's own
    numbers want a smaller step than low-rank matrices (Unsloth advises 2 to 10 times smaller)."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay; with adam, adagrad, rmsprop and sgd a penalty in the gradient."""
    betas: tuple[Fraction, Fraction] = ADAM_BETAS
    """Decay rates of adam's kind and lion's, which has (0.9, 0.99) where these are left."""
    momentum: Fraction = 0.0
    """Of sgd and rmsprop."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine and linear end at zero."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of linear warm-up: the first has a share of 1 / warmup_steps."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradients' global norm; None leaves them."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 3
    """So many steps in a row may be left out because their loss or gradients are not finite; one
    more ends the run."""
    steps: PositiveInt | None = 100
    """Optimizer steps in all; None where `epochs` says how long the run is."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows, as in 3 or 0.5, in place of `steps`: how many steps they are
    follows from the rows, their weights and batch_size, rounded up."""
    early_stopping: EarlyStoppingSpec | None = None
    """Ends a run whose evaluations no longer get better; None makes all steps."""
    batch_size: PositiveInt = 16
    """Rows of one optimizer step, over all workers."""
    micro_batch_size: PositiveInt | None = None
    """Rows of one forward pass on one worker; None takes the whole share (no accumulation). With
    data.packing: packed sequences, of max_length tokens at most."""
    micro_batch_tokens: PositiveInt | None = None
    """In place of micro_batch_size: tokens of one forward pass on one worker at most, padding
    included, so that short rows fill a pass as long ones do. At least data.max_length."""

    exclusive: ClassVar[tuple[str, ...]] = ("steps", "epochs")

    @property
    def decay_rates(self) -> tuple[float, float] | None:
        """`betas`, or the optimizer's own where they are left; None where it has none."""
        own = OPTIMIZERS[self.name].betas
        return own if own is None or self.betas == ADAM_BETAS else self.betas

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        """With `epochs` there are no `steps`; without either, as many as the default says."""
        if not isinstance(values, Mapping):
            return values
        steps, epochs = values.get("steps"), values.get("epochs")
        if steps is not None and epochs is not None:
            raise ValueError(
                f"steps is {steps} and epochs is {epochs}, but a run has one length: say one of "
                "them"
            )
        if steps is not None:
            return values
        others = {name: value for name, value in values.items() if name != "steps"}
        return others if epochs is None else {**others, "steps": None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        kind = OPTIMIZERS[self.name]
        if self.momentum and not kind.has_momentum:
            raise ValueError(
                f"momentum is {self.momentum}, but is for sgd and rmsprop, not {self.name}"
            )
        if kind.betas is None and self.betas != ADAM_BETAS:
            raise ValueError(f"betas are {self.betas}, but {self.name} has none")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but must be below steps, "
                f"which is {self.steps}"
            )
        return self


class EvaluationSpec(Spec):
    """What is measured on the validation rows, and how often."""

    every: PositiveInt = 50
    """Optimizer steps between evaluations, which is also when metrics are reported."""
    rows_per_task: PositiveInt | None = None
    """Take only the first so many rows of each task; None takes all."""
    generate: bool = True
    """Also score each row by its metric (generates text), not by the loss alone."""
    max_new_tokens: PositiveInt = 48
    """Longest generated answer."""
    samples: Annotated[int, Field(ge=0, le=50)] = 6
    """So many rows, with what the base and each trial answered to them, are kept in the study's
    folder for its report; 0 keeps none. Without `generate` they are answered once, at the end; with
    optimizer.early_stopping at each evaluation, which may be the best."""
    batch_size: PositiveInt | None = None
    """Rows of one forward pass; None takes as many as training does, which fit into memory."""


class CheckpointSpec(Spec):
    """What a run keeps so that it can be gone on with after a failure."""

    every: PositiveInt | None = None
    """Optimizer steps between checkpoints; None makes one at every evaluation."""
    keep: PositiveInt = 2
    """So many of the latest stay, here and where they are uploaded to."""
    upload: Uri | None = None
    """Folder for copies, as a URI of any filesystem that pyarrow writes (s3://…, gs://…, file:///…).
    They are made beside training; a run that lost its own checkpoints goes on from there. Its
    keys stand in the workers' environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""


class TrainSpec(Spec):
    """One training run."""

    model: ModelSpec
    adapter: AdapterSpec = AdapterSpec()
    loss: LossSpec = LossSpec()
    data: DataSpec
    optimizer: OptimizerSpec = OptimizerSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    parallel: ParallelSpec = ParallelSpec()
    start_from: str | None = None
    """Folder of an adapter of this base and shape whose weights the run begins with; None begins
    anew. `moetune train --from` fills it in."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds adapter weights, dropout and data order."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        comparing = self.loss.comparing()
        if self.adapter.shared_a and comparing:
            raise ValueError(
                f"loss.{comparing[0]} needs experts with an A matrix each; adapter.shared_a "
                "gives them one, so it must be 0"
            )
        if self.data.streaming and self.optimizer.epochs:
            raise ValueError(
                f"optimizer.epochs is {self.optimizer.epochs:g}, but with data.streaming rows are "
                "not counted beforehand: say optimizer.steps"
            )
        self._check_batch()
        self._check_tokens()
        self._check_experts()
        self._check_also()
        self._check_optimizer()
        self._check_compiled()
        kind = ATTENTION.get(self.model.attention)
        if self.data.packing and kind and not kind.packs:
            raise ValueError(
                f"model.attention is {self.model.attention}, which keeps packed rows together, but "
                "data.packing is true; auto, sdpa, eager and FlashAttention keep them apart"
            )
        if self.model.quantization and self.parallel.shards_base:
            raise ValueError(
                f"model.quantization is {self.model.quantization}, but packed weights cannot be "
                "cut: parallel.strategy must be ddp, or deepspeed with zero_stage 1 or 2"
            )
        return self

    def same_run(self, other: Self) -> bool:
        """Whether `other` may go on with this run: spread over its workers in another way, perhaps,
        with other checkpoints and kernels, and keeping other answers. Where one of them leaves the
        precision, or a token's id, to a worker, it is the other's."""
        mine, theirs = self._decides(), other._decides()
        if "auto" in (self.model.dtype, other.model.dtype):
            mine["model"]["dtype"] = theirs["model"]["dtype"]
        if self.adapter.may_train_tokens_of(other.adapter):
            mine["adapter"]["train_tokens"] = theirs["adapter"]["train_tokens"]
        return mine == theirs

    def _decides(self) -> dict[str, Any]:
        """What a run computes."""
        values = self.model_dump(exclude={"parallel", "checkpoint"})
        del values["evaluation"]["samples"]
        for field in ("attention", "fused_norms", "compile"):
            del values["model"][field]
        for field in RESULTS_APART:
            del values["data"][field]
        return values

    def with_model(self, model: ModelSpec) -> "TrainSpec":
        """The same on this base."""
        return self.model_copy(update={"model": model})

    @property
    def pass_limit(self) -> PassLimit:
        """What one forward pass of one worker holds. Fewer workers than the most make more passes,
        not larger ones: what fitted into memory still fits."""
        rows, tokens = self.optimizer.micro_batch_size, self.optimizer.micro_batch_tokens
        if tokens:
            return PassLimit(tokens=tokens)
        if self.data.packing:
            return PassLimit(tokens=rows and rows * self.data.max_length)
        if rows is None and self.parallel.is_elastic:
            rows = self.optimizer.batch_size // self.parallel.max_workers
        return PassLimit(rows=rows)

    @property
    def evaluation_limit(self) -> PassLimit:
        """What an evaluation's forward pass holds."""
        return PassLimit(
            rows=self.evaluated_at_once,
            tokens=None if self.evaluation.batch_size else self.optimizer.micro_batch_tokens,
        )

    @property
    def evaluated_at_once(self) -> int | None:
        """Rows of an evaluation's forward pass: on one worker, which may be another run's. None:
        its tokens are counted."""
        if self.evaluation.batch_size or self.optimizer.micro_batch_tokens:
            return self.evaluation.batch_size
        return self.trained_at_once(self.parallel.max_workers)

    def packed_passes(self, workers: int) -> int:
        """Packed forward passes of a step on each of so many workers, at least: fewer workers than
        the most have no more at once than these."""
        return math.ceil(self.parallel.max_workers / workers)

    def trained_at_once(self, workers: int) -> int:
        """Rows of a training step's forward pass with so many workers; where its tokens are
        counted, the longest ones."""
        if tokens := self.optimizer.micro_batch_tokens:
            return min(tokens // self.data.max_length, self.optimizer.batch_size // workers)
        elastic = self.parallel.max_workers if self.parallel.is_elastic else workers
        return self.optimizer.micro_batch_size or self.optimizer.batch_size // elastic

    def _check_batch(self) -> None:
        """Every number of workers must share a step's rows evenly."""
        fewest, most = self.parallel.min_workers, self.parallel.max_workers
        batch_size, micro = self.optimizer.batch_size, self.optimizer.micro_batch_size
        wanted = math.lcm(*range(fewest, most + 1))
        if batch_size % wanted:
            said = (
                f"every number from {fewest} to {most}, which parallel.workers allows: of {wanted}"
                if self.parallel.is_elastic
                else f"parallel.workers, which is {most}"
            )
            raise ValueError(
                f"optimizer.batch_size is {batch_size}, but must be a multiple of {said}"
            )
        share = batch_size // most
        if micro is not None and share % micro and not self.data.packing:
            raise ValueError(
                f"optimizer.micro_batch_size is {micro}, but must divide the {share} rows that "
                "each worker has of a batch"
            )

    def _check_tokens(self) -> None:
        tokens, micro = self.optimizer.micro_batch_tokens, self.optimizer.micro_batch_size
        if tokens is None:
            return
        if micro is not None:
            raise ValueError(
                f"optimizer.micro_batch_tokens is {tokens} and micro_batch_size is {micro}; a "
                "pass is counted by one of them"
            )
        if tokens < self.data.max_length:
            raise ValueError(
                f"optimizer.micro_batch_tokens is {tokens}, but must be at least data.max_length, "
                f"which is {self.data.max_length}: a row is in one pass"
            )

    def _check_optimizer(self) -> None:
        """In every layout it must take one process's steps, or be refused."""
        name, strategy = self.optimizer.name, self.parallel.strategy
        allowed = OPTIMIZERS[name].strategies
        if strategy not in allowed:
            raise ValueError(
                f"optimizer.name is {name}, but parallel.strategy is {strategy}; it must be "
                f"{' or '.join(allowed)}"
            )
        if self.parallel.ep_size > 1 and "fsdp2" not in allowed:
            raise ValueError(
                f"optimizer.name is {name}, but parallel.ep_size is {self.parallel.ep_size}; it "
                "must be 1, for a step of one number depends on others"
            )
        if self.model.device == "cpu":
            check_gpu(name, has_gpu=False)

    def _check_compiled(self) -> None:
        """What has not been shown to give the same compiled is refused."""
        if not self.model.compile:
            return
        if self.data.packing:
            raise ValueError(
                "data.packing is true, but so is model.compile; one of them must be false"
            )
        if self.parallel.strategy != "ddp" or self.parallel.ep_size > 1:
            raise ValueError(
                f"parallel.strategy is {self.parallel.strategy} and ep_size is "
                f"{self.parallel.ep_size}, but with model.compile they must be ddp and 1"
            )

    def _check_also(self) -> None:
        field = self.adapter.own_weights
        if field and self.model.compile:
            raise ValueError(
                f"model.compile is true, but so far without adapter.{field}; leave one of them"
            )
        if field and self.parallel.strategy != "ddp":
            raise ValueError(
                f"parallel.strategy is {self.parallel.strategy}, but must be ddp with "
                f"adapter.{field}: its copies of the base's weights lie whole on each worker"
            )

    def _check_experts(self) -> None:
        """Expert parallelism must give what one process gives, or be refused."""
        ep_size, adapter = self.parallel.ep_size, self.adapter
        if ep_size == 1:
            return
        if adapter.target_parameters:
            self._check_exchange("target_parameters adapts the base's own experts")
            return  # How many there are, the base knows.
        counts = [count for count in adapter.expert_counts if count > 1]
        for count in counts or adapter.expert_counts:
            if count % ep_size:
                raise ValueError(
                    f"parallel.ep_size is {ep_size}, but must divide adapter.num_experts, "
                    f"which is {count}"
                )
        if adapter.use_dora:
            self._check_exchange("use_dora scales what the frozen linears give")

    def _check_exchange(self, what: str) -> None:
        if self.parallel.exchange == "tokens":
            raise ValueError(
                f"parallel.exchange is tokens, but adapter.{what}, which stays where the tokens "
                "are; take weights or auto"
            )
