"""Which rows of a source are held out of training, to compare trials on: by what they say.

A row is known by 64 bits of a hash of what a model sees of it: its turns and its target. Its place,
task and metric are no part of it, so wherever a row comes again, it falls on the same side. Nor are
the ids of calls: who makes rows draws them anew each time. A hash of another kind would move rows
from one side to the other under studies that go on.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from workers.data.chat import Turn

KEYS = 2**64
"""Keys are below this."""
_UNSAID = ("weight", "tool_call_id")
"""Fields of a turn that are no part of what it says."""


def row_key(messages: Sequence[Turn], target: str) -> int:
    """What a row is known by. What its turns do not say makes no difference."""
    turns = [_said(turn) for turn in messages]
    seen = json.dumps([turns, target], sort_keys=True, ensure_ascii=False)
    # Half a character, which some rows hold, is of no other text.
    known = hashlib.blake2b(seen.encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(known.digest(), "big")


def _said(turn: Turn) -> dict[str, Any]:
    said = {name: one for name, one in turn.items() if name not in _UNSAID and one is not None}
    if calls := said.get("tool_calls"):
        said["tool_calls"] = [{n: one for n, one in call.items() if n != "id"} for call in calls]
    return said


def is_held_out(key: int, share: float) -> bool:
    """Whether such a row is one to compare on. One that is stays so where the share grows."""
    return key < share * KEYS
