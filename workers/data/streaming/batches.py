"""The batches of a run whose rows are read while they are trained on.

A step's rows depend on sources, batch size, seed and step, as those of `workers.data.batches` do;
but where a window begins in the stream is known only to who has read what is before it. So a
checkpoint has the place of its window, and a run that goes on passes by the rows before.
"""

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from workers.config.parallel import NO_LIMIT, PassLimit
from workers.config.train import TrainSpec
from workers.data.batches import Batches
from workers.data.counts import RowCounts
from workers.data.encode import Encoder
from workers.data.example import Example
from workers.data.packing import batches_of
from workers.data.streaming.windows import Place, StreamReader, StreamWindow

END_SECONDS = 10.0
"""So long a thread is waited for that is to end; who reads from a network may hang for longer."""
LOOK_SECONDS = 0.2
"""How often who waits for a window looks whether its reader goes on."""


@dataclass(frozen=True)
class _Steps:
    """The steps over one window."""

    number: int
    """Of the window, from 0."""
    first: int
    """Step."""
    window: StreamWindow
    batches: Batches

    @property
    def behind(self) -> int:
        """The first step after them."""
        return self.first + self.batches.steps_per_epoch

    def own(self, step: int) -> int:
        """A step's number for `batches`, which shuffles each window in another way."""
        return self.number * self.batches.steps_per_epoch + step - self.first


class StreamedBatches:
    """The batches of one of `world` workers. All of them read the same stream; steps are asked for
    in order. While a window is trained on, a thread reads the next one."""

    def __init__(
        self,
        spec: TrainSpec,
        encoder: Encoder,
        noted: Mapping[str, str],
        worker: tuple[int, int] = (0, 1),
        moving: Callable[[], None] = lambda: None,
    ) -> None:
        """`noted` are the digests of the sources' listings, `worker` this one's rank among how
        many. `moving` is called while rows are waited for, as long as they come. InputError where
        the first ones are bad."""
        self._spec, self._noted, self._moving = spec, noted, moving
        # Of its own: a tokenizer is not for two threads, and evaluation uses the other one.
        self._encoder = Encoder(copy.deepcopy(encoder.tokenizer), encoder.data)
        self._worker = worker
        self._begin(0, 0, Place())

    @property
    def counts(self) -> RowCounts:
        """What encoding did to the rows of this window."""
        return self._steps.window.source.counts

    @property
    def mean_length(self) -> float:
        """Tokens of a row of this window, on average."""
        return self._steps.batches.mean_length

    def epoch(self, step: int) -> float:
        """Passes over the sources that so many steps make; 0 until the first one's length is
        known. `step` is of this window, or just behind."""
        now, start, end = self._steps, self._steps.window.start, self._steps.window.end
        begun = Place(start.number, start.rows, end.rows_of_pass).epochs
        share = (step - now.first) / now.batches.steps_per_epoch
        return begun + share * (end.epochs - begun)

    def mine(self, step: int, limit: PassLimit = NO_LIMIT) -> list[int]:
        """This worker's rows of a step, by their numbers in the stream: those of a window follow
        `number of the window * data.streaming_buffer`."""
        now = self._at(step)
        before = now.number * self._spec.data.streaming_buffer
        return [before + row for row in now.batches.mine(now.own(step), limit)]

    def micro_batches(self, step: int, limit: PassLimit = NO_LIMIT) -> Sequence[Sequence[Example]]:
        """This worker's share in forward passes; every worker has as many."""
        now = self._at(step)
        return now.batches.micro_batches(now.own(step), limit)

    def halved(self, step: int, limit: PassLimit) -> PassLimit:
        """Half of the step's largest pass that can be halved; the same on every worker."""
        now = self._at(step)
        return now.batches.halved(now.own(step), limit)

    def position(self, step: int) -> dict[str, Any]:
        """Where the window of a step begins: for `seek`, on any number of workers."""
        now, window = self._steps, self._steps.window
        if step < now.behind:
            return {"window": now.number, "step": now.first, "place": asdict(window.start)}
        return {"window": now.number + 1, "step": now.behind, "place": asdict(window.end)}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go on where `position` says."""
        if position["window"] != self._steps.number:
            self.close()
            self._begin(position["window"], position["step"], Place(**position["place"]))

    def close(self) -> None:
        """Read no further."""
        self._reader.ended = True
        if self._coming:
            wait([self._coming], END_SECONDS)

    def _begin(self, number: int, first: int, start: Place) -> None:
        self._reader = StreamReader(self._encoder, self._spec.seed, self._noted, start)
        self._coming = self._reading(first)
        self._steps = self._next(number, first)

    def _at(self, step: int) -> _Steps:
        while step >= self._steps.behind:
            self._steps = self._next(self._steps.number + 1, self._steps.behind)
        return self._steps

    def _next(self, number: int, first: int) -> _Steps:
        window = self._arrived()
        batches = batches_of(self._spec, window.source.examples, (), *self._worker)
        steps = _Steps(number, first, window, batches)
        self._coming = self._reading(steps.behind)
        return steps

    def _reading(self, step: int) -> "Future[StreamWindow] | None":
        """The window that begins with a step, of the rows that the run still needs at most."""
        optimizer = self._spec.optimizer
        assert optimizer.steps is not None, "epochs are refused with a stream"
        left = (optimizer.steps - step) * optimizer.batch_size
        return _begun(partial(self._reader.next, left)) if left > 0 else None

    def _arrived(self) -> StreamWindow:
        coming, seen = self._coming, -1
        assert coming, "the run has ended"
        while not wait([coming], LOOK_SECONDS).done:
            if seen != self._reader.read:  # else it hangs, and whoever watches must know
                seen = self._reader.read
                self._moving()
        return coming.result()


def _begun(read: Callable[[], StreamWindow]) -> "Future[StreamWindow]":
    """What a thread will have read. It does not keep the process from ending."""
    coming: Future[StreamWindow] = Future()

    def run() -> None:
        try:
            coming.set_result(read())
        except BaseException as error:
            coming.set_exception(error)

    threading.Thread(target=run, name="window", daemon=True).start()
    return coming
