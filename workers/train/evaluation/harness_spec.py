"""What of EleutherAI's lm-eval is to be run on a base or an adapter."""

from typing import Annotated

from pydantic import Field

from workers.config.base import PositiveInt, Spec
from workers.config.model import ModelSpec


class HarnessSpec(Spec):
    """Tasks of lm-eval, and how they are run."""

    model: ModelSpec
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of tasks, groups or tags; a * stands for anything."""
    tasks_folder: str | None = None
    """Folder with further tasks, as lm-eval's YAML files."""
    run_task_code: bool = False
    """Whether what is Python in that folder, or leads to it, may run."""
    shots: int | None = None
    """Examples before each question; None is what each task says."""
    limit: PositiveInt | None = None
    """Take only the first so many rows of each task."""
    batch_size: PositiveInt = 8
    """Rows of a forward pass."""
    chat: bool = False
    """Ask by the chat template, in place of the bare text."""
    chat_template: str | None = None
    """The adapter's own; None is its base's."""
