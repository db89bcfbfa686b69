"""What is shown of lm-eval's tasks."""

from orchestrator.evaluation.harness import table


def test_a_line_for_each_task_and_metric() -> None:
    told = {
        "rows": 8,
        "metrics": {"acc": 0.25, "f1": None, "acc_norm": 0.5},
        "stderr": {"acc": 0.125, "f1": None},
    }
    results = {label: {"tasks": {"colours": told}} for label in ("base", "home@1")}
    assert table(results) == [
        ["colours", "acc", 8, "0.25 ± 0.12", "0.25 ± 0.12"],
        ["colours", "f1", 8, None, None],
        ["colours", "acc_norm", 8, "0.5", "0.5"],
    ]
