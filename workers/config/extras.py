"""Packages that not everybody needs: the extras of pyproject.toml."""


def installing(extra: str) -> str:
    """How to get an extra's packages, for the end of an InputError. moetune is on no package index,
    so that it takes the clone that it came from."""
    return f"in moetune's clone, run pip install -c constraints.txt -e '.[{extra}]'"
