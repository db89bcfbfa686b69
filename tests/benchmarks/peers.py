"""A training step and an evaluation of moetune, PEFT's LoRA and moe-peft's MixLoRA.

All three have the same frozen random Llama, in float32, and the same batch; moetune and moe-peft
also the same adapter, read from one folder, and their logits must agree. PEFT's LoRA has as many
trained weights in each place (the routers come on top). Each contestant is a process with one
thread, and they take turns, one step each; times are process CPU time, so that neighbours on the
machine count little. moe-peft runs in a virtual environment of its own, which is made once.

    python tests/benchmarks/peers.py [--json PATH|-]

Also writes its section of RESULTS.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TextIO

import peer_environment
import results
from peer_contest import Contest, contest
from peer_models import write_adapter, write_base
from peer_report import CONTESTANTS, ratios, section
from peer_setup import Setup, Sizes

SHAPES = ("576x1536x4", "1024x2816x2")


def contests(
    options: argparse.Namespace, sizes: Sizes, pythons: Mapping[str, Path]
) -> Iterator[Contest]:
    """All contests, as they end."""
    with tempfile.TemporaryDirectory() as name:
        for shape in options.shapes:
            folder = Path(name, shape)
            base = write_base(shape, sizes, folder / "base")
            for experts in options.experts:
                adapter = write_adapter(base, experts, sizes, folder / f"experts-{experts}")
                setup = Setup(str(base), str(adapter), experts, options.attention, sizes)
                yield contest(shape, setup, pythons, folder)


def run(options: argparse.Namespace, sizes: Sizes, table: TextIO) -> dict[str, object]:
    """Hold every contest, write the section; the ratios and the sizes."""
    pythons = {name: Path(sys.executable) for name in CONTESTANTS if name not in options.without}
    versions = {}
    if "moe-peft" in pythons:
        pythons["moe-peft"] = peer_environment.python_of(options.venv)
        versions = peer_environment.versions_in(pythons["moe-peft"])
    held = []
    for one in contests(options, sizes, pythons):
        held.append(one)
        taken = ", ".join(f"{name} {value:.0f} ms" for name, value in one.figures["step"].items())
        print(f"{one.shape}, {one.experts} experts: {taken}", file=table, flush=True)
    named = asdict(sizes) | {"attention": options.attention}
    text = section(
        held,
        "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in named.items()),
        results.machine(versions),
    )
    results.write_section("peers.py", text, options.results)
    print(text, file=table)
    return ratios(held) | {"sizes": named | {"shapes": options.shapes}}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--json", metavar="PATH|-", help="also write the JSON to PATH; -: print only the JSON"
    )
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument(
        "--shapes", nargs="+", default=list(SHAPES), metavar="WIDTHxFEED_FORWARDxLAYERS"
    )
    parser.add_argument(
        "--attention",
        choices=("sdpa", "eager"),
        default="sdpa",
        help="of PEFT and moetune; moe-peft has only eager",
    )
    parser.add_argument("--without", choices=("moe-peft",), nargs="+", default=[])
    parser.add_argument("--venv", type=Path, default=peer_environment.CACHE, metavar="DIR")
    parser.add_argument("--results", type=Path, default=results.RESULTS, metavar="PATH")
    for field in fields(Sizes):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default
        )
    return parser


def main() -> None:
    """Parse the arguments, print the tables, and end with one line of JSON."""
    options = arguments().parse_args()
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in fields(Sizes)})
    if not 0 < sizes.dropout < 1:
        raise SystemExit(f"--dropout is {sizes.dropout}; moe-peft needs more than 0, less than 1")
    if min(options.experts) < sizes.top_k:
        raise SystemExit(f"--experts {min(options.experts)} is below --top-k {sizes.top_k}")
    line = json.dumps(run(options, sizes, sys.stderr if options.json == "-" else sys.stdout))
    if options.json not in (None, "-"):
        Path(options.json).write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
