"""A pack on Ray, as an actor or in each worker of a Ray Train group. Its work is from a broker: an
actor with the methods `work` and `tell`."""

from typing import Any

import ray

from workers.parallel.world import World
from workers.train.packed.pack import Pack
from workers.train.packed.work import Outcome, Work
from workers.train.packed.work_loop import WorkLoop


def run_pack(broker: Any, number: int, size: int) -> None:
    """Train as pack of this number, with so many slots, until the broker says that it is over."""
    world = World.current()
    pack = Pack(size, world)
    try:
        WorkLoop(pack, BrokerQueue(broker, number), f"{size} in pack {number}", world).run()
    finally:
        pack.close()


class BrokerQueue:
    """A broker, as a pack asks it. One question is always on its way, so that a look whether it is
    answered costs a step next to nothing."""

    def __init__(self, broker: Any, number: int) -> None:
        self._broker, self._number = broker, number
        self._done = 0
        self._question: ray.ObjectRef | None = None

    def take(self, *, wait: bool) -> Work:
        """The broker's answer. Who asks has done the Work before."""
        if self._question is None:
            self._question = self._broker.work.remote(self._number, self._done)
        if not wait and not ray.wait([self._question], timeout=0)[0]:
            return Work()
        work: Work = ray.get(self._question)
        self._question = None
        self._done = work.serial or self._done
        return work

    def tell(self, serial: int, outcomes: dict[str, Outcome]) -> None:
        """The broker takes messages in the order of their sending."""
        self._broker.tell.remote(self._number, serial, outcomes)
