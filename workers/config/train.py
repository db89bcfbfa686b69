"""What a training run is: one frozen, typed tree, loadable without torch.

Other packages take everything from here; the parts lie in modules of their own.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from workers.config.adapter import AdapterSpec
from workers.config.base import (
    Fraction,
    Listed,
    NonNegative,
    PositiveInt,
    Spec,
)
from workers.config.credentials import refuse_credentials
from workers.config.losses import LossSpec


def _no_credentials(uri: str) -> str:
    return refuse_credentials(
        uri,
        "leave it out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (Google: "
        "GOOGLE_APPLICATION_CREDENTIALS; Azure: AZURE_TENANT_ID, AZURE_CLIENT_ID and "
        "AZURE_CLIENT_SECRET)",
    )


Uri = Annotated[str, AfterValidator(_no_credentials)]
"""A path or URI. Jobs and manifests name it, so it holds no password."""


class ModelSpec(Spec):
    """The frozen base model."""

    path: Annotated[Uri, Field(examples=["Qwen/Qwen2.5-0.5B-Instruct", "models/my-base"])]
    """Hub name, or folder, of a Hugging Face causal language model."""
    revision: str | None = None
    """Hub revision; None takes the default branch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen base. Adapter weights are always float32."""
    quantization: Literal["bnb_nf4", "bnb_int8", "torchao_int8"] | None = None
    """Pack the frozen linears when they are loaded: to 4 bits (bitsandbytes, QLoRA's NF4) or 8
    (bitsandbytes' LLM.int8(), torchao's weight-only int8). Needs the extra `quantized`; dtype is
    then what the rest is kept and computed in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lies; auto takes a GPU if the process sees one."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """How training computes attention. eager keeps all scores of a layer in memory; on a CPU in
    bfloat16 it is still four times as fast for rows of about 70 tokens."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass."""


class DataSpec(Spec):
    """Rows to learn from. A source is a path or glob of Parquet or JSONL files (any filesystem
    that pyarrow reads), or `hub:NAME[:CONFIG][#SPLIT]`."""

    train: Annotated[Uri, Field(examples=["train.parquet", "s3://bucket/train/*.jsonl"])]
    """Source of the training rows."""
    validation: Annotated[Uri, Field(examples=["validation.parquet"])]
    """Source of the rows that trials are compared on."""
    prompt_columns: Listed[str] = ("prompt",)
    """Columns that make the prompt, joined by a newline; not read where `messages` is there."""
    target_column: str = "target"
    """Column with the text to learn."""
    messages_column: str = "messages"
    """Column with a chat: the last assistant turn is the target, what precedes it the prompt."""
    task_column: str = "task"
    """Column with the row's task; a file without it is one task, `default`."""
    metric_column: str = "metric"
    """Column with the row's metric; a file without it is scored by exact_match."""
    template: Literal["chat", "plain"] = "chat"
    """chat: the tokenizer's chat template around the prompt; plain: the prompt as it stands."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest row in tokens; a longer prompt loses its beginning, the target is kept."""
    too_long: Literal["refuse", "skip", "cut"] = "refuse"
    """What becomes of a row whose target alone leaves no room for a prompt. skip leaves the row
    out; cut takes the target's beginning, without its end, beside half a max_length of prompt."""
    max_rows: PositiveInt | None = None
    """Take only so many training rows (the first ones, of which too_long may leave some out)."""
    record_rows: bool = False
    """Note in the run's folder (`rows.jsonl`) which rows each worker took in each step."""


class OptimizerSpec(Spec):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's decay rates."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine and linear end at zero."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of linear warm-up: the first has a share of 1 / warmup_steps."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradients' global norm; None leaves them."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 3
    """So many steps in a row may be left out because their loss or gradients are not finite; one
    more ends the run."""
    steps: PositiveInt = 100
    """Optimizer steps in all."""
    batch_size: PositiveInt = 16
    """Rows of one optimizer step, over all workers."""
    micro_batch_size: PositiveInt | None = None
    """Rows of one forward pass on one worker; None takes the whole share (no accumulation)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps >= self.steps:
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
    folder for its report; 0 keeps none. Without `generate` they are answered once, at the end."""
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


class WorkerRange(Spec):
    """An elastic number of workers: as many as the cluster has room for."""

    min: PositiveInt = 1
    """Training waits while there is room for fewer."""
    max: PositiveInt
    """More are never started."""
    check_every_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two looks whether there is room for another number. A change starts the
    workers again, from the last checkpoint."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, but must be at most max, which is {self.max}")
        return self


