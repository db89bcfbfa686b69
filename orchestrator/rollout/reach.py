"""Whether a canary meets requests as its share promises.

The share is one of users, and each stays on one side: where few ask, or one key asks for everybody
without saying for whom, the canary may meet nobody at all, or all of them.
"""

from datetime import datetime
from typing import Any

from orchestrator.registry.describe import percent
from orchestrator.registry.state import Rollout
from orchestrator.rollout.window import Windows, counts

FEWEST = 20
"""Requests before anything is odd."""
CHANCE = 0.01
"""That as many users as requests would fall on one side: less than that is odd."""
ADVICE = "few users ask: name each one in the field `user`, or change the share"


def reach(state: Rollout, windows: Windows, now: datetime) -> dict[str, Any] | None:
    """Requests of this step that this gateway has lately sent to the canary and to the champion,
    and a warning where one side had none of them, which is hardly chance. None without a canary."""
    canary = state.canary
    if canary is None:
        return None
    lately = windows.of(state.name, canary.version, canary.at, now)
    met = sum(answered.role == "canary" and counts(answered) for answered in lately.seen)
    others = windows.of(state.name, state.champion, canary.at, now).requests
    return {"canary": met, "champion": others, "warning": _odd(met, others, canary.share)}


def _odd(met: int, others: int, share: float) -> str | None:
    if met + others < FEWEST:
        return None
    if not met and (1 - share) ** others < CHANCE:
        return f"none of the last {others} requests met the canary of {percent(share)}; {ADVICE}"
    if not others and share**met < CHANCE:
        return f"all of the last {met} requests met the canary of {percent(share)}; {ADVICE}"
    return None
