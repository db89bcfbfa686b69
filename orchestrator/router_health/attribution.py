"""Which experts answered one question: what an endpoint tells of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from workers.config.base import InputError
from workers.engine.routing.types import RequestRouting

_ROUTING = TypeAdapter(RequestRouting)


@dataclass(frozen=True)
class TokenRow:
    """One token: its text, and the gate of each expert in each layer (0 where it did not go)."""

    text: str
    answer: bool
    """Whether the model wrote it; else it is of the prompt."""
    gates: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Explained:
    """An answer, and the way of its tokens."""

    model: str
    question: str
    answer: str
    prompt_tokens: int
    routing: RequestRouting

    @classmethod
    def of(cls, question: str, body: Mapping[str, Any]) -> "Explained":
        """From the endpoint's answer to a chat that asked for the routing of its tokens."""
        try:
            return cls(
                model=str(body["model"]),
                question=question,
                answer=str(body["choices"][0]["message"]["content"]),
                prompt_tokens=int(body["usage"]["prompt_tokens"]),
                routing=_routing(body["moetune"]["routing"]),
            )
        except (KeyError, IndexError, TypeError, ValueError):
            raise InputError(
                f"{body.get('model', 'the answer')}: tells no routing: only adapters with several "
                "experts have one"
            ) from None

    @property
    def layers(self) -> dict[str, int]:
        """Number of experts of each layer."""
        return {layer.layer: len(layer.load) for layer in self.routing.layers}

    def shares(self) -> dict[str, list[float]]:
        """Share of the gates that each expert got, by layer."""
        sums = {layer.layer: sum(layer.weight) or 1.0 for layer in self.routing.layers}
        return {
            layer.layer: [weight / sums[layer.layer] for weight in layer.weight]
            for layer in self.routing.layers
        }

    def tokens(self) -> Iterator[TokenRow]:
        """Every token that was read, in order; the last one of an answer is not."""
        layers, texts = self.layers, self.routing.texts
        for at, choices in enumerate(self.routing.by_token):
            gates = {}
            for (layer, experts), choice in zip(layers.items(), choices, strict=True):
                taken = dict(zip(choice.experts, choice.gates, strict=True))
                gates[layer] = tuple(taken.get(expert, 0.0) for expert in range(experts))
            text = texts[at] if at < len(texts) else f"token {at + 1}"
            yield TokenRow(text, at >= self.prompt_tokens, gates)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": self.model,
            "question": self.question,
            "answer": self.answer,
            "prompt_tokens": self.prompt_tokens,
            "routing": _ROUTING.dump_python(self.routing, mode="json"),
        }


def _routing(told: Any) -> RequestRouting:
    """As an endpoint tells it; ValueError where it tells of no token, of no layer, or of tokens
    that did not choose in each layer."""
    routing = _ROUTING.validate_python(told)
    layers = len(routing.layers)
    if not (layers and routing.by_token and all(layer.load for layer in routing.layers)):
        raise ValueError("no token has gone to an expert")
    if any(len(choices) != layers for choices in routing.by_token):
        raise ValueError("tokens and layers do not match")
    return routing
