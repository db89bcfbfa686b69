"""`moetune schema`: what the files that people write may say, for their editors."""

from typing import Annotated, Literal

import typer

from orchestrator.output import print_json

app = typer.Typer()


@app.command()
def schema(
    file: Annotated[
        Literal["job", "space", "policy"],
        typer.Argument(metavar="FILE", help="A job file, a search space, or a retraining policy."),
    ] = "job",
) -> None:
    """Print the JSON Schema of a job file, a search space or a policy, for editors.

    With its output in job.schema.json, editors read it where a job file begins with

    \b
    # yaml-language-server: $schema=job.schema.json
    """
    from orchestrator.json_schema import SCHEMAS

    print_json(SCHEMAS[file]())
