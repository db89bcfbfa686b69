"""The rows that a run learns from."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from workers.config.base import Listed, OneOf, PositiveInt, Spec, Table
from workers.config.chat_template import template_text
from workers.config.row_metrics import known_metrics, unknown_metric
from workers.config.sources import HeldOut, Sources, SourceSpec, Validation

RESULTS_APART = ("record_rows", "processes")
"""Fields of a DataSpec that change neither rows nor what is learned of them."""
ROWS_APART = (*RESULTS_APART, "packing", "streaming", "streaming_buffer")
"""Those that change neither rows nor what is measured on them; but what is learned, perhaps."""
RowMetric = Annotated[str, OneOf(known_metrics, unknown_metric)]


class DataSpec(Spec):
    """Rows to learn from. A source is a path, folder or glob of Parquet, JSON, JSONL, CSV, TSV or
    Arrow files (any filesystem that pyarrow reads), a folder of `save_to_disk` with `#SPLIT`, or
    `hub:NAME[:CONFIG][#SPLIT]`."""

    train: Annotated[Sources, Field(examples=["train.parquet", "s3://bucket/train/*.jsonl"])]
    """Source of the training rows; or a list of sources, each a text or `{source, weight, task}`:
    `weight` is how often each of its rows comes in an epoch (0.5: half of them, another half in the
    next), `task` the task of rows that name none."""
    validation: Annotated[Validation, Field(examples=["validation.parquet", {"share": 0.1}])]
    """Source of the rows that trials are compared on; or `{share: 0.1}`, which holds a tenth of the
    rows in `train` out of training for it."""
    prompt_columns: Listed[str] = ("prompt",)
    """Columns that make the prompt, joined by a newline; not read where `messages` is there."""
    target_column: str = "target"
    """Column with the text to learn."""
    messages_column: str = "messages"
    """Column with a chat: the last assistant turn is the target, what precedes it the prompt."""
    task_column: str = "task"
    """Column with the row's task; a file without it is one task, `default`."""
    metric_column: str = "metric"
    """Column with the row's metric; a row without one has its task's of `metrics`."""
    metrics: Annotated[dict[str, RowMetric], AfterValidator(Table)] = Field(
        default_factory=Table, examples=[{"slots": "slot_f1"}]
    )
    """Metric of a task's rows that name none, as in `{slots: slot_f1}`; exact_match where the task
    is not here. A row that names another one is refused. An installed package may give more."""
    template: Literal["chat", "plain"] = "chat"
    """chat: the tokenizer's chat template around the prompt; plain: the prompt as it stands."""
    chat_template: Annotated[str | None, AfterValidator(template_text)] = None
    """A Jinja file in place of the tokenizer's chat template; or the template itself, which the
    resolved job and the adapter hold: it is served with it."""
    loss_on: Literal["last", "all"] = "last"
    """Of a chat, which assistant turns are learned: the last one, or all. A turn's own `weight`
    (0 to 1) says what its tokens count for."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest row in tokens; a longer prompt loses its beginning, the target is kept."""
    too_long: Literal["refuse", "skip", "cut"] = "refuse"
    """What becomes of a row whose target alone leaves no room for a prompt. skip leaves the row
    out; cut takes the target's beginning, without its end, beside half a max_length of prompt."""
    max_rows: PositiveInt | None = None
    """Take only so many training rows (the first ones, of which too_long may leave some out); of
    several sources, so many of each."""
    processes: PositiveInt | None = None
    """Processes that encode rows, where there are many; None takes as many as the worker that
    encodes has CPUs. The first of a machine encodes for all workers there."""
    packing: bool = False
    """Lay rows one after another, up to max_length tokens in a packed sequence, instead of padding
    rows of like length: each keeps its own positions and attention. Which rows make up a step then
    does not depend on their lengths."""
    streaming: bool = False
    """Read the training rows while they are trained on, each epoch anew, for what fits on no disk:
    nothing of them is kept, and only the first are looked at before a run. Each worker reads and
    encodes all of them."""
    streaming_buffer: PositiveInt = 16384
    """With streaming: so many rows are in memory and shuffled at a time."""
    record_rows: bool = False
    """Note in the run's folder (`rows.jsonl`) which rows each worker took in each step."""

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """What is learned from; a source alone is a list of one."""
        if isinstance(self.train, str):
            return (SourceSpec(source=self.train),)
        return self.train

    @property
    def held_out(self) -> float:
        """Share of their rows that is not learned from."""
        return self.validation.share if isinstance(self.validation, HeldOut) else 0.0

    @property
    def compared_on(self) -> tuple[SourceSpec, ...]:
        """Where the rows that trials are compared on lie."""
        if isinstance(self.validation, str):
            return (SourceSpec(source=self.validation),)
        return self.sources

    @property
    def validation_name(self) -> str:
        """The same for messages."""
        if isinstance(self.validation, str):
            return self.validation
        return f"a share of {self.held_out:g} of {self.train_name}"

    @property
    def train_name(self) -> str:
        """`sources` for messages."""
        return ", ".join(one.source for one in self.sources)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.template == "plain" and self.loss_on == "all":
            raise ValueError("loss_on: all wants template: chat")
        if self.template == "plain" and self.chat_template is not None:
            raise ValueError("chat_template wants template: chat")
        if self.streaming and self.held_out:
            raise ValueError(
                "streaming wants validation rows of their own: to hold a share out, all rows would "
                "be read before the first step"
            )
        return self
