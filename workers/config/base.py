"""Typed configuration: the base of all its classes, how plain values become one, and how what is
wrong with them is said in one line."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticKnownError
from pydantic_core.core_schema import no_info_before_validator_function

from workers.config.credentials import shown, without_credentials

PositiveInt = Annotated[int, Field(gt=0)]
Size = Annotated[int, Field(gt=0, le=2**16)]
"""Of a tensor's axis: a number from outside must not ask for all of the memory."""
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Item = TypeVar("Item")


class _OneOrMore:
    """A text stands for a list of one, in values and in their JSON Schema."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_before_validator_function(
            lambda one: (one,) if isinstance(one, str) else one, handler(source)
        )

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        several = handler(core)
        return {"anyOf": [several["items"], several]}


Listed = Annotated[tuple[Item, ...], _OneOrMore()]
"""A list of texts; a text stands for a list of one."""


@dataclass(frozen=True)
class OneOf:
    """Of a text: one of the names that a table has when it is asked; says what Literal would."""

    names: Callable[[], Iterable[str]]
    unknown: Callable[[str], str] | None = None
    """What to say of a text that is none of them, in place of that."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_before_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(core), "enum": list(self.names())}

    def _known(self, value: Any) -> Any:
        names = list(self.names())
        if value in names:
            return value
        if self.unknown and isinstance(value, str):
            raise ValueError(self.unknown(value))
        *others, last = map(repr, names)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise PydanticKnownError("literal_error", {"expected": expected})


class Table(dict[str, Any]):
    """A mapping in a specification, which nobody changes: specifications can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class InputError(ValueError):
    """Bad input. The message is one line: what was wrong, where, and what is allowed."""


class StorageError(InputError):
    """Our own folders or database failed: they are gone, altered, full or out of reach. Whoever
    asked for something is not to blame, and a server's clients do not learn the message."""


def one_line(error: BaseException) -> str:
    """What another library's error says, for the end of an InputError."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Spec(BaseModel):
    """Base of every configuration class: frozen, no unknown fields, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
    exclusive: ClassVar[tuple[str, ...]] = ()
    """Fields of which a specification has one: an `override` that sets it takes the others back."""


SpecT = TypeVar("SpecT", bound=Spec)


def validated(spec: type[SpecT], values: Any, where: str) -> SpecT:
    """Build `spec` from plain values; an InputError of one line names `where` and the field."""
    try:
        return spec.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    # A field that is misspelt is missing, too.
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    field, owner = _place(spec, first["loc"])
    if first["type"] == "extra_forbidden":
        message = f"no such field{_suggestion(owner, field[-1])}"
    elif first["type"] in ("value_error", "missing"):
        message = first["msg"].removeprefix("Value error, ")
    else:
        field, message = _deepest(spec, field, errors)
    name = ".".join(map(without_credentials, field))  # a source may stand where a name should
    raise InputError(f"{where}: {name + ': ' if field else ''}{message}")


def override(spec: SpecT, changes: Mapping[str, Any], where: str) -> SpecT:
    """A copy of `spec` with dotted fields replaced, as in `{"adapter.rank": 16}`, validated whole.

    The one way to change a specification: `--set` and Tune trials both come here.
    """
    values = spec.model_dump(mode="json")
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        place: Any = values
        model: type[BaseModel] | None = type(spec)
        for parent in parents:
            model = _model(_kind(model, parent))
            place = _section(place, parent, may_begin=model is not None)
        if not isinstance(place, dict):
            raise InputError(f"{where}: {path}: no such field")
        place[leaf] = value
        for other in _taken_back(model, leaf, value):
            if ".".join([*parents, other]) not in changes:
                place[other] = None
    return validated(type(spec), values, where)


def _taken_back(model: type[BaseModel] | None, field: str, value: Any) -> list[str]:
    """The fields beside one that is set that cannot stand with it."""
    exclusive: tuple[str, ...] = getattr(model, "exclusive", ())
    is_set = value is not None and field in exclusive
    return [name for name in exclusive if is_set and name != field]


def _section(place: Any, name: str, *, may_begin: bool) -> Any:
    """The mapping in a field. Where a text stands for it, or nothing, one may begin."""
    if not isinstance(place, dict):
        return None
    if may_begin and isinstance(place.get(name), str | None):
        place[name] = {}
    return place.get(name)


def _deepest(
    spec: type[BaseModel], field: tuple[str, ...], errors: Sequence[ErrorDetails]
) -> tuple[tuple[str, ...], str]:
    """Where in a field the fault lies, and what is wrong there: a field of several types has an
    error for each, and the one that came furthest is meant."""
    places = [(_place(spec, error["loc"])[0], error) for error in errors]
    deepest = max((place for place, _ in places if place[: len(field)] == field), key=len)
    said = [e["msg"].removeprefix("Value error, ") for place, e in places if place == deepest]
    others = (message.removeprefix("Input should be ") for message in said[1:])
    message = " or ".join((said[0], *others)).replace("valid tuple", "list")
    wrong = next(error["input"] for place, error in places if place == deepest)
    return deepest, f"{message}, not {shown(wrong)}"


def _place(
    spec: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[tuple[str, ...], type[BaseModel] | None]:
    """The field at an error's location, without pydantic's names for the types that it tried; and
    the class that the last part belongs to."""
    parts: list[str] = []
    owner: type[BaseModel] | None = None
    inner: type[BaseModel] | None = spec
    kind: Any = None
    for part in location:
        if _has_alternatives(kind):
            kind = None  # this part is the name of the type that was tried
            continue
        parts.append(str(part))
        owner = inner
        if isinstance(part, int):
            continue
        kind = _kind(owner, str(part))
        inner = _model(kind)
    return tuple(parts), owner


def _kind(owner: type[BaseModel] | None, name: str) -> Any:
    field = owner.model_fields.get(name) if owner else None
    return field.annotation if field else None


def _model(kind: Any) -> type[BaseModel] | None:
    """The class with fields that a type is, or that its lists and alternatives have."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    if get_origin(kind) not in (Union, UnionType, Annotated, tuple):
        return None
    return next(filter(None, map(_model, get_args(kind))), None)


def _has_alternatives(kind: Any) -> bool:
    """Whether a field may be of several types, None aside."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return sum(member is not NoneType for member in members) > 1


def _suggestion(spec: type[BaseModel] | None, name: str) -> str:
    """`; did you mean …` or the allowed fields, for a misspelt field."""
    known = list(spec.model_fields) if spec else []
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(known)}"
