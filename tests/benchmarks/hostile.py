"""The endpoint under attack: what one key can do to another's requests, and to a roll-out.

The pieces lie in attacks/; each is a script of its own as well. `loop_stall_ms`, `memory_mb` and
`victim_p95_ratio` are the worst piece's, `guard_events` are all that moved a roll-out and should
not have. Goals: 100 ms, memory back where it was, and none. Another key's p95 has no goal: it is
promised its fair share of the passes, and a pass with more rows takes longer.

    python tests/benchmarks/hostile.py [--only PIECE …] [--seconds 10] [--json PATH|-]
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
from attacks.field import Sizes
from results import machine, table, write_section

SIZED = ("schemas", "prompts")
"""Pieces that take this script's sizes."""
PIECES = (*SIZED, "bodies", "fairness", "guard")
FIGURES = ("loop_stall_ms", "memory_mb", "victim_p95_ratio", "guard_events")
Found = Mapping[str, Mapping[str, float]]
"""What each piece measured."""


def worst(found: Found) -> dict[str, float | None]:
    """The largest of each figure; None where no piece measures it."""
    return {
        name: max((piece[name] for piece in found.values() if name in piece), default=None)
        for name in FIGURES
    }


def report(found: Found) -> str:
    """The section's text."""
    rows = [
        [name, *(f"{piece[figure]:.4g}" if figure in piece else "-" for figure in FIGURES)]
        for name, piece in found.items()
    ]
    return f"{machine()}\n\n{table(['attack', *FIGURES], rows)}"


def measured(name: str, sizes: Sizes) -> dict[str, float]:
    """What a piece measures."""
    piece = import_module(f"attacks.{name}")
    found: dict[str, float] = piece.measure(sizes) if name in SIZED else piece.measure()
    return found


def main() -> None:
    """Run the pieces one after the other, print the table, and end with one line of JSON."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument("--only", nargs="+", choices=PIECES, default=PIECES)
    parser.add_argument("--results", type=Path, metavar="PATH", help="write a section there")
    options = parser.parse_args()
    sizes = Sizes(options.seconds, options.clients)
    found = {name: measured(name, sizes) for name in options.only}
    print(report(found), file=harness.output(options.json))
    if options.results is not None:
        write_section("hostile.py", report(found), options.results)
    harness.finish({**worst(found), "pieces": found}, options.json)


if __name__ == "__main__":
    main()
