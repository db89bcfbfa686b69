"""What replicas answered to the golden prompt when all of them first acknowledged a version."""

import hashlib
import json
from collections.abc import Mapping

from orchestrator.registry.registry import Registry
from orchestrator.replicas.golden import Golden, GoldenAnswer, from_json
from workers.config.model import ModelSpec


class FirstAnswers:
    """Kept beside the version in the registry, apart for each golden prompt, base model (its path
    and precision) and kind of hardware: across these, answers may differ by right."""

    def __init__(self, registry: Registry, golden: Golden, model: ModelSpec) -> None:
        self._registry = registry
        self._base = (golden.prompt, golden.tokens, model.path, model.revision)
        self._precision = (model.dtype, model.quantization)

    def get(self, digest: str, hardware: str) -> GoldenAnswer | None:
        """The first answer; None where there is none. Blocks; InputError where the registry cannot
        be read."""
        told = self._registry.first_answer(digest, self._setting(hardware))
        return None if told is None else from_json(told)

    def keep(self, digest: str, answers: Mapping[str, GoldenAnswer]) -> Mapping[str, GoldenAnswer]:
        """Keep these, by hardware, where there are none; returns what is kept. Blocks."""
        return {kind: self._first(digest, kind, answer) for kind, answer in answers.items()}

    def _first(self, digest: str, hardware: str, answer: GoldenAnswer) -> GoldenAnswer:
        kept = self.get(digest, hardware)
        if kept is None:  # another gateway may be quicker: then its answer is the first
            self._registry.keep_answer(digest, self._setting(hardware), answer)
            kept = self.get(digest, hardware)
        return answer if kept is None else kept

    def _setting(self, hardware: str) -> str:
        facts = json.dumps([*self._base, *self._precision, hardware])
        return hashlib.sha256(facts.encode()).hexdigest()
