"""The command `moetune`. Commands import what they need when they run, so that help is instant."""

import sys

import typer

from cluster.errors import ClusterError
from orchestrator.commands import adapter, endpoint, jobs, study, versions
from workers.spec import InputError

app = typer.Typer(
    name="moetune",
    help="Tune, promote and serve routed mixtures of LoRA experts on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (study.app, versions.app, endpoint.app, jobs.app):
    app.registered_commands += part.registered_commands
app.add_typer(adapter.app, name="adapter", help="Adapters on disk: inspect, import, export.")


def main() -> None:
    """Run a command. Bad input is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except (InputError, ClusterError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except OSError as error:
        _fail(f"{error.filename or 'input and output'}: {error.strerror or error}", 2)


def _fail(message: str, code: int) -> None:
    print(f"moetune: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
