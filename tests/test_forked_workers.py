"""The tests' cluster forks its workers, and each is what Ray would have started."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.session import Session
from tests.forked_workers import forked_workers

SCRIPT = """
import atexit, os, sys, time
atexit.register(print, "at exit")
print("torch" in sys.modules, "cluster" in sys.modules, sys.argv[1:], sys.path[0], flush=True)
print(os.getpid(), os.getcwd(), os.environ.get("GIVEN"), __name__, flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(7)
"""


@pytest.fixture
def script(processes: None, tmp_path: Path) -> Iterator[Path]:
    """A program at the place where Ray has its worker's, and one that Ray would start it by."""
    folder = tmp_path / "ray/_private/workers"
    folder.mkdir(parents=True)
    (folder / "default_worker.py").write_text(SCRIPT)
    (folder / "setup_worker.py").write_text("raise SystemExit('set up')")
    with forked_workers():
        yield folder / "default_worker.py"


def start(script: Path, *arguments: str, **changes: object) -> subprocess.Popen[str]:
    context = {"command_prefix": [], "env_vars": {"GIVEN": "here"}, "py_executable": sys.executable}
    told = f"--serialized-runtime-env-context={json.dumps(context | changes)}"
    setup = script.with_name("setup_worker.py")
    return subprocess.Popen(
        [sys.executable, setup, script, *arguments, "--language=PYTHON", told],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=script.parent,
    )


def test_a_fork_is_the_program_that_was_started(script: Path) -> None:
    with start(script, "0", "two words") as started:
        assert started.stdout is not None
        first, second, last = started.stdout
    assert first.split(maxsplit=2)[:2] == ["True", "False"], "packages, and none of moetune"
    assert first.rstrip().endswith(f"['0', 'two words'] {script.parent}")
    assert int(second.split()[0]) != started.pid
    assert second.split()[1:] == [str(script.parent), "here", "__main__"]
    assert (last, started.returncode) == ("at exit\n", 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"command_prefix": ["cd", "/", "&&"]},
        {"py_executable": "/usr/bin/python3"},
        {"env_vars": {"PYTHONPATH": "/tmp"}},
        {"env_vars": {"PATH": "/opt:$PATH"}},
    ],
)
def test_what_a_job_changes_is_left_to_ray(script: Path, changes: dict[str, object]) -> None:
    _, said = start(script, "0", **changes).communicate()
    assert said == "set up\n"


def test_it_is_killed_with_who_stands_for_it(script: Path) -> None:
    with start(script, "600") as started:
        assert started.stdout is not None
        started.stdout.readline()
        fork = int(started.stdout.readline().split()[0])
        started.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60
    while time.monotonic() < end and Path(f"/proc/{fork}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{fork}").exists()


def test_a_worker_of_the_cluster_is_one(ray_cluster: Session) -> None:
    import ray

    @ray.remote
    class Seen:
        def told(self) -> tuple[bool, str | None]:
            forked = "tests.forked_workers.server" in sys.orig_argv
            return forked, ray.get_runtime_context().get_job_id()

    job = ray.get_runtime_context().get_job_id()
    for settings in ({}, {"GIVEN": "here"}):
        actor = Seen.options(runtime_env={"env_vars": settings}).remote()  # type: ignore[attr-defined]
        assert ray.get(actor.told.remote()) == (True, job)
        ray.kill(actor)
