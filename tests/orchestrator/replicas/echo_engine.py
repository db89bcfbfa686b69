"""A toy engine, which a test enters in ENGINES: it answers a prompt by the prompt read backwards.

Replicas import it by its name, as they import the engine that comes along."""

from collections.abc import AsyncGenerator, Collection, Sequence

from workers.config.model import ModelSpec
from workers.engine.protocol import Statistics
from workers.engine.request import NOBODY, AdapterRef, Asker, Limits, Piece, Sampling
from workers.models.base import check_base


class EchoEngine:
    """See `workers.engine.protocol.Engine`; it needs the base model's tokenizer alone."""

    healthy, device, max_length = True, "cpu", 64

    def __init__(self, model: ModelSpec, limits: Limits) -> None:
        self.limits, self.tokenizer = limits, check_base(model)
        self._slots: dict[str, AdapterRef] = {}
        self._aborted: set[str] = set()

    def load(self, adapter: AdapterRef) -> None:
        self._slots[adapter.slot] = adapter

    def unload(self, slot: str) -> None:
        self._slots.pop(slot, None)

    def keep(self, slots: Collection[str]) -> None:
        pass

    def loaded(self) -> tuple[str, ...]:
        return tuple(self._slots)

    def statistics(self) -> Statistics:
        return Statistics(adapters=len(self._slots))

    def check(
        self, prompt: Sequence[int], sampling: Sampling, generated: Sequence[int] = ()
    ) -> None:
        pass

    async def generate(
        self,
        prompt: Sequence[int],
        adapter: AdapterRef | None,
        sampling: Sampling,
        generated: Sequence[int] = (),
        asker: Asker = NOBODY,
        request_id: str = "",
    ) -> AsyncGenerator[Piece]:
        backwards = [*reversed(prompt)][len(generated) : sampling.max_tokens]
        for token in backwards:
            yield Piece((token,))
            if request_id in self._aborted:
                break
        yield Piece((), "stop")

    def abort(self, request_id: str) -> None:
        self._aborted.add(request_id)

    def close(self) -> None:
        pass
