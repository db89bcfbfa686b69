"""CPUs that a test's study or training group still holds after the test."""

import gc


def free_the_cluster() -> None:
    """Free every placement group of the connected cluster.

    A study that was interrupted in this process leaves some: its error's frames hold Tune's actors
    until they are collected, and the actor by which Ray Train frees a lost group asks Ray's state
    API, which finds no cluster where two run on one machine, as beside pytest-xdist's other
    process. A command's study leaves none: they end with its process.
    """
    import ray
    from ray.util.placement_group import (
        PlacementGroup,
        placement_group_table,
        remove_placement_group,
    )

    if not ray.is_initialized():
        return
    gc.collect()
    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
