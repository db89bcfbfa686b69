"""How long answers take at present: after what time it is worth asking again."""

import math

from orchestrator.telemetry.request_record import Answered

KEPT = 0.9
"""Weight of what was before, at each new answer."""
LONGEST = 60


class Pace:
    """An observer: the moving average of the seconds that whole answers took."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self, answered: Answered) -> None:
        """Take an answer into the average."""
        if answered.status == 200 and answered.role != "shadow":
            self._seconds = KEPT * self._seconds + (1 - KEPT) * answered.seconds

    @property
    def retry_after(self) -> int:
        """Seconds in which those that run now will have ended, most likely."""
        return min(max(1, math.ceil(self._seconds)), LONGEST)
