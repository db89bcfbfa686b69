"""Commands on routers that serve: health, explain, experts, watch."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    DEFAULT_URL,
    Address,
    AsJson,
    Ca,
    MaxTokens,
    MovedBase,
    Name,
    Reference,
    Rows,
    Storage,
    Store,
    Url,
    client,
    cluster_spec,
    registry,
)
from orchestrator.monitoring.format import plain
from orchestrator.output import plain_answer, print_json, print_table

app = typer.Typer()
_COLUMNS = ("layer", "load", "cv", "entropy", "doubt", "margin", "dead")


@app.command()
def health(name: Reference, url: Url = DEFAULT_URL, ca: Ca = None, as_json: AsJson = False) -> None:
    """Show how the versions that answer to a name route: balance of each layer, and drift."""
    from orchestrator.router_health.report import Health
    from workers.config.base import validated

    body = client(url, ca).get(f"/moetune/v1/health/{name}")
    told = validated(Health, body, f"the health of {name}")
    if as_json:
        return print_json(body)
    for one in told.versions:
        title = f"{told.name}@{one.version}: {one.requests} requests, {one.tokens} tokens"
        print_table(_COLUMNS, [_layer(layer) for layer in one.layers], title)
        print(f"drift: {one.drift.state}: {plain(one.drift.why)}\n")
    return None


@app.command()
def explain(
    name: Reference,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The question.")],
    url: Url = DEFAULT_URL,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("explained.html"),
    max_tokens: MaxTokens = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question, and write a page that shows which experts every token went to."""
    from orchestrator.client import chat
    from orchestrator.router_health.attribution import Explained
    from orchestrator.router_health.attribution_page import render
    from workers.run.files import write_text

    limit: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    body = {**chat(name, text), **limit, "temperature": 0, "moetune": {"routing": "tokens"}}
    told = Explained.of(text, client(url, ca).post("/v1/chat/completions", body))
    if as_json:
        return print_json(told.as_dict())
    write_text(out, render(told))
    print(plain_answer(told.answer))
    return print(f"experts: {out}", file=sys.stderr)


@app.command()
def experts(
    name: Reference,
    data: Annotated[
        str | None, typer.Option(help="Rows with their tasks; left out: its validation rows.")
    ] = None,
    rows: Rows = 50,
    base: MovedBase = None,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show which tasks each expert serves: how much more of a task's tokens it gets than of all."""
    from cluster.session import session
    from orchestrator.evaluation.compare import Measurement
    from orchestrator.evaluation.expert_tasks import COLUMNS, expert_tasks

    book = registry(storage, store)
    measurement = Measurement.of(book, name, data, rows, generate=False, base=base)
    with session(address):
        layers = expert_tasks(measurement)
    if as_json:
        return print_json([layer.as_dict() for layer in layers])
    return print_table(COLUMNS, [row for layer in layers for row in layer.rows()])


@app.command()
def watch(
    name: Name,
    policy: Annotated[Path, typer.Option(help="When to train, on what, and what then (YAML).")],
    once: Annotated[bool, typer.Option("--once", help="One look, as from cron.")] = False,
    url: Url = DEFAULT_URL,
    ca: Ca = None,
    base: MovedBase = None,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
) -> None:
    """Train a name anew when its requests drift or answers get worse, and propose the result.

    With --address (HOST:PORT of the cluster, which must see the same files) trainings are jobs of
    that cluster; answers are measured on it too, so run this on one of its machines.
    """
    from cluster.jobs import JobClient
    from cluster.session import check_joinable
    from orchestrator.registry.rules import check_name
    from orchestrator.retraining.backends import ClusterRuns, HereRuns
    from orchestrator.retraining.policy import load_policy
    from orchestrator.retraining.signals import (
        Signals,
        check_policy,
        endpoint_drift,
        measured_quality,
    )
    from orchestrator.retraining.watch import Watch
    from workers.config.base import one_line

    check_name(name, "name")
    rules, book = load_policy(policy), registry(storage, store)
    check_policy(rules, book, name, base)
    if address:
        check_joinable(address)
    drift = endpoint_drift(client(url, ca), name)
    runs = ClusterRuns(JobClient(address)) if address else HereRuns()
    signals = Signals(drift, measured_quality(book, name, address, base))
    watching = Watch(name, rules, book, cluster_spec(storage, store), signals, runs, address)
    while True:
        try:
            print(plain(watching.look(), kept="\n"), flush=True)
        except Exception as error:  # the next look may do better
            if once:
                raise
            print(f"moetune: {plain(one_line(error))}", file=sys.stderr, flush=True)
        if once:
            return
        time.sleep(60 * rules.every_minutes)


def _layer(layer: Any) -> tuple[Any, ...]:
    load = " ".join(f"{100 * share:.0f}" for share in layer.load)
    dead = ", ".join(map(str, layer.dead)) or "none"
    return (layer.layer, load, layer.cv, layer.entropy, layer.doubt, layer.margin, dead)
