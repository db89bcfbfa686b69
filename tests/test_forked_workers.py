"""The tests' cluster forks its workers, and tests their commands; each is what would have been
started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.session import Session

SUPERVISORS = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
SCRIPT = """
import atexit, os, sys, time
atexit.register(print, "at exit")
print("torch" in sys.modules, "cluster" in sys.modules, sys.argv[1:], sys.path[0], flush=True)
print(os.getpid(), os.getcwd(), os.environ.get("GIVEN"), __name__, flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(7)
"""


@pytest.fixture
def script(processes: None, tmp_path: Path) -> Path:
    """A program at the place where Ray has its worker's, and one that Ray would start it by."""
    folder = tmp_path / "ray/_private/workers"
    folder.mkdir(parents=True)
    (folder / "default_worker.py").write_text(SCRIPT)
    (folder / "setup_worker.py").write_text("raise SystemExit('set up')")
    return folder / "default_worker.py"


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
        {"command_prefix": ["nice"]},
        {"py_executable": "/usr/bin/python3"},
        {"env_vars": {"PYTHONPATH": "/tmp"}},
        {"env_vars": {SUPERVISORS: "1"}},
        {"env_vars": {"PATH": "/opt:$PATH"}},
    ],
)
def test_what_a_job_changes_is_left_to_ray(script: Path, changes: dict[str, object]) -> None:
    _, said = start(script, "0", **changes).communicate()
    assert said == "set up\n"


def test_a_worker_of_a_job_is_forked_in_its_folder(script: Path, tmp_path: Path) -> None:
    script.write_text("import os, sys; print('torch' in sys.modules, os.getcwd(), sys.path[:3])")
    path = os.environ["PYTHONPATH"]
    settings = {"env_vars": {"PYTHONPATH": f"{tmp_path}{os.pathsep}{path}"}}
    said, _ = start(script, command_prefix=["cd", str(tmp_path), "&&"], **settings).communicate()
    places = [str(script.parent), str(tmp_path), path.split(os.pathsep)[0]]
    assert said == f"True {tmp_path} {places}\n"


def test_who_starts_a_jobs_command_is_a_child_of_rays(script: Path) -> None:
    command = [sys.executable, script, "0"]
    for changes, forked in (({}, "True"), ({SUPERVISORS: "1"}, "False")):
        told = subprocess.run(command, env=os.environ | changes, capture_output=True, check=False)
        assert told.stdout.decode().split()[0] == forked


def test_one_of_another_python_starts_by_itself(script: Path, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    command = [other, script, "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("False "), done.stderr


def test_it_is_killed_with_who_stands_for_it(script: Path) -> None:
    with start(script, "600") as started:
        fork = told(started)
        started.send_signal(signal.SIGKILL)
    gone(fork)


def told(started: subprocess.Popen[str]) -> int:
    """The number of the process that says so in its second line."""
    assert started.stdout is not None
    started.stdout.readline()
    return int(started.stdout.readline().split()[0])


def gone(fork: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and Path(f"/proc/{fork}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{fork}").exists()


COMMAND = """
import atexit, os, signal, sys, time
def ended(number, _):
    print("ended by", number, flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, ended)
atexit.register(print, "at exit")
try:
    print("torch" in sys.modules, __name__, sys.argv, sys.path[0], flush=True)
    print(os.getpid(), flush=True)
    time.sleep(600 if "long" in sys.argv else 0)
except KeyboardInterrupt:
    sys.exit(130)
sys.exit(3)
"""


@pytest.fixture
def folder(processes: None, tmp_path: Path) -> Path:
    """One in which `python -m orchestrator.cli` is a program that tells what it is."""
    package = tmp_path / "orchestrator"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(COMMAND)
    (tmp_path / "bin").mkdir()
    for name in ("moetune", "benchmark.py"):
        (tmp_path / "bin" / name).write_text(COMMAND)
    return tmp_path


MODULE, FILE = ("-m", "orchestrator.cli"), ("bin/moetune",)
BENCHMARK = ("bin/benchmark.py",)


def command(
    folder: Path,
    *words: str,
    program: tuple[str, ...] = MODULE,
    python: str = sys.executable,
    **changes: str,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, *program, *words],
        cwd=folder,
        env=os.environ | changes,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "program", [MODULE, FILE, BENCHMARK], ids=["module", "script", "benchmark"]
)
def test_a_command_is_what_python_would_start(
    folder: Path, program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setenv("PYTHONBREAKPOINT", "ray.util.rpdb.set_trace")  # as Ray does
    if program == BENCHMARK:
        monkeypatch.setenv("TESTS_FORK_SCRIPTS", BENCHMARK[0])
    for changes in ({}, {"OMP_NUM_THREADS": "2"}, {"PYTHONHASHSEED": "1"}):
        with command(folder, "two words", "-x", program=program, **changes) as started:
            assert started.stdout is not None
            said.append(started.stdout.readline().split(maxsplit=1))
            number = int(started.stdout.readline())
            assert started.stdout.read() == "at exit\n"
            assert started.stderr is not None
            assert started.stderr.read() == ""
        assert started.returncode == 3
        assert (number == started.pid) == bool(changes), "what is read early starts by itself"
    assert [torch for torch, _ in said] == ["True", "False", "False"]
    assert len({rest for _, rest in said}) == 1, said


@pytest.mark.parametrize("name", ["python", "python3"])
def test_an_environments_python_has_several_names(folder: Path, name: str) -> None:
    with command(folder, program=FILE, python=f"{sys.prefix}/bin/{name}") as started:
        assert told(started) != started.pid


def test_another_python_starts_by_itself(folder: Path) -> None:
    other = folder / "python"
    other.symlink_to(sys.executable)
    with command(folder, python=str(other)) as started:
        assert told(started) == started.pid


def test_another_script_does_too(folder: Path) -> None:
    with command(folder, "here", program=BENCHMARK) as started:
        assert told(started) == started.pid


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_commands_signals_are_its_forks(folder: Path, number: signal.Signals, code: int) -> None:
    with command(folder, "long") as started:
        fork = told(started)
        started.send_signal(number)
        rest, _ = started.communicate(timeout=60)
    said = "ended by 15\n" if code == 143 else ""
    assert (rest, started.returncode) == (f"{said}at exit\n", code)
    gone(fork)


def test_a_killed_commands_fork_goes_too(folder: Path) -> None:
    with command(folder, "long") as started:
        fork = told(started)
        started.kill()
    gone(fork)


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
