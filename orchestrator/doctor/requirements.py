"""The packages that moetune declares, against what is installed somewhere."""

from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_DISTRIBUTION = "moetune"


def required() -> "list[Requirement]":
    """Those that it cannot do without."""
    from packaging.requirements import Requirement

    declared = [Requirement(line) for line in metadata.requires(_DISTRIBUTION) or ()]
    return [one for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})]


def unmet(versions: Mapping[str, str | None]) -> list[str]:
    """What is missing (None) or of a wrong version there, in words."""
    wrong = []
    for one in required():
        found = versions.get(one.name)
        if found is None:
            wrong.append(f"{one.name} is missing (wanted: {one.specifier or 'any'})")
        elif not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} {found} (wanted: {one.specifier})")
    return wrong


def installed_here() -> dict[str, str | None]:
    """The versions that this very Python has of them."""
    return {one.name: _version(one.name) for one in required()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
