"""How many trials share a base."""

from orchestrator.config.job import JobSpec
from workers.config.base import InputError
from workers.train.packed.key import check_packs


def pack_size(job: JobSpec) -> int:
    """Slots of each pack; 1 where trials are not packed. Of a job whose `auto` is settled
    (orchestrator.doctor.pack_room)."""
    pack = job.search.pack
    assert pack != "auto", "a study settles it before it begins"
    return pack


def check_pack(job: JobSpec) -> None:
    """InputError where the job's trials cannot be packed as it says."""
    size, at_once = job.search.pack, job.search.max_concurrent
    if size == 1:
        return
    if size != "auto" and size > at_once:
        raise InputError(
            f"search.pack: {size} is more than search.max_concurrent, which is {at_once}: trials "
            "of a pack run at the same time"
        )
    for trial in (job.train, *job.search_space().samples()):
        check_packs(trial)
