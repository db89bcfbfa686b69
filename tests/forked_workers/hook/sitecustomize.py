"""Python runs this as it starts. A worker of the tests' cluster, and a `moetune` or a script of the
tests, ask the process that has imported torch and transformers (tests/forked_workers/server.py) for
a fork, and then stand for it: they end as the fork has ended, and the fork is killed when they are.
"""

import os
import sys
from collections.abc import Mapping

SETUP, WORKER = ("/ray/_private/workers/setup_worker.py", "/ray/_private/workers/default_worker.py")
CONTEXT = "--serialized-runtime-env-context="
SUPERVISORS = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Given to who starts a job's command, which finds the cluster's Python among its ancestors."""
COMMAND, SCRIPT = ["-m", "orchestrator.cli"], "bin/moetune"


def worker(given: list[str]) -> list[str] | None:
    """The worker's script and its arguments; None if another program starts here."""
    if given[0].endswith(WORKER):
        return None if SUPERVISORS in os.environ else given
    return prepared(given[1:]) if given[0].endswith(SETUP) and given[1].endswith(WORKER) else None


def prepared(given: list[str]) -> list[str] | None:
    """The same where Ray's own script would only set variables and go to a job's folder before it;
    None if it would do more."""
    import json

    for one in given:
        if one.startswith(CONTEXT):
            context = json.loads(one.removeprefix(CONTEXT))
            settings, python = context.pop("env_vars"), context.pop("py_executable")
            folder = where(context.pop("command_prefix"))
            same = python == sys.executable and not any(context.values()) and hooked(settings)
            if not same or folder is None or "$" in "".join(settings.values()):
                return None
            os.chdir(folder)
            prepend(settings.get("PYTHONPATH", ""))
            os.environ.update(settings)
    return [one for one in given if not one.startswith((CONTEXT, "--language="))]


def where(prefix: list[str]) -> str | None:
    """The folder that the words in front of the command go to; None if they say something else."""
    import shlex

    if not prefix:
        return os.getcwd()
    going = len(prefix) == 3 and (prefix[0], prefix[2]) == ("cd", "&&")
    return shlex.split(prefix[1])[0] if going else None


def hooked(settings: Mapping[str, str]) -> bool:
    """Whether this file stands on the path that the variables give, to what is no supervisor."""
    path = settings.get("PYTHONPATH", os.environ["PYTHONPATH"])
    return SUPERVISORS not in settings and os.path.dirname(__file__) in path.split(os.pathsep)


def prepend(path: str) -> None:
    """Look for modules on this PYTHONPATH in place of the one that Python was started with."""
    if path:
        before = os.environ["PYTHONPATH"].split(os.pathsep)
        rest = [one for one in sys.path if one not in before]
        sys.path[:] = [*path.split(os.pathsep), *rest]


def command(given: list[str]) -> dict[str, object] | None:
    """What to run for a command without a terminal, which a fork would not have, and that Ctrl-C
    ends; None if another program starts here."""
    import signal

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or any(map(os.isatty, range(3))):
        return None
    if given[:2] == COMMAND:
        return {"module": given[1], "argv": given[1:], "signals": True}
    ours = given[0].endswith(SCRIPT) or given[0].startswith(os.environ["TESTS_FORK_SCRIPTS"])
    return {"argv": given, "signals": True} if ours else None


def become_a_fork(path: str, asked: dict[str, object]) -> None:
    """End as the fork has ended. Return if there is none to be had."""
    import json
    import signal
    import socket

    asked |= {"environment": dict(os.environ), "folder": os.getcwd(), "path": sys.path}
    asked["python"] = [os.path.realpath(sys.executable), sys.prefix]
    body = json.dumps(asked).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(path)
        socket.send_fds(server, [len(body).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(body)
        if "signals" in asked:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        if answer := server.recv(1):
            os._exit(answer[0])
    for number, before in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        signal.signal(number, before)


def main(path: str, given: list[str]) -> None:
    """Ask for a fork, where one is wanted."""
    if asked := command(given):
        become_a_fork(path, asked)
    elif "TESTS_FORK_WORKERS" in os.environ and (argv := worker(given)):
        become_a_fork(path, {"argv": argv})


if "TESTS_FORK_AT" in os.environ and len(sys.orig_argv) > 1:
    main(os.environ["TESTS_FORK_AT"], sys.orig_argv[1:])
