"""Where rows come from: the sources that a run learns from, and how often each row comes."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from workers.config.base import Spec
from workers.config.credentials import Uri, shown


def _named(value: str) -> str:
    if not value.strip():
        raise ValueError("must name a source; it is empty")
    return value


Source = Annotated[Uri, AfterValidator(_named)]


class SourceSpec(Spec):
    """One of several sources to learn from."""

    source: Source
    """A path, glob, folder, URI or `hub:` name."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each of its rows comes in an epoch. 2: twice. 0.5: half of the rows, another half
    in the next epoch."""
    task: Annotated[str, Field(min_length=1)] | None = None
    """Task of its rows that name none themselves."""


class HeldOut(Spec):
    """Rows of `data.train` that nothing is learned from."""

    share: Annotated[float, Field(gt=0, lt=1, examples=[0.1])]
    """About so many of the rows, of every source alike, are not learned from: trials are compared
    on them. Which ones is told by a hash of what a row says: one that comes twice is never on both
    sides."""


def _listed(value: Any) -> Any:
    """A text in a list stands for a source with nothing beside it."""
    if isinstance(value, str):
        return {"source": value}
    if not isinstance(value, Mapping | SourceSpec):
        raise ValueError(f"must be a text or {{source, weight, task}}; it is {shown(value)}")
    return value


def _sources(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            "must be a source, or a list of sources, each a text or {source, weight, task}; it is "
            f"{shown(value)}"
        )
    return value


def _kind(value: Any) -> str:
    return "one" if isinstance(value, str) else "several"


def _validation(value: Any) -> Any:
    if not isinstance(value, str | Mapping | HeldOut):
        raise ValueError(f"must be a source, or {{share: 0.1}}; it is {shown(value)}")
    return value


def _where(value: Any) -> str:
    return "apart" if isinstance(value, str) else "held out"


_Listed = Annotated[
    SourceSpec, BeforeValidator(_listed, json_schema_input_type=Source | SourceSpec)
]
Sources: TypeAlias = Annotated[
    Annotated[Source, Tag("one")]
    | Annotated[
        tuple[_Listed, ...], Field(min_length=1), BeforeValidator(_sources), Tag("several")
    ],
    Discriminator(_kind),
]
"""One source, or a list of them."""
Validation: TypeAlias = Annotated[
    Annotated[Source, Tag("apart")]
    | Annotated[HeldOut, BeforeValidator(_validation), Tag("held out")],
    Discriminator(_where),
]
"""A source, or what is held out of those to learn from."""
