"""RESULTS.md: one section for each benchmark, with the machine that it ran on."""

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
"""Where the sections are kept."""
TITLE = "# Results of the benchmarks\n\nEach script writes its own section when it is run.\n"
PACKAGES = ("torch", "transformers", "peft")


def write_section(name: str, body: str, path: Path = RESULTS) -> None:
    """Put `body` under the heading `name` of the file, which may not be there yet.

    A section of that name is replaced, a new one comes last; all others stay as they are.
    """
    text = path.read_text() if path.exists() else TITLE
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    heading, mine = f"## {name}\n", f"## {name}\n\n{body.strip()}\n"
    kept = [mine if section.startswith(heading) else section for section in sections]
    if mine not in kept:
        kept.append(mine)
    path.write_text("\n".join(part.strip() + "\n" for part in (head, *kept)))


def machine(others: Mapping[str, str] | None = None) -> str:
    """One line: processor, cores, memory, Python, and versions of packages (`others` come last)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {name: version(name) for name in PACKAGES} | dict(others or {})
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB; "
        f"{platform.system()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def _processor() -> str:
    """The processor's name with its family and model, since clouds call many of them the same."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in reversed(lines) if ":" in line)
    name = found.get("model name", platform.machine())
    return f"{name} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"
