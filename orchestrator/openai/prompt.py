"""The prompts of a completion: a text, its token ids, or several of these."""

from typing import Annotated, Any

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from orchestrator.openai.body import whole

PROMPTS = 128
"""Of one request, at most."""
TAGS = ("a text", "token ids", "several prompts")
"""What pydantic's errors call the kinds of prompts."""
TEXT, IDS, SEVERAL = TAGS


def _ids(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Looked at one by one only where something is wrong: there may be very many."""
    try:
        return check(value)
    except ValidationError:
        if not isinstance(value, list) or not any(isinstance(one, float) for one in value):
            raise
        return check([whole(one) for one in value])


def _kind_of_one(value: Any) -> str:
    return IDS if isinstance(value, list) else TEXT


def _kind(value: Any) -> str:
    if isinstance(value, list) and value and not isinstance(value[0], int | float):
        return SEVERAL
    return _kind_of_one(value)


TextPrompt = Annotated[str, Tag(TEXT)]
IdsPrompt = Annotated[list[int], Field(fail_fast=True), WrapValidator(_ids), Tag(IDS)]
Prompt = Annotated[TextPrompt | IdsPrompt, Discriminator(_kind_of_one)]
SeveralPrompts = Annotated[list[Prompt], Field(max_length=PROMPTS, fail_fast=True), Tag(SEVERAL)]

# As the description has it; the engine refuses empty ones, and knows its vocabulary.
_ONE = [
    {"type": "string", "minLength": 1},
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
]
_MORE = {"type": "array", "items": {"anyOf": _ONE}, "minItems": 1, "maxItems": PROMPTS}
Prompts = Annotated[
    TextPrompt | IdsPrompt | SeveralPrompts,
    Discriminator(_kind),
    WithJsonSchema({"anyOf": [*_ONE, _MORE]}),
]


def each(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    """One by one."""
    listed = prompt if _kind(prompt) == SEVERAL else [prompt]
    return tuple(one if isinstance(one, str) else tuple(one) for one in listed)
