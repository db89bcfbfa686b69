"""Who meets a canary."""

import pytest

from orchestrator.rollout.traffic import Served, TrafficSplit

CHAMPION, CANARY, OTHER = Served("home@a", None), Served("home@b", None), Served("home@c", None)
USERS = [f"user {number}" for number in range(20_000)]


def met(share: float, canary: Served = CANARY) -> set[str]:
    split = TrafficSplit(CHAMPION, canary, share)
    return {user for user in USERS if split.route(user).served == canary}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_of_the_users_meets_it(share: float) -> None:
    deviation = (share * (1 - share) * len(USERS)) ** 0.5
    assert abs(len(met(share)) - share * len(USERS)) < 5 * deviation


def test_nobody_and_everybody() -> None:
    assert not met(0.0)
    assert met(1.0) == set(USERS)


def test_a_growing_share_keeps_those_that_were_in() -> None:
    assert met(0.01) < met(0.1) < met(0.5)


def test_another_canary_meets_other_users() -> None:
    both = len(met(0.1) & met(0.1, OTHER)) / len(met(0.1))
    assert both < 0.2, "of the users, as many as of all of them"


def test_roles_and_shadow() -> None:
    split = TrafficSplit(CHAMPION, CANARY, 1.0, OTHER)
    route = split.route("anybody")
    assert (route.served, route.role, route.shadow) == (CANARY, "canary", OTHER)
    route = TrafficSplit(CHAMPION).route("\ud800")
    assert (route.served, route.role, route.shadow) == (CHAMPION, "served", None)
