"""The command `moetune`. Commands import what they need when they run, so that help is instant."""

import logging
import os
import sys

import typer

from cluster.environment import direct
from orchestrator.commands import (
    adapter,
    endpoint,
    health,
    jobs,
    keys,
    rollout,
    status,
    study,
    versions,
)
from orchestrator.words import plain

app = typer.Typer(
    name="moetune",
    help="Tune, promote and serve routed mixtures of LoRA experts on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (study.app, rollout.app, versions.app, endpoint.app, health.app, jobs.app, status.app):
    app.registered_commands += part.registered_commands
app.add_typer(adapter.app, name="adapter", help="Adapters on disk: inspect, import, export.")
app.add_typer(keys.app, name="keys", help="Keys of the endpoint: create, list, revoke, delete.")


def main() -> None:
    """Run a command. Bad input is one line on stderr and exit code 2, never a traceback."""
    _silence_libraries()
    os.environ.update(direct())
    try:
        app()
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except Exception as error:
        said = _for_people(error)
        if said is None:
            raise
        _fail(said, 2)


def _silence_libraries() -> None:
    """Our own progress is enough; libraries' bars and notes would bury it."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    # DeepSpeed, which transformers imports, warns at import that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def _for_people(error: Exception) -> str | None:
    """What says all that the user needs; None where it is a fault of ours."""
    from cluster.errors import ClusterError
    from workers.configuration import InputError

    if isinstance(error, InputError | ClusterError | OSError):
        return str(error)
    if "sqlalchemy" not in sys.modules:
        return None
    from orchestrator.connections import store_fault

    fault = store_fault(error)
    return fault and f"the store failed: {fault}"


def _fail(message: str, code: int) -> None:
    print(f"moetune: {plain(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
