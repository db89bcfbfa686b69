"""Commands on the endpoint: serve and ask."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import completion
from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    DEFAULT_URL,
    Address,
    AsJson,
    Ca,
    JobStorage,
    MaxTokens,
    MovedBase,
    Name,
    Store,
    Url,
    client,
    cluster_spec,
    job_spec,
)
from orchestrator.output import plain_answer, print_json

if TYPE_CHECKING:
    from orchestrator.config.cluster import ClusterSpec
    from orchestrator.config.serve import ServeSpec

app = typer.Typer()


@app.command()
def serve(
    name: Name,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Field of the endpoint: port=8001.",
            autocompletion=completion.endpoint_fields,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it running on the cluster; wants --address.")
    ] = False,
    job: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Job file: its sections serve and cluster hold.",
            autocompletion=completion.jobs,
        ),
    ] = None,
    base: MovedBase = None,
    address: Address = None,
    storage: JobStorage = None,
    store: Store = None,
) -> None:
    """Serve a name's champion beside its base model, until Ctrl-C."""
    from cluster.session import session
    from orchestrator.serve.deploy import check_endpoint, deploy, undeploying
    from orchestrator.serve.served_base import served_base
    from workers.config.base import InputError

    spec, where = _endpoint(job, set_ or (), address, storage, store)
    if detach and where.address is None:
        raise InputError("serve --detach: needs --address: a local cluster ends with the command")
    # wrong at once, not after a start
    found = served_base(where.store_url(), where.storage, name, at=base)
    check_endpoint(spec, where)
    with session(where.address) as cluster:
        endpoint = deploy(spec, found)
        key = " to who has a key" if endpoint.needs_key else ""
        print(f"serving {name} and {endpoint.base} at {endpoint.openai_url}{key}", flush=True)
        if detach:
            return
        with undeploying():
            print(f"page at {endpoint.url}/; Ctrl-C stops it", file=sys.stderr, flush=True)
            cluster.wait()


@app.command()
def ask(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="NAME, NAME@VERSION, or the base model.",
            autocompletion=completion.names,
        ),
    ],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The question.")],
    url: Url = DEFAULT_URL,
    max_tokens: MaxTokens = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Ask a running endpoint one question. Its key is read from MOETUNE_API_KEY."""
    fields: dict[str, Any] = {"temperature": 0}
    if max_tokens is not None:
        fields["max_tokens"] = max_tokens
    endpoint = client(url, ca)
    if as_json:
        answer = endpoint.answer(name, text, **fields)
        told = {"asked": name, "model": answer.model, "question": text, "answer": answer.text}
        return print_json(told)
    for piece in endpoint.ask(name, text, stream=True, **fields):
        print(plain_answer(piece), end="", flush=True)
    return print()


def _endpoint(
    job: str | None,
    assignments: Sequence[str],
    address: str | None,
    storage: str | None,
    store: str | None,
) -> "tuple[ServeSpec, ClusterSpec]":
    """The endpoint, and where it runs and its files lie: a job's, as far as options say nothing."""
    from orchestrator.config.job import assigned
    from orchestrator.config.serve import ServeSpec
    from workers.config.base import override

    if job:
        options = {"storage": storage, "store": store, "address": address}
        loaded = job_spec(job, (), options)
        serve, told = loaded.serve, loaded.cluster
        where = cluster_spec(told.storage, told.store, told.address)
    else:
        serve, where = ServeSpec(), cluster_spec(storage or DEFAULT_STORAGE, store, address)
    changes = {field.removeprefix("serve."): one for field, one in assigned(assignments).items()}
    return override(serve, changes, "--set"), where
