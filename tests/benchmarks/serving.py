"""Serving under load: the bare base, one adapter, eight adapters in one engine, and two others.

The gateway over one engine, with no Ray, answers clients of another process over HTTP on loopback;
beside it transformers' generate() with the adapter attached, and moe-peft's own generate(), take as
many requests at once as there are clients, and the next when all of them have ended. All have one
thread, the same weights and the same requests of mixed lengths, and take turns. Ratios are of
tokens by CPU second of the process that generates (the gateway's with HTTP and all), in the same
round, and their median over the rounds, since neighbours on the machine count little so; tokens by
second of the clock and times to the first token stand beside.

    python tests/benchmarks/serving.py [--json PATH|-] [--model FOLDER]
"""

import statistics
import sys
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import harness
import peer_environment
from results import machine, table, write_section
from serving_models import for_moe_peft, random_base, write_adapters
from serving_process import Process
from serving_work import Sizes

Turn = Callable[[int, int], dict[str, Any]]
"""Takes a number of clients and a seed; gives tokens, seconds, cpu, and perhaps ttft."""
SERVED = ("base", "one adapter", "adapters")


@dataclass
class Figures:
    """Of one contestant at one number of clients, over the rounds."""

    by_cpu: list[float] = field(default_factory=list)
    by_clock: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)

    def add(self, told: dict[str, Any]) -> None:
        """One turn."""
        self.by_cpu.append(told["tokens"] / told["cpu"])
        self.by_clock.append(told["tokens"] / told["seconds"])
        self.ttft += told.get("ttft", [])

    def over(self, other: "Figures", kind: str = "by_cpu") -> float:
        """How many times the other's: the median of the rounds' ratios."""
        rounds = zip(getattr(self, kind), getattr(other, kind), strict=True)
        return statistics.median(mine / theirs for mine, theirs in rounds)

    def first(self, share: float) -> float:
        """Time to the first token that this share of the requests does not exceed, in seconds."""
        return sorted(self.ttft)[round(share * (len(self.ttft) - 1))]


Taken = dict[int, dict[str, Figures]]
"""By clients and contestant."""


