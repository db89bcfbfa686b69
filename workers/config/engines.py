"""What can generate answers on a replica. No torch: an engine is imported where it runs."""

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

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
