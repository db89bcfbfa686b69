"""Python runs this as it starts. A worker of the tests' cluster asks the process that has imported
torch and transformers (tests/forked_workers/server.py) for a fork, and then stands for it: it ends
as the fork has ended, and the fork is killed when it is.
"""

import os
import sys

SETUP, WORKER = ("/ray/_private/workers/setup_worker.py", "/ray/_private/workers/default_worker.py")
CONTEXT = "--serialized-runtime-env-context="


def worker(given: list[str]) -> list[str] | None:
    """The worker's script and its arguments; None if another program starts here, or a worker with
    another path, as those of a job have."""
    if not os.environ["PYTHONPATH"].startswith(os.path.dirname(__file__)):
        return None
    if given[0].endswith(WORKER):
        return given
    return prepared(given[1:]) if given[0].endswith(SETUP) and given[1].endswith(WORKER) else None


def prepared(given: list[str]) -> list[str] | None:
    """The same where Ray's own script would only set variables before it; None if it would do
    more."""
    import json

    for one in given:
        if one.startswith(CONTEXT):
            context = json.loads(one.removeprefix(CONTEXT))
            settings = context.pop("env_vars")
            same = context.pop("py_executable") == sys.executable and not any(context.values())
            if not same or "PYTHONPATH" in settings or "$" in "".join(settings.values()):
                return None
            os.environ.update(settings)
    return [one for one in given if not one.startswith((CONTEXT, "--language="))]


def become_a_fork(path: str, argv: list[str]) -> None:
    """End as the fork has ended. Return if there is none to be had."""
    import json
    import socket

    asked = {"argv": argv, "environment": dict(os.environ), "folder": os.getcwd(), "path": sys.path}
    body = json.dumps(asked).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(path)
        socket.send_fds(server, [len(body).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(body)
        if answer := server.recv(1):
            os._exit(answer[0])


if "MOETUNE_FORKS" in os.environ and len(sys.orig_argv) > 2 and (argv := worker(sys.orig_argv[1:])):
    become_a_fork(os.environ["MOETUNE_FORKS"], argv)