class ParallelSpec(Spec):
    """How many processes train one adapter."""

    workers: PositiveInt | WorkerRange = 1
    """Data-parallel workers of one run, one GPU each where there are GPUs. {min: 1, max: 4} goes on
    with fewer after the loss of a node, and with more when there is room again."""
    hang_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """A worker in which nothing moves for so many seconds is ended, with the names of those that
    lag; the run then goes on from its last checkpoint."""
    threads: PositiveInt | None = None
    """CPU threads of each worker; None takes the cores that Ray gives it."""
    ep_size: PositiveInt = 1
    """Expert parallelism: so many workers share the experts of one copy between them; 1 gives every
    worker all experts. Worth it where experts times rank exceed about 512."""
    exchange: Literal["tokens", "weights", "auto"] = "auto"
    """What travels between the workers of one copy. tokens: hidden states to their experts' owners
    and back; weights: the experts' weights, just before their use; auto: what the run's own routed
    layers take less time with, for a micro-batch that both are tried on when it starts."""
    strategy: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    """How the rest lies over the workers. ddp: a copy on each; fsdp2: everything in shards;
    deepspeed: by zero_stage."""
    zero_stage: Literal[1, 2, 3] = 2
    """With strategy deepspeed, what is in shards: 1 the optimizer's state, 2 gradients too, 3 also
    the weights, the frozen base's with them."""
    offload_optimizer: bool = False
    """With strategy deepspeed, keep the optimizer's state in the memory of the CPU."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while a run goes on."""
        return self.min_workers != self.max_workers

    @property
    def shards_base(self) -> bool:
        """Whether the frozen base lies in shards over several workers."""
        return self.strategy == "fsdp2" or (self.strategy == "deepspeed" and self.zero_stage == 3)

    @property
    def min_workers(self) -> int:
        """The fewest workers of the run."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def max_workers(self) -> int:
        """The most workers of the run."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_elastic and self.ep_size > 1:
            raise ValueError(
                f"ep_size is {self.ep_size}, but must be 1 with workers from {self.min_workers} to "
                f"{self.max_workers}: it does not divide each of them"
            )
        if self.min_workers % self.ep_size:
            raise ValueError(
                f"ep_size is {self.ep_size}, but must divide workers, which is {self.workers}"
            )
        if self.strategy == "deepspeed" and self.ep_size > 1:
            raise ValueError(
                f"ep_size is {self.ep_size}, but must be 1 with strategy deepspeed, which would "
                "average the gradients of different experts; take ddp or fsdp2"
            )
        if self.offload_optimizer and self.strategy != "deepspeed":
            raise ValueError(f"offload_optimizer is for strategy deepspeed, not {self.strategy}")
        return self


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
        self._check_batch()
        self._check_experts()
        if self.model.quantization and self.parallel.shards_base:
            raise ValueError(
                f"model.quantization is {self.model.quantization}, but packed weights cannot be "
                "cut: parallel.strategy must be ddp, or deepspeed with zero_stage 1 or 2"
            )
        return self

    def same_run(self, other: Self) -> bool:
        """Whether `other` may go on with this run: spread over its workers in another way, perhaps,
        with other checkpoints, and keeping other answers."""
        return self._decides() == other._decides()

    def _decides(self) -> dict[str, Any]:
        """What a run computes."""
        values = self.model_dump(exclude={"parallel", "checkpoint"})
        del values["evaluation"]["samples"]
        return values

    @property
    def micro_batch_size(self) -> int | None:
        """Rows of one forward pass on one worker; None is its whole share of a batch. Fewer workers
        than the most make more passes, not larger ones: what fitted into memory still fits."""
        if self.optimizer.micro_batch_size or not self.parallel.is_elastic:
            return self.optimizer.micro_batch_size
        return self.optimizer.batch_size // self.parallel.max_workers

    @property
    def evaluated_at_once(self) -> int:
        """Rows of an evaluation's forward pass: on one worker, which may be another run's."""
        return self.evaluation.batch_size or self.trained_at_once(self.parallel.max_workers)

    def trained_at_once(self, workers: int) -> int:
        """Rows of a training step's forward pass with so many workers."""
        return self.micro_batch_size or self.optimizer.batch_size // workers

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
        if micro is not None and share % micro:
            raise ValueError(
                f"optimizer.micro_batch_size is {micro}, but must divide the {share} rows that "
                "each worker has of a batch"
            )

    def _check_experts(self) -> None:
        """Expert parallelism must give what one process gives, or be refused."""
        ep_size, adapter = self.parallel.ep_size, self.adapter
        if ep_size == 1:
            return
        counts = [count for count in adapter.expert_counts if count > 1]
        for count in counts or adapter.expert_counts:
            if count % ep_size:
                raise ValueError(
                    f"parallel.ep_size is {ep_size}, but must divide adapter.num_experts, "
                    f"which is {count}"
                )
        if adapter.use_dora and self.parallel.exchange == "tokens":
            raise ValueError(
                "parallel.exchange is tokens, but adapter.use_dora scales what the frozen linears "
                "give, which stays where the tokens are; take weights or auto"
            )
