"""When a name is trained anew, on what, and what becomes of the result."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.relative_paths import beside
from workers.config.base import InputError, NonNegative, PositiveInt, Spec, validated
from workers.config.yaml_text import read_yaml

Positive = Annotated[float, Field(gt=0)]


class DriftRule(Spec):
    """The endpoint says that the requests are not routed as they were."""

    windows: PositiveInt = 3
    """Whole windows in a row beyond the limit."""


class QualityRule(Spec):
    """Labelled rows are answered worse than they should be."""

    data: str
    """Rows with their right answers, as a job names them; read anew each time."""
    metric: str = "score"
    """score (the mean of the tasks), loss, or the name of a task."""
    limit: float
    """The least that will do; of a loss the most."""
    rows: PositiveInt = 50
    """Rows of each task at most."""
    every_hours: Positive = 24.0
    """Hours between two measurements: each takes the model's time."""


class When(Spec):
    """What starts a training: any of these."""

    drift: DriftRule | None = None
    quality: QualityRule | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.drift is None and self.quality is None:
            raise ValueError("name at least one of drift and quality")
        return self


class Policy(Spec):
    """The content of a policy file."""

    job: str
    """Job file, or the name of one that comes with moetune."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Fields of the job to change, by their dotted names."""
    when: When
    data: str
    """Fresh rows, as a job names its data: a file, a folder or a glob. A fifth of them goes to the
    job's validation rows, the others to its training rows."""
    min_rows: PositiveInt = 20
    """With fewer fresh rows nothing is trained."""
    cooldown_hours: NonNegative = 24.0
    """Hours from one training to the next, at least."""
    max_per_day: PositiveInt = 1
    """Trainings in any 24 hours."""
    action: Literal["propose", "canary"] = "propose"
    """propose: say how to promote the result; canary: give it a share of the users."""
    canary: str = "10%"
    """The share; or a plan, as in "5%,25%,100% every 30m"."""
    every_minutes: Positive = 5.0
    """Minutes between two looks."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        from orchestrator.registry.plan import parse_plan

        try:
            parse_plan(self.canary)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self


def load_policy(path: str | Path) -> Policy:
    """Read a policy file (YAML); its paths are relative to its folder."""
    try:
        values = read_yaml(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a policy file is a mapping with `job`, `when` and `data`")
    values = beside(Path(path).parent, values, ("data", "when.quality.data"), ("job",))
    return validated(Policy, values, str(path))
