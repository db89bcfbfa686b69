"""Which adapters a pass prepares for: those that met lately, not those of this pass only.

What several adapters need together is put together once and serves until another set of them
meets (layers/inference/prepared.py). Under load requests end and begin every few steps, each with
its own adapter: were the set that of the step, it would hardly ever be the same one twice.
"""

from collections.abc import Collection, Sequence

Slot = str | None
MEMBERS = 9
"""At most; every one costs its share of a step, present or not."""
STEPS = 256
"""After which one that has no row any more is forgotten."""


class RecentAdapters:
    """Remembers who decoded lately."""

    def __init__(self) -> None:
        self._step = 0
        self._seen: dict[Slot, int] = {}

    def of(self, slots: Sequence[Slot], held: Collection[str]) -> frozenset[Slot]:
        """Who is to be prepared for beside a step's own slots; `held` are on the model."""
        self._step += 1
        present = set(slots)
        if len(present) == 1:  # one alone has its own
            return frozenset()
        self._seen |= dict.fromkeys(present, self._step)
        lately = {
            slot: step
            for slot, step in self._seen.items()
            if step > self._step - STEPS and (slot is None or slot in held)
        }
        kept = sorted(lately, key=lambda slot: -lately[slot])[: max(MEMBERS, len(present))]
        self._seen = {slot: lately[slot] for slot in kept}
        return frozenset(kept)
