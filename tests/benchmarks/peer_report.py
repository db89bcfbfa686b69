"""What the contests gave, as Markdown and as ratios."""

from collections.abc import Sequence

import results
from peer_contest import Contest

CONTESTANTS = ("peft", "moetune", "moe-peft")
PARTS = {
    "step": ("Training step, CPU ms", 1.0),
    "evaluation": ("Evaluation, CPU ms", 1.0),
    "memory": ("Peak memory of a training step, MiB", 2.0**20),
}
"""Heading and unit of each part of a Contest."""

NOTE = """\
Medians of interleaved turns; each contestant is a process with one thread, and its CPU time counts.
Step: forward, loss, backward, AdamW (moetune and PEFT also clip the gradients; the two with experts
also have a load-balance loss). Evaluation: logits of the batch, no gradients (moe-peft's with
dropout, which it never switches off). Memory: the most that torch holds during a step above what it
held before, gradients of the adapter included."""


def section(contests: Sequence[Contest], sizes: str, machine: str) -> str:
    """The text for RESULTS.md."""
    tables = [
        f"{heading}:\n\n{_table(part, unit, contests)}" for part, (heading, unit) in PARTS.items()
    ]
    difference = max(contest.difference for contest in contests)
    agreement = f"Logits that should be equal differ by at most {difference:.1g}."
    return "\n\n".join((machine, sizes, NOTE, *tables, agreement))


def ratios(contests: Sequence[Contest]) -> dict[str, object]:
    """Ratios by number of experts: those of the first shape, and under `shapes` the others'."""
    shapes = dict.fromkeys(contest.shape for contest in contests)
    first, *others = (_ratios([c for c in contests if c.shape == shape]) for shape in shapes)
    return first | {"shapes": dict(zip(list(shapes)[1:], others, strict=True))}


def _table(part: str, unit: float, contests: Sequence[Contest]) -> str:
    digits = 1 if unit == 1 else 0
    rows = []
    for contest in contests:
        figures = [contest.figures[part].get(name) for name in CONTESTANTS]
        rows.append(
            [
                contest.shape,
                str(contest.experts),
                *("-" if figure is None else f"{figure / unit:.{digits}f}" for figure in figures),
                _number(contest.ratio(part, "moetune", "peft")),
                _number(contest.ratio(part, "moe-peft", "moetune")),
            ]
        )
    columns = ["shape", "E", *CONTESTANTS, "moetune / peft", "moe-peft / moetune"]
    return results.table(columns, rows)


def _number(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _ratios(contests: Sequence[Contest]) -> dict[str, object]:
    def by_experts(part: str, over: str, under: str) -> dict[str, float]:
        found = {str(c.experts): c.ratio(part, over, under) for c in contests}
        return {experts: ratio for experts, ratio in found.items() if ratio is not None}

    return {
        "moetune_over_peft": by_experts("step", "moetune", "peft"),
        "moe_peft_over_moetune": by_experts("step", "moe-peft", "moetune"),
        "peak_memory_over_peft": by_experts("memory", "moetune", "peft"),
        "moe_peft_peak_memory_over_moetune": by_experts("memory", "moe-peft", "moetune"),
        "evaluation": {
            "moetune_over_peft": by_experts("evaluation", "moetune", "peft"),
            "moe_peft_over_moetune": by_experts("evaluation", "moe-peft", "moetune"),
        },
        "trainable": {str(c.experts): c.trainable for c in contests},
    }
