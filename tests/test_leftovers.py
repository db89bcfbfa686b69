"""What a test leaves in the shared cluster is taken from it."""

import time

from cluster.session import Session
from tests.leftovers import free_the_cluster


def test_a_group_that_was_left_holds_no_cpu(ray_cluster: Session) -> None:
    import ray
    from ray.util.placement_group import placement_group

    total = ray.cluster_resources()["CPU"]
    assert placement_group([{"CPU": total}]).wait(60)
    free_the_cluster()
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU") != total:
        assert time.monotonic() < until
        time.sleep(0.1)