def contestants(options: Namespace, sizes: Sizes, stack: ExitStack) -> Iterator[tuple[str, Turn]]:
    """Everybody, started."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    base = options.model or random_base(sizes, folder / "base")
    adapters = write_adapters(base, sizes, folder)
    python = Path(sys.executable)

    def started(python: Path, script: str, **own: Any) -> Process:
        process = Process(python, script, {"sizes": asdict(sizes), **own}, folder / f"{script}.log")
        stack.callback(process.close)
        return process

    room = max(options.clients) * (sizes.prompt + sizes.answer + 64)
    facts = {"base": str(base), "answer": sizes.answer, "cache_tokens": room}
    gateway = started(python, "serving_gateway.py", adapters=[str(a) for a in adapters], **facts)
    vocabulary = gateway.facts["vocabulary"]
    url = f"http://127.0.0.1:{gateway.facts['port']}"
    load = started(python, "serving_load.py", url=url, vocabulary=vocabulary)
    names = [f"a{number}" for number in range(sizes.adapters)]
    for name, models in zip(SERVED, (["base"], names[:1], names), strict=True):
        yield name, _served(gateway, load, models)
    others = {"generate()": (python, "serving_static.py", adapters[0])}
    if "moe-peft" not in options.without:
        theirs = peer_environment.python_of(options.venv)
        others["moe-peft"] = (theirs, "serving_moe_peft.py", for_moe_peft(adapters[0]))
    for name, (its_python, script, adapter) in others.items():
        other = started(
            its_python, script, base=str(base), adapter=str(adapter), vocabulary=vocabulary
        )
        yield name, lambda clients, seed, other=other: other.ask(clients=clients, seed=seed)


def _served(gateway: Process, load: Process, models: list[str]) -> Turn:
    def turn(clients: int, seed: int) -> dict[str, Any]:
        before = gateway.ask()["cpu"]
        told = load.ask(models=models, clients=clients, seed=seed)
        return told | {"cpu": gateway.ask()["cpu"] - before}

    return turn


def measure(options: Namespace, sizes: Sizes, out: TextIO) -> Taken:
    """Let them take turns. moe-peft, the slowest by far, at eight clients only."""
    taken: Taken = defaultdict(lambda: defaultdict(Figures))
    with ExitStack() as stack:
        running = dict(contestants(options, sizes, stack))
        for seed in range(sizes.rounds + 1):
            for clients in options.clients:
                for name, turn in running.items():
                    alone = name == "moe-peft" and clients != options.at
                    if alone or (seed == 0 and clients != options.at):
                        continue
                    told = turn(clients, 1000 * seed + clients)
                    if seed:  # the first round warms up
                        taken[clients][name].add(told)
                        print(f"{clients} clients, {name}: {told['tokens']} tokens in "
                              f"{told['seconds']:.1f} s", file=out, flush=True)  # fmt: skip
    return taken


def ratios(taken: Taken, at: int) -> dict[str, object]:
    """The result: ratios at the number of clients that the goals are for, and at all others."""

    def over(clients: int, name: str, other: str, kind: str = "by_cpu") -> float | None:
        found = taken[clients]
        if not {name, other} <= found.keys():
            return None
        return round(found[name].over(found[other], kind), 3)

    by_clients = {
        str(clients): {
            "one_adapter_over_base": over(clients, "one adapter", "base"),
            "eight_adapters_over_base": over(clients, "adapters", "base"),
            "over_generate": over(clients, "one adapter", "generate()"),
            "one_adapter_over_base_by_clock": over(clients, "one adapter", "base", "by_clock"),
            "tokens_by_second": {
                name: round(statistics.median(one.by_clock), 1)
                for name, one in taken[clients].items()
            },
            "ttft_s": {
                name: {"p50": round(one.first(0.5), 4), "p95": round(one.first(0.95), 4)}
                for name, one in taken[clients].items()
                if one.ttft
            },
        }
        for clients in taken
    }
    return {
        "one_adapter_over_base": over(at, "one adapter", "base"),
        "eight_adapters_over_base": over(at, "adapters", "base"),
        "over_moe_peft": over(at, "one adapter", "moe-peft"),
        "over_generate": over(at, "one adapter", "generate()"),
        "ttft_p95_s": round(taken[at]["one adapter"].first(0.95), 4),
        "clients": at,
        "by_clients": by_clients,
    }


def report(taken: Taken, sizes: dict[str, Any], model: str) -> str:
    """The section's text."""
    rows = []
    for clients, found in taken.items():
        for name, one in found.items():
            by_cpu = f"{statistics.median(one.by_cpu):.0f}"
            first = f"{1000 * one.first(0.95):.0f}" if one.ttft else "-"
            clock = f"{statistics.median(one.by_clock):.0f}"
            over = f"{one.over(found['base']):.2f}"
            rows.append([f"{clients}", name, by_cpu, clock, first, over])
    columns = ["clients", "who", "tokens / CPU s", "tokens / s", "TTFT p95 ms", "over base"]
    named = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sizes.items())
    goals = "Goals at 8 clients: one adapter 0.85, eight 0.7, and 5 times moe-peft."
    return f"{machine()}\n\nBase {model}; {named}.\n\n{goals}\n\n{table(columns, rows)}"


def main() -> None:
    """Parse the arguments, print the table, and end with one line of JSON."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a real base, not a random one"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--at", type=int, default=8, help="clients that the ratios are for")
    parser.add_argument("--without", choices=("moe-peft",), nargs="+", default=[])
    parser.add_argument("--venv", type=Path, default=peer_environment.CACHE, metavar="DIR")
    parser.add_argument("--results", type=Path, metavar="PATH", help="write a section there")
    options = parser.parse_args()
    sizes = Sizes(**{name: getattr(options, name) for name in asdict(Sizes())})
    if options.at not in options.clients:
        raise SystemExit(f"--at {options.at} is not among --clients {options.clients}")
    out = harness.output(options.json)
    taken = measure(options, sizes, out)
    model = options.model.name if options.model else f"random {sizes.shape}"
    told = asdict(sizes)
    if options.model:  # it has its own
        del told["shape"], told["vocabulary"]
    text = report(taken, told, model)
    print(text, file=out)
    if options.results is not None:
        write_section(f"serving.py, {model}", text, options.results)
    result = ratios(taken, options.at) | {"sizes": told | {"model": model}}
    harness.finish(result, options.json)


if __name__ == "__main__":
    main()
