"""When two answers to the golden prompt are one model's, and what becomes of one that is not.

A base model's files have no checksum. Damaged where its digest does not look, it loads, and a
version on it passes for what it was: only its answers are others.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from orchestrator.registry.models import Version
from orchestrator.registry.registry import Registry
from orchestrator.replicas.golden import (
    EXACT,
    ROUNDED,
    Golden,
    GoldenAnswer,
    GoldenToken,
    alike,
    from_json,
    shown,
)
from orchestrator.replicas.golden_store import FirstAnswers
from orchestrator.replicas.readiness import Acknowledged, TwoPhases, acknowledge
from orchestrator.replicas.replica import prove
from workers.adapter.digest import base_digest
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

MODEL = ModelSpec(path="/models/tiny", device="cpu")
GOLDEN = Golden("The quick brown fox", 6)
OTHER = Golden("another prompt", 6)
NEAR, FAR = EXACT * 0.9, EXACT * 1.1
SURE, TORN = GoldenToken(7, -0.5, 3.0), GoldenToken(7, -0.5, NEAR)
END = GoldenToken(2, None, None)


class Alone(TextEngine):
    """The only replica of its fleet."""

    async def check(self, adapter: AdapterRef, golden: Golden) -> list[Acknowledged]:
        return [await acknowledge(self, adapter, golden)]


def opened(folder: Path) -> Iterator[Alone]:
    base = load_base(ModelSpec(path=str(folder), device="cpu"))
    made = ContinuousEngine(base, Limits(max_batch_tokens=64, cache_tokens=256))
    yield Alone(made, base.tokenizer)
    made.close()


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[Alone]:
    yield from opened(tiny_model_dir)


@pytest.fixture(scope="module")
def damaged(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    """The same with an eighth of the values of one matrix wrong, and by far: a random model gives
    all tokens nearly the same."""
    folder = tmp_path_factory.mktemp("damaged") / "tiny-llama"
    shutil.copytree(tiny_model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].view(-1)[1::8] += 5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert base_digest(folder) == base_digest(tiny_model_dir)
    yield from opened(folder)


@pytest.fixture
def version(registry: Registry, make_adapter: Callable[..., Path]) -> Version:
    return registry.register("s", 0, make_adapter(81), {})


@pytest.fixture
def first(registry: Registry) -> FirstAnswers:
    return FirstAnswers(registry, GOLDEN, MODEL)


def adapter_of(version: Version) -> AdapterRef:
    return AdapterRef(version.id, str(version.folder))


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ((SURE, SURE), (SURE, SURE), True),
        ((SURE,), (GoldenToken(7, -0.5 - NEAR, 2.0),), True),
        ((SURE,), (GoldenToken(7, -0.5 - FAR, 2.0),), False),
        ((TORN, SURE), (GoldenToken(8, -0.5, 0.0), GoldenToken(9, -5.0, 0.1)), True),
        ((TORN,), (GoldenToken(8, -0.5 - FAR, 0.0),), False),
        ((SURE,), (GoldenToken(8, -0.5, 0.0),), False),
        ((SURE, SURE), (SURE,), False),
        ((SURE, END), (SURE, END), True),
        ((SURE, END), (SURE, SURE), False),
        ((SURE, END), (SURE, TORN, SURE), True),
        ((END,), (SURE, SURE), False),
    ],
)
def test_rounding_is_told_from_another_model(
    mine: GoldenAnswer, theirs: GoldenAnswer, expected: bool
) -> None:
    assert alike(mine, theirs, EXACT) is expected
    assert alike(theirs, mine, EXACT) is expected


def test_where_the_model_rounds_more_may_lie_between_them() -> None:
    mine, theirs = (SURE, END), (GoldenToken(7, -0.7, 2.9), END)
    assert not alike(mine, theirs, EXACT)
    assert alike(mine, theirs, ROUNDED)


def test_an_answer_is_shown_with_what_is_compared() -> None:
    assert shown((SURE, GoldenToken(9, -1.2345, 0.1), END)) == "7:-0.5 9:-1.23 2"


def test_an_answer_is_kept_as_it_was(first: FirstAnswers, version: Version) -> None:
    answer = (SURE, TORN, END)
    assert from_json([list(place) for place in answer]) == answer
    assert first.get(version.digest, "cpu") is None
    assert first.keep(version.digest, {"cpu": answer}) == {"cpu": answer}
    assert first.keep(version.digest, {"cpu": (END,), "gpu": (END,)}) == {
        "cpu": answer,
        "gpu": (END,),
    }
    assert first.get(version.digest, "cpu") == answer


def test_another_prompt_precision_or_base_begins_anew(
    registry: Registry, first: FirstAnswers, version: Version
) -> None:
    first.keep(version.digest, {"cpu": (SURE,)})
    for golden, model in (
        (OTHER, MODEL),
        (Golden(GOLDEN.prompt, 7), MODEL),
        (GOLDEN, MODEL.model_copy(update={"dtype": "bfloat16"})),
        (GOLDEN, MODEL.model_copy(update={"path": "/models/other"})),
    ):
        assert FirstAnswers(registry, golden, model).get(version.digest, "cpu") is None
    assert FirstAnswers(registry, GOLDEN, MODEL).get(version.digest, "cpu") == (SURE,)


def test_one_replica_alone_is_held_against_what_was_there_before(
    engine: Alone, damaged: Alone, registry: Registry, version: Version
) -> None:
    adapter, first = adapter_of(version), FirstAnswers(registry, GOLDEN, MODEL)

    async def main() -> None:
        for _ in range(2):
            await TwoPhases(engine, GOLDEN, first)(adapter)
            await engine.unload(adapter.slot)
        await TwoPhases(damaged, GOLDEN)(adapter)  # nothing is wrong, as far as it can see
        with pytest.raises(InputError, match="but first with") as caught:
            await TwoPhases(damaged, GOLDEN, first)(adapter)
        assert "\n" not in str(caught.value)
        await TwoPhases(damaged, OTHER, FirstAnswers(registry, OTHER, MODEL))(adapter)
        await TwoPhases(engine, GOLDEN, first)(adapter)

    asyncio.run(main())


def test_a_replica_that_starts_again_proves_itself(
    engine: Alone, damaged: Alone, version: Version
) -> None:
    adapter = adapter_of(version)

    async def main() -> None:
        said = await acknowledge(engine, adapter, GOLDEN)
        assert said.digest == version.digest
        promised = ((adapter, said.answer),)
        await prove(engine, GOLDEN, promised)
        with pytest.raises(InputError, match="but first with"):
            await prove(damaged, GOLDEN, promised)
        await prove(damaged, GOLDEN, ())

    asyncio.run(main())


def test_requests_beside_it_do_not_change_an_answer(engine: Alone, version: Version) -> None:
    adapter = adapter_of(version)

    async def main() -> None:
        alone = await acknowledge(engine, adapter, GOLDEN)
        beside = [acknowledge(engine, adapter, Golden(text, 12)) for text in ("a", "bc", "d" * 20)]
        said, *_ = await asyncio.gather(acknowledge(engine, adapter, GOLDEN), *beside)
        assert alike(alone.answer, said.answer, GOLDEN.tolerance)
        assert all(place.margin is not None and place.margin >= 0 for place in said.answer)

    asyncio.run(main())
