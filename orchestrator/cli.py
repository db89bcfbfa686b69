"""The command `moetune`. Commands import what they need when they run, so that help is instant."""

import logging
import os
import signal
import sys
from importlib import metadata
from types import FrameType
from typing import Annotated

import typer

from cluster.environment import direct
from cluster.errors import ClusterGone
from orchestrator.commands import (
    adapter,
    clean,
    evaluate,
    export,
    jobs,
    keys,
    leaderboard,
    rollout,
    schema,
    status,
    study,
    train,
)
from orchestrator.commands import models as versions
from orchestrator.commands import routers as health
from orchestrator.commands import serve as endpoint
from orchestrator.monitoring.format import plain

app = typer.Typer(
    name="moetune",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
PARTS = (
    study,
    train,
    leaderboard,
    rollout,
    versions,
    evaluate,
    export,
    endpoint,
    health,
    jobs,
    status,
    clean,
    schema,
)
for part in (one.app for one in PARTS):
    app.registered_commands += part.registered_commands
app.add_typer(adapter.app, name="adapter", help="Adapters on disk: inspect, import, export.")
app.add_typer(keys.app, name="keys", help="Keys of the endpoint: create, list, revoke, delete.")


def _version(asked: bool) -> None:
    if asked:
        print(f"moetune {metadata.version('moetune')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Tune, promote and serve routed mixtures of LoRA experts on a Ray cluster."""


_INTERRUPTED = 128 + signal.SIGINT  # typer makes it of a KeyboardInterrupt


def main() -> None:
    """Run a command. Bad input is one line on stderr and exit code 2, never a traceback.

    SIGTERM ends it as Ctrl-C does: in order.
    """
    _silence_libraries()
    os.environ.update(direct())
    sigterm = _AsCtrlC()
    before = signal.signal(signal.SIGTERM, sigterm)
    try:
        app()
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        _fail("stopped", 128 + signal.SIGTERM if sigterm.came else _INTERRUPTED)
    except ClusterGone as error:
        _say(str(error))
        os._exit(2)
    except Exception as error:
        said = _for_people(error)
        if said is None:
            raise
        _fail(said, 2)
    finally:
        signal.signal(signal.SIGTERM, before)


class _AsCtrlC:
    """On SIGTERM: whatever Ctrl-C would do at this moment."""

    came = False

    def __call__(self, _: int, frame: FrameType | None) -> None:
        """Python calls this in the main thread."""
        self.came = True
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell has its background jobs ignore Ctrl-C
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)


def _silence_libraries() -> None:
    """Our own progress is enough; libraries' bars and notes would bury it."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    # DeepSpeed, which transformers imports, warns at import that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def _for_people(error: Exception) -> str | None:
    """What says all that the user needs; None where it is a fault of ours."""
    from cluster.errors import ClusterError
    from workers.config.base import InputError

    if isinstance(error, InputError | ClusterError | OSError):
        return str(error)
    if "sqlalchemy" not in sys.modules:
        return None
    from orchestrator.store.connections import store_fault

    fault = store_fault(error)
    return fault and f"the store failed: {fault}"


def _fail(message: str, code: int) -> None:
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    print(f"moetune: {plain(' '.join(message.split()))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
