"""The command itself: its version, its help, its storage, and its end by a signal."""

import signal
import socket
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from workers.config.base import InputError


def test_tells_its_version_and_helps() -> None:
    told = CliRunner().invoke(app, ["--version"]).stdout
    assert told == f"moetune {metadata.version('moetune')}\n"
    for words in (["-h"], ["serve", "-h"], ["keys", "create", "-h"]):
        shown = CliRunner().invoke(app, words)
        assert (shown.exit_code, "--help" in shown.stdout) == (0, True)


@pytest.mark.parametrize("command", ["check", "tune", "train"])
def test_the_environment_names_the_storage(command: str, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    result = CliRunner().invoke(app, [command, "smoke"], env={"MOETUNE_STORAGE": str(place)})
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(f"cluster.storage: {place}: ")


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_in_order(sent: signal.Signals, code: int) -> None:
    """SIGTERM also where the shell has Ctrl-C ignored, as for its background jobs."""
    on_ctrl_c = signal.SIG_IGN if sent == signal.SIGTERM else signal.default_int_handler
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asking = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "ask", "home", "hello", "--url", url],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, on_ctrl_c),  # noqa: PLW1509
        )
        with silent.accept()[0]:
            asking.send_signal(sent)
            said = asking.communicate(timeout=60)[1]
    assert (said.splitlines()[-1], asking.returncode) == ("moetune: stopped", code)
