"""OpenAI's fields for what we do not do, with the values that ask for nothing of it.

Many clients always send them. Any other value would change an answer, and is refused by name.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from orchestrator.openai.body import Body, whole

UNSUPPORTED = "unsupported_value"


def unsupported() -> PydanticCustomError:
    """Of a field that we know, with a value that asks for something."""
    return PydanticCustomError(UNSUPPORTED, "only its default is supported")


def _refused(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        checked = check(value)
    except ValidationError:
        raise unsupported() from None
    if type(checked) is not type(value):  # to Python false is 0
        raise unsupported()
    return checked


ONLY = WrapValidator(_refused)
Zero = Annotated[Literal[0], ONLY]
Off = Annotated[Literal[False], ONLY]
Empty = Annotated[Literal[""], ONLY]
NoItems = Annotated[list[Any], Field(max_length=0), ONLY]
NoBias = Annotated[Literal[0] | None, BeforeValidator(whole)]
NoChoice = Annotated[Literal["none", "auto"], ONLY]


class Neutral(Body):
    """Of both kinds of completion."""

    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    logit_bias: Annotated[dict[str, NoBias], ONLY] = Field({})


class NeutralChat(Neutral):
    """Of chats. Metadata, cache key and identifier are of any value: they change no answer."""

    store: Off = False
    metadata: Annotated[dict[str, str | None], ONLY] = Field({})
    parallel_tool_calls: bool = True
    functions: NoItems = Field([])
    function_call: NoChoice = "none"
    modalities: Annotated[list[Literal["text"]], Field(max_length=1), ONLY] = Field(["text"])
    reasoning_effort: Annotated[Literal["none"], ONLY] = "none"
    verbosity: Annotated[Literal["medium"], ONLY] = "medium"
    service_tier: Annotated[Literal["auto", "default"], ONLY] = "auto"
    prompt_cache_key: str = ""
    prompt_cache_retention: Annotated[Literal["in_memory", "in-memory"], ONLY] = "in_memory"
    safety_identifier: str = ""
    """OpenAI's new name for `user`."""


class NeutralText(Neutral):
    """Of completions of a text."""

    echo: Off = False
    suffix: Empty = ""
