"""What can generate answers on a replica. No torch: an engine is imported where it runs."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, WithJsonSchema

if TYPE_CHECKING:
    from workers.config.train import ModelSpec
    from workers.engine.protocol import Engine
    from workers.engine.request import Limits

ENGINES = {"continuous": "workers.engine.engine:continuous"}
"""Where each engine's factory is, as `module:function`. It makes a `workers.engine.protocol.Engine`
of a base model's specification and the limits of its replica."""


def _known(name: str) -> str:
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; there are {', '.join(sorted(ENGINES))}")
    return name


EngineName = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"type": "string", "enum": sorted(ENGINES)}),
]


def make_engine(factory: str, model: "ModelSpec", limits: "Limits") -> "Engine":
    """The engine of an entry of ENGINES. Raises InputError where it cannot serve this model."""
    engine: Engine = resolve_name(factory)(model, limits)
    return engine
