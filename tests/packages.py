"""Tiny packages, as pip would leave them in a folder: what a test puts on the path."""

import tomllib
from collections.abc import Mapping
from pathlib import Path


def install(folder: Path, pyproject: str, modules: Mapping[str, str]) -> Path:
    """A package of that pyproject.toml, with the text of each module by its name; returns the
    folder."""
    project = tomllib.loads(pyproject)["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    told = folder / f"{name}-{version}.dist-info"
    told.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
    (told / "METADATA").write_text(head)
    groups = project.get("entry-points", {}).items()
    lines = [[f"[{group}]", *(f"{k} = {v}" for k, v in one.items())] for group, one in groups]
    (told / "entry_points.txt").write_text("\n".join(line for each in lines for line in each))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    return folder


def giving(name: str, metric: str, place: str) -> str:
    """The pyproject.toml of a package that gives a metric at a place such as `module:function`."""
    head = f'[project]\nname = "{name}"\nversion = "1.0"\n'
    return f'{head}[project.entry-points."moetune.metrics"]\n{metric} = "{place}"\n'
