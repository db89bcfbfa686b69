"""Bad input: one clear line, exit code 2, nothing half-written. Each row is a command line."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator import cli

JOB = {
    "name": "bad",
    "train": {
        "model": {"path": "tiny-llama"},
        "adapter": {"num_experts": 4, "top_k": 2, "rank": 4},
        "data": {"train": "rows.jsonl", "validation": "rows.jsonl"},
        "optimizer": {"steps": 2, "batch_size": 2},
    },
    "search": {"space": "smoke", "trials": 1},
}
VERSION = "0123456789ab"


def variants() -> Iterator[tuple[str, str]]:
    """`--set` assignments that make the good job a bad one, and what is then said."""
    yield "adapter.rnak=4", "adapter.rnak: no such field; did you mean rank?"
    yield "adapter.rank=many", "adapter.rank: Input should be a valid integer"
    yield "adapter.rank=0", "adapter.rank: Input should be greater than 0"
    yield "adapter.rank=-3", "greater than 0, not -3"
    yield "adapter.top_k=9", "top_k is 9, but must be at most num_experts, which is 4"
    yield "adapter.alpha=.nan", "adapter.alpha"
    yield "adapter.dropout=1.5", "adapter.dropout: Input should be less than 1"
    yield "adapter.experts=both", "adapter.experts: Input should be 'block' or 'linear'"
    yield "adapter.target_modules=[]", "target_modules is empty"
    yield "adapter.num_experts=0", "adapter.num_experts: Input should be greater than 0 or a list"
    yield "adapter.num_experts=[4, 0]", "adapter.num_experts.1: Input should be greater than 0"
    yield "adapter.num_experts=[1, 4]", "top_k is 2, but must be at most num_experts, which is 1"
    yield "adapter.routing=top-p", "adapter.routing: Input should be 'top_k', 'top_p' or 'switch'"
    yield "adapter.top_p=1.5", "adapter.top_p: Input should be less than or equal to 1"
    yield "adapter.expert_capacity=0", "adapter.expert_capacity: Input should be greater than 0"
    yield (
        "adapter.gates=loud",
        "adapter.gates: Input should be 'renormalised', 'equal', 'residual' or 'raw'",
    )
    yield "adapter.gate_scale=2", "gate_scale is 2.0, but is for gates: raw only"
    yield "adapter.router_temperature=0", "adapter.router_temperature: Input should be greater"
    yield "adapter.router_jitter=1", "adapter.router_jitter: Input should be less than 1"
    yield "adapter.expert_dropout=-1", "adapter.expert_dropout: Input should be greater"
    yield "adapter.use_dora=maybe", "adapter.use_dora: Input should be a valid boolean"
    yield "adapter.use_dora=true", "use_dora: block experts run layers.0.mlp.down_proj once"
    yield "adapter.shared_a=true", "experts with an A matrix each; adapter.shared_a"
    yield "model.quantization=int3", "model.quantization: Input should be 'bnb_nf4', 'bnb_int8'"
    yield "adapter.rank", "write FIELD=VALUE"
    yield "name=2024-13-01", "--set name: is no YAML"
    yield "adapter.rank=[", "--set adapter.rank: is no YAML"
    yield "nonsense=1", "nonsense: no such field"
    yield "name=../x", "name: String should match pattern"
    yield "optimizer.lr=0", "optimizer.lr: Input should be greater than 0"
    yield "optimizer.warmup_steps=2", "warmup_steps is 2, but must be below steps"
    yield "optimizer.micro_batch_size=3", "must divide the 2 rows"
    yield "optimizer.schedule=wavy", "optimizer.schedule: Input should be 'cosine', 'linear'"
    yield "parallel.workers=3", "must be a multiple of parallel.workers"
    yield "search.trials=0", "search.trials: Input should be greater than 0"
    yield "search.metric=validation/lozz", "did you mean validation/loss?"
    yield "search.mode=max", "validation/loss is better when it is smaller"
    yield "search.space=nowhere", "search space nowhere"
    yield "search.space={}", "names at least one"
    yield "search.space={adapter.rank: {int: [8, 4]}}", "adapter.rank"
    yield "search.space={optimizer.lr: {log: [0, 1]}}", "optimizer.lr"
    yield "search.space={adapter.rnak: {choice: [1]}}", "adapter.rnak"
    yield "search.space={model.path: {choice: [a, b]}}", "model.path: set by the job"
    yield "search.space={adapter.num_experts: {choice: [2, [2, 3, 4]]}}", "has 3 numbers, one for"
    yield "search.space={adapter.use_dora: {choice: [false, true]}}", "use_dora: block experts"
    yield "search.space={adapter.routing: {choice: [top]}}", "adapter.routing: Input should be"
    yield "data.train=missing.jsonl", "missing.jsonl"
    yield "data.train=empty.jsonl", "empty.jsonl"
    yield "data.train=broken.jsonl", "broken.jsonl"
    yield "data.train=noise.parquet", "noise.parquet"
    yield "data.train=other.parquet", "other.parquet"
    yield "data.train=rows.xlsx", "rows.xlsx"
    yield "data.train=late.jsonl", "late.jsonl: line 20: its target has 601 tokens, and leaves no"
    yield "data.too_long=drop", "data.too_long: Input should be 'refuse', 'skip' or 'cut'"
    yield "data.target_column=answer", "answer"
    yield "data.prompt_columns=[question]", "question"
    yield "data.max_length=1", "max_length"
    yield "data.train=metric.jsonl", "metric"
    yield "model.path=missing/model", "missing/model"
    yield "model.path=empty-model", "empty-model"
    yield "model.path=bert", "bert"
    yield "adapter.target_modules=[wq]", "wq"
    yield (
        "adapter.target_modules=wq",
        "target_modules: wq matches no linear's path, such as",
    )
    yield "cluster.storage=rows.jsonl", "is a file, not a folder"
    yield "cluster.store=nonsense", "SQLAlchemy"
    yield "cluster.store=postgresql://h:port/x", "is no SQLAlchemy URL"
    yield "cluster.store=sqlite:////proc/moetune.db", "cluster.store"
    yield "cluster.store=postgresql://me:secret@host/db", "MOETUNE_STORE (to the whole URL)"
    yield "checkpoint.upload=s3://me:secret@bucket/x", "AWS_SECRET_ACCESS_KEY"


def commands() -> Iterator[tuple[list[str], str]]:
    """Command lines that are wrong in themselves, or in what they name."""
    yield ["tune", "missing.yaml"], "missing.yaml: cannot be read"
    yield ["tune", "broken.yaml"], "broken.yaml: is no YAML"
    yield ["tune", "list.yaml"], "list.yaml: a job file is a mapping"
    yield ["check", "deep.yaml"], "deep.yaml: nests more than"
    yield ["check", "cyclic.yaml"], "cyclic.yaml: nests more than 32 levels deep, or an alias"
    yield ["tune", "job.yaml", "--resume"], "no studies there yet"
    yield ["tune", "job.yaml", "--address", "127.0.0.1:1"], "127.0.0.1:1"
    big = ("--set", "search.cpus_per_worker=4096")
    yield ["tune", "job.yaml", *big], "a trial wants 1 worker of 4096 CPUs; this machine has 1 node"
    many = ("--set", "search.gpus_per_worker=64")
    yield ["tune", "job.yaml", *many], "a trial wants 1 worker of 1 CPU and 64 GPUs; this machine"
    yield ["check", "job.yaml", "--address", "127.0.0.1:1"], "127.0.0.1:1: no cluster"
    # The cluster may have them.
    yield ["tune", "job.yaml", "--address", "127.0.0.1:1", *big], "127.0.0.1:1: no cluster"
    yield ["submit", "job.yaml", "--address", "http://127.0.0.1:1"], "http://127.0.0.1:1"
    yield ["status", "--address", "http://127.0.0.1:1"], "http://127.0.0.1:1"
    yield ["logs", "x", "--address", "not an address"], "not an address"
    yield ["leaderboard", "nowhere", "--storage", "missing"], "--storage missing: no such folder"
    yield ["leaderboard", "nowhere", "--storage", "runs"], "no studies there yet"
    yield ["report", "nowhere", "--storage", "runs"], "no studies there yet"
    yield ["promote", "nowhere", "--to", "x", "--storage", "runs"], "no studies there yet"
    yield ["rollback", "nobody", "--storage", "runs"], "nobody: nothing was promoted"
    yield ["history", "../../etc", "--storage", "runs"], "write 1 to 63 letters"
    yield ["history", "nobody", "--storage", "runs"], "nobody: nothing was promoted"
    yield ["serve", "nobody", "--storage", "runs"], "nobody: nothing was promoted"
    yield ["serve", f"nobody@{VERSION}", "--storage", "runs"], "nobody: nothing was promoted"
    yield ["serve", "nobody", "--storage", "runs", "--set", "port=-1"], "port"
    yield ["serve", "nobody", "--storage", "runs", "--detach"], "needs --address"
    yield ["ask", "home", "hello", "--url", "http://127.0.0.1:1"], "no answer"
    yield ["ask", "home", "hello", "--url", "nonsense"], "nonsense"
    yield ["ask", "home", "hello", "--url", "http://h:port"], "http://h:port"
    yield ["status", "--address", "h:port"], "h:port: is no cluster address"
    yield ["models", "--store", "postgresql://h:port/x"], "SQLAlchemy URL"
    yield ["adapter", "inspect", "missing"], "missing"
    yield ["adapter", "inspect", "empty-model"], "empty-model"
    yield ["adapter", "import", "damaged", "--to", "new"], "damaged"
    yield ["adapter", "export", "missing", "--to", "new"], "missing"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with a good job, and much that is wrong."""
    from transformers import BertConfig

    place = tmp_path_factory.mktemp("bad")
    row = {"prompt": "a", "target": "b"}
    texts = {
        "job.yaml": yaml.safe_dump(JOB),
        "broken.yaml": "name: [",
        "list.yaml": "- 1",
        "deep.yaml": "{name: " * 5000,
        "cyclic.yaml": "name: cyclic\nsearch: &s {space: *s}\n",
        "rows.jsonl": (json.dumps(row) + "\n") * 4,
        "rows.xlsx": "prompt,target\na,b\n",
        "empty.jsonl": "",
        "broken.jsonl": '{"prompt": ',
        "metric.jsonl": json.dumps(row | {"metric": "beauty"}) + "\n",
        "noise.parquet": "no parquet at all",
        "late.jsonl": (json.dumps(row) + "\n") * 19 + json.dumps(row | {"target": "b" * 600}),
    }
    for name, text in texts.items():
        (place / name).write_text(text)
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), place / "other.parquet")
    for name in ("empty-model", "runs", "damaged"):
        (place / name).mkdir()
    (place / "damaged" / "adapter_config.json").write_text("{")
    shutil.copytree(tiny_model_dir, place / "tiny-llama")
    shutil.copytree(tiny_model_dir, place / "bert")
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(place / "bert")
    return place


def refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> str:
    """Run the command in this process; the one line that it says."""
    monkeypatch.setattr("sys.argv", ["moetune", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("moetune: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


@pytest.mark.parametrize(("assignment", "said"), list(variants()))
def test_a_bad_job_is_refused(
    assignment: str,
    said: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert said in refused(["check", "job.yaml", "--set", assignment], capsys, monkeypatch)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("arguments", "said"), list(commands()))
def test_a_bad_command_is_refused(
    arguments: list[str],
    said: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    assert said in refused(arguments, capsys, monkeypatch)
    assert not list((folder / "runs").glob("*/**"))
    assert not (folder / "new").exists()


def test_a_good_job_is_shown_whole(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    given = {
        "rank": 16,
        "num_experts": [2, 4],
        "routing": "switch",
        "gates": "raw",
        "use_dora": True,
        "target_modules": ["up_proj", "q_proj"],
    }
    options = [f"--set=adapter.{field}={json.dumps(value)}" for field, value in given.items()]
    space = "--set=search.space={adapter.expert_capacity: {choice: [8, 16]}}"
    monkeypatch.setattr("sys.argv", ["moetune", "check", "job.yaml", *options, space])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    shown = json.loads(capsys.readouterr().out)["train"]["adapter"]
    assert {field: shown[field] for field in given} == given
    assert shown["top_p"] == 0.8


def test_check_counts_what_rows_lose(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    options = ["--set=data.train=late.jsonl", "--set=data.too_long=skip"]
    for json_too in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["moetune", "check", "job.yaml", *options, *json_too])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        shown = capsys.readouterr()
        printed = json.loads(shown.out)
        if json_too:
            train = printed["data"]["train"]
            assert (train["rows"], train["skipped"], train["longest"]) == (19, 1, 22)
            assert printed["job"]["train"]["data"]["too_long"] == "skip"
            assert 0 < printed["data"]["validation"]["target_share"] < 1
        else:
            assert "late.jsonl: 19 rows, 1 left out" in shown.err
            assert printed["train"]["data"]["too_long"] == "skip"


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    from orchestrator.serve.proxy import free_port
    from workers.config.base import InputError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"serve.port: 127.0.0.1:{port}"):
            free_port("127.0.0.1", port)
