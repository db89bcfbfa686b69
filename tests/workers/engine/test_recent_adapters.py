"""The set of adapters that passes prepare for stays the same while requests come and go."""

from workers.engine.recent_adapters import MEMBERS, STEPS, RecentAdapters

HELD = {f"a{n}" for n in range(30)}


def test_who_met_lately_stays_in_the_company() -> None:
    recent = RecentAdapters()
    assert recent.of(["a1", "a2", None], HELD) == {"a1", "a2", None}
    assert recent.of(["a2", "a3"], HELD) == {"a1", "a2", "a3", None}
    for _ in range(STEPS):
        met = recent.of(["a3", "a4"], HELD)
    assert met == {"a3", "a4"}


def test_one_adapter_alone_needs_none() -> None:
    recent = RecentAdapters()
    recent.of(["a1", "a2"], HELD)
    assert recent.of(["a1", "a1"], HELD) == frozenset()


def test_a_prompt_joins_those_who_decode() -> None:
    recent = RecentAdapters()
    recent.of(["a1", "a2"], HELD)
    assert recent.of(["a1", *["a3"] * 500], HELD) == {"a1", "a2", "a3"}


def test_it_is_bounded_and_leaves_out_who_was_unloaded() -> None:
    recent = RecentAdapters()
    for n in range(20):
        met = recent.of([f"a{n}", f"a{n + 1}"], HELD)
    assert met == {f"a{n}" for n in range(21 - MEMBERS, 21)}
    assert recent.of(["a20", "a1"], HELD - {"a19"}).isdisjoint({"a19"})
    assert recent.of([f"a{n}" for n in range(12)], HELD) == {f"a{n}" for n in range(12)}
