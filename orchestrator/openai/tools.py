"""Tools of a chat and calls of them, in OpenAI's form. The rules are those of training's rows."""

from collections.abc import Callable
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


def as_trained(check: Callable[[Any, str], object]) -> Callable[[Checked], Checked]:
    """A check of training's, for a field that keeps its value."""

    def checked(value: Checked) -> Checked:
        try:
            check(value, "")
        except InputError as error:
            raise ValueError(str(error).removeprefix(": ")) from None
        return value

    return checked


def shallow(value: Checked) -> Checked:
    """The value; ValueError where it has too many values, or has them too deep."""
    if any(total > NESTED for total in accumulate(depths(value))):
        raise ValueError(f"at most {NESTED} values are supported; one n levels deep counts as n")
    return value


Arguments = Annotated[str | dict[str, Any], AfterValidator(as_trained(arguments))]
Tools = Annotated[
    list[dict[str, Any]],
    Field(max_length=MOST),
    AfterValidator(shallow),
    AfterValidator(as_trained(tool_schemas)),
]


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
