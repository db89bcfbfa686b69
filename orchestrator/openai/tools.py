"""Tools of a chat and calls of them, in OpenAI's form. The rules are those of training's rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

from orchestrator.openai.body import Body
from workers.config.base import InputError
from workers.data.nested import depths
from workers.data.tools import arguments, tool_schemas

MOST = 1024
"""Tools of a chat, and calls of a message, at most."""
NESTED = 2**17
"""Values of the tools, and of all calls, at most; each counts once for each level that it is deep.
Templates that indent JSON write that much more than was sent."""
Checked = TypeVar("Checked")
Name = Annotated[str, Field(min_length=1, max_length=200)]


@contextmanager
def rules_of_training() -> Iterator[None]:
    """What training's rows may not say is a ValueError here: pydantic knows the field."""
    try:
        yield
    except InputError as error:
        raise ValueError(str(error).removeprefix(": ")) from None


def shallow(value: Checked) -> Checked:
    """The value; ValueError where it has too many values, or has them too deep."""
    if any(total > NESTED for total in accumulate(depths(value))):
        raise ValueError(f"at most {NESTED} values are supported; one n levels deep counts as n")
    return value


def _read(value: str | dict[str, Any]) -> str | dict[str, Any]:
    """A call's arguments, which can be read; `workers.data.chat` reads them with their turn."""
    with rules_of_training():
        arguments(value, "")
    return value


def _as_rendered(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with rules_of_training():
        return list(tool_schemas(value, ""))


Arguments = Annotated[str | dict[str, Any], AfterValidator(_read)]
Tools = Annotated[
    list[dict[str, Any]],
    Field(max_length=MOST),
    AfterValidator(shallow),
    AfterValidator(_as_rendered),
]
"""As chat templates are given them."""


class CalledFunction(Body):
    """`function` of a call."""

    name: Name
    arguments: Arguments = "{}"


class ToolCall(Body):
    """A call that the assistant made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int = 0
