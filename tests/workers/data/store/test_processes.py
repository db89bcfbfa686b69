"""Several processes give what one gives: rows, order, counts, errors; and none of them stays."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.counts import RowCounts
from workers.data.encode import Encoder
from workers.data.example import Example
from workers.data.rows import Row, training_rows
from workers.data.store import processes
from workers.data.store.processes import Processes, cpus

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FEW", 10)
    monkeypatch.setattr(processes, "SOME", 7)


def encoder(
    tokenizer: PreTrainedTokenizerBase, folder: Path, bad: Iterable[int] = (), **changes: Any
) -> Encoder:
    """Of 100 rows, some of which are cut or left out, and some of which `bad` makes wrong."""
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for number in range(100):
            row = {"prompt": f"p {number}" + " long" * (number % 13), "target": f"t {number}"}
            if number % 19 == 4:
                row["target"] *= 30
            if number in bad:
                row["prompt"] = ""
            file.write(json.dumps(row) + "\n")
    data = DataSpec(
        train=str(path), validation=str(path), max_length=40, too_long="skip", template="plain"
    )
    return Encoder(tokenizer, data.model_copy(update=changes))


def test_counts_are_added_field_by_field() -> None:
    """A new field must be added too: give it a value here."""
    numbers = {"rows": 2, "prompts_cut": 1, "targets_cut": 1, "skipped": 3, "tokens": 9}
    numbers |= {"target_tokens": 4, "control_tokens": 1, "longest": 8}
    words = {"too_long": "line 5", "longest_row": "line 6", "control_row": "line 7"}
    lists: dict[str, Any] = {"rows_of": [0, 2], "layouts": {"alpaca": 2}}
    later = RowCounts("rows", **numbers, **words, **lists)
    assert all(asdict(later).values()), "a field has no value"
    first, empty = RowCounts("rows"), RowCounts("rows")
    first.merge(later)
    assert first == later
    first.merge(empty)
    assert first == later
    first.merge(later)
    doubled = {name: 2 * value for name, value in numbers.items()} | {"longest": 8}
    assert first == RowCounts("rows", **doubled, **words, rows_of=[0, 4], layouts={"alpaca": 4})


def alive() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if is_ours(one)]


def is_ours(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("workers.data.store" in word for word in process.cmdline())
    return False


def test_rows_order_and_counts_are_those_of_one(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    one, wanted, counts = encoder(tokenizer, tmp_path), RowCounts("rows"), RowCounts("rows")
    expected = list(one.kept(training_rows(one.data), wanted))
    found = list(Processes(one, 2).kept(training_rows(one.data), counts))
    assert found == expected
    assert counts == wanted
    assert counts.skipped > 3
    assert alive() == []


@pytest.mark.parametrize("why", [KeyboardInterrupt, RuntimeError])
def test_no_process_stays_where_it_is_cut_off(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, why: type[BaseException]
) -> None:
    one = encoder(tokenizer, tmp_path)
    kept = Processes(one, 2).kept(training_rows(one.data), RowCounts("rows"))
    for _ in range(20):
        next(kept)
    assert len(alive()) == 2
    with pytest.raises(why):
        kept.throw(why())
    assert alive() == []


def test_the_first_bad_row_is_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Though a later one cannot even be read."""
    one = encoder(tokenizer, tmp_path, bad=[52, 54])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:57], "{", *lines[57:]]))
    with pytest.raises(InputError, match="line 53: its prompt is empty"):
        list(Processes(one, 3).kept(training_rows(one.data), RowCounts("rows")))
    assert alive() == []


def test_a_killed_process_is_told(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    one = encoder(tokenizer, tmp_path)

    def kept() -> Iterator[tuple[Row, Example]]:
        for at, found in enumerate(
            Processes(one, 2).kept(training_rows(one.data), RowCounts("rows"))
        ):
            if at == 20:
                for child in alive():
                    os.kill(child.pid, signal.SIGKILL)
            yield found

    with pytest.raises(InputError, match="a process that encodes rows was killed"):
        list(kept())
    assert alive() == []


def test_few_rows_and_one_process_start_none(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = encoder(tokenizer, tmp_path)
    monkeypatch.delattr(processes, "_started")
    assert list(Processes(one, 1).kept(training_rows(one.data), RowCounts("rows")))
    monkeypatch.setattr(processes, "FEW", 100)
    assert list(Processes(one, 8).kept(training_rows(one.data), RowCounts("rows")))


def test_as_many_as_a_worker_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpus() == 3
    for unset in ("", "0", "x"):
        monkeypatch.setenv("OMP_NUM_THREADS", unset)
        assert cpus() == len(os.sched_getaffinity(0))


@pytest.mark.usefixtures("processes")
def test_a_script_without_a_guard_gets_its_rows(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Processes of `multiprocessing` would run it again, and wait for what it encodes."""
    one = encoder(AutoTokenizer.from_pretrained(tiny_model_dir), tmp_path, processes=2)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        from transformers import AutoTokenizer
        from workers.config.data import DataSpec
        from workers.data.encode import Encoder
        from workers.data.store import processes
        from workers.data.store.token_store import TokenStore

        processes.FEW = 10
        tokenizer = AutoTokenizer.from_pretrained({str(tiny_model_dir)!r})
        data = DataSpec.model_validate_json({one.data.model_dump_json()!r})
        print(TokenStore(Encoder(tokenizer, data)).training().counts.rows)
        """)
    )
    environment = os.environ | {"MOETUNE_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 90


def test_where_no_process_can_be_started_that_is_said(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = encoder(tokenizer, tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"no process that encodes rows can be started: .*none"):
        list(Processes(one, 2).kept(training_rows(one.data), RowCounts("rows")))
