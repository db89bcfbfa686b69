"""What a report of a node says of it; tests/orchestrator/doctor/test_doctor.py has real ones."""

from orchestrator.doctor.nodes import NodeReport
from orchestrator.doctor.requirements import installed_here

GOOD = NodeReport(
    host="10.0.0.1",
    cpus=8,
    gpus=2,
    python="3.11.9",
    executable="/opt/python",
    packages=installed_here(),
    gpus_seen=2,
    has_moetune=True,
)


def test_a_good_node_has_no_faults() -> None:
    assert GOOD.faults == []
    versions = GOOD.packages
    said = f"Python 3.11.9, torch {versions['torch']}, transformers {versions['transformers']}, ray"
    assert str(GOOD).startswith(said)
    assert str(GOOD).endswith("moetune; 8 CPUs, 2 GPUs (torch sees 2)")
    assert "no moetune, which an endpoint wants" in str(GOOD.model_copy(update={"has_moetune": 0}))


def test_what_is_missing_wrong_and_broken_is_named() -> None:
    wrong = {
        "packages": {**installed_here(), "optuna": None, "transformers": "4.0"},
        "broken": {"workers.train.ray_worker": "ImportError: libcudart.so"},
        "gpus_seen": 1,
    }
    said = "; ".join(GOOD.model_copy(update=wrong).faults)
    for part in (
        "optuna is missing (wanted: ",
        "transformers 4.0 (wanted: ",
        "workers.train.ray_worker cannot be imported: ImportError: libcudart.so",
        "install them for /opt/python",
        "Ray counts 2 GPUs, torch 2.",
        "sees 1",
    ):
        assert part in said
    assert NodeReport(host="a", cpus=1, gpus=0, failed="WorkerCrashedError: died").faults == [
        "nothing can be run: WorkerCrashedError: died"
    ]
