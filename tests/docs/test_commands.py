"""What pages tell to type works: each page from its beginning, in an empty folder of its own.

Blocks marked `elsewhere` need a cluster, a download, a second terminal or this repository.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.docs.pages import OF_THE_PRODUCT, ROOT, Block, Page
from tests.forked_workers import path_of


def run_here(page: Page) -> list[Block]:
    return [one for one in page.blocks("console") if "elsewhere" not in one.words]


def script(blocks: Iterable[Block]) -> str:
    """The commands of a page for one shell, which ends at the first that ends otherwise than the
    page says."""
    lines = ["set -u"]
    for block in blocks:
        for command in block.commands():
            said = shlex.quote(f"{block.where}: {command}")
            lines += [f"echo {said} >&2", command]
            lines.append(f'code=$?; test "$code" = {block.status} || exit $((code ? code : 1))')
    return "\n".join(lines)


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as a user would after `make setup` and `. .venv/bin/activate`."""
    ours = ("RAY_", "MOETUNE_")
    known = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join((str(Path(sys.executable).parent), known["PATH"]))
    return subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env={**known, "PATH": path, "PYTHONPATH": path_of(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )


WITH_COMMANDS = [page for page in OF_THE_PRODUCT if run_here(page)]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_what_the_page_tells_to_type_works(page: Page, tmp_path: Path) -> None:
    done = shell(script(run_here(page)), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        ("$ true\nsaid\n$ echo \\\n> more > file\n$ test -s file", (), 0),
        ("$ false\n$ true", (), 1),
        ("$ moetune check none.yaml", (), 2),
        ("$ moetune check none.yaml", ("exit=2",), 0),
        ("$ true", ("exit=2",), 1),
    ],
)
def test_a_command_that_fails_is_found(
    text: str, words: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    assert shell(script([Block("here", "console", words, text)]), tmp_path).returncode == code
