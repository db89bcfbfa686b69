"""Shares and plans as people write them."""

import pytest

from orchestrator.registry.plan import Plan, Stage, parse_plan, plan_of, share, stage
from workers.config.base import InputError


@pytest.mark.parametrize(
    ("text", "value"), [("10%", 0.1), (" 2.5 %", 0.025), ("100%", 1), ("0.001%", 1e-5)]
)
def test_shares_are_percentages(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "10", "0.1", "0%", "101%", "-5%", "1e1%", "nan%", "10%%"])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="write a percentage"):
        share(text)


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [
        ("5%,25%,100% every 30m", (0.05, 0.25, 1.0), 1800),
        ("5%, 25%  every 2 h", (0.05, 0.25), 7200),
        ("1%,100% every 90s", (0.01, 1.0), 90),
        ("1%,100% every 1d", (0.01, 1.0), 86400),
        ("5%", (0.05,), None),
    ],
)
def test_plans(text: str, steps: tuple[float, ...], seconds: float | None) -> None:
    plan = parse_plan(text)
    assert plan.steps == pytest.approx(steps)
    assert plan.every_seconds == seconds
    assert parse_plan(str(plan)) == plan
    assert plan_of({"plan": plan.model_dump(mode="json")}) == plan


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5%,25%", "several steps want their time"),
        ("5% every 30m", "several steps want their time"),
        ("25%,5% every 30m", "a larger share than the one before"),
        ("5%,5% every 30m", "a larger share than the one before"),
        ("100%", "is a promotion"),
        ("5%,25% every 0m", "greater than 0"),
        ("5%,25% every month", "write a percentage"),
        ("", "write it as in"),
        ("5%,,25% every 1m", "write a percentage"),
    ],
)
def test_other_plans_are_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        parse_plan(text)
    assert "\n" not in str(caught.value)


def test_a_stage_is_one_of_the_three() -> None:
    assert stage() == Stage(action="promote")
    assert stage(shadow=True) == Stage(action="shadow")
    assert stage(canary="10%") == Stage(action="canary", plan=Plan(steps=(0.1,)))
    assert stage(plan="5%,100% every 1m").evidence()["share"] == 0.05
    for chosen in ({"canary": "5%", "plan": "5%"}, {"canary": "5%", "shadow": True}):
        with pytest.raises(InputError, match="one of --canary, --plan and --shadow"):
            stage(**chosen)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is a promotion"):
        stage(canary="100%")
