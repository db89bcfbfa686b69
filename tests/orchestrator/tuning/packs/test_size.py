"""What cannot be packed is refused with the reason, and trials that can are not."""

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.config.job import JobSpec, override_job
from orchestrator.tuning.one_run import one_run
from orchestrator.tuning.packs.size import check_pack, pack_size
from workers.config.base import InputError
from workers.config.train import TrainSpec

PACKED = {"search.pack": 4, "search.max_concurrent": 4}
FIXED = {"search.space": {"optimizer.lr": {"log": [1e-3, 1e-2]}}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"search.max_concurrent": 3}, "4 is more than search.max_concurrent, which is 3"),
    ({"parallel.workers": 2, "parallel.strategy": "fsdp2"}, "parallel.strategy fsdp2 "),
    ({**FIXED, "parallel.workers": 2, "parallel.ep_size": 2}, "with parallel.ep_size above 1"),
    ({"parallel.workers": {"min": 1, "max": 2}}, "the workers of a pack must not change"),
    ({"model.compile": True}, "model.compile would compile each set of adapters anew"),
    ({"search.pack": "auto", "model.compile": True}, "model.compile would compile each set of"),
]


@pytest.fixture
def job(make_spec: Callable[..., TrainSpec]) -> JobSpec:
    """A job whose trials can be packed."""
    job = JobSpec.model_validate({"name": "tiny", "train": make_spec().model_dump()})
    return override_job(job, PACKED, "test")


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_packed_is_refused(job: JobSpec, changes: Any, said: str) -> None:
    changed = override_job(job, changes, "test")
    with pytest.raises(InputError, match=rf"search\.pack: {said}") as caught:
        check_pack(changed)
    assert "\n" not in str(caught.value)
    if "search.pack" not in changes:
        check_pack(override_job(changed, {"search.pack": 1}, "test"))


def test_what_can_be_packed_is_not_refused(job: JobSpec) -> None:
    check_pack(job)
    check_pack(override_job(job, {"parallel.workers": 2}, "test"))
    check_pack(override_job(job, {"search.pack": "auto", "search.max_concurrent": 1}, "test"))
    assert pack_size(job) == 4
    check_pack(one_run(job))
    assert pack_size(one_run(job)) == 1
