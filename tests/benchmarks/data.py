"""Rows on their way to a step: encoding, what the token store takes on disk, a worker's memory.

    python tests/benchmarks/data.py [--json PATH|-] [--tokenizer FOLDER] [--results PATH]

Encoding: chats of about `tokens` tokens out of a JSON Lines file, by the store and as before it
(all rows read, then one at a time into Python's integers). They take turns in one process, and its
processor time counts, all threads together.

Streaming: the windows of one pass over the same file, and the rows that a run passes by which goes
on at the pass's end.

Memory: a fresh process for each number of rows opens a store of random rows, draws an epoch's order
and makes batches of `steps` steps of it. What counts is its anonymous memory (Anonymous in
/proc/self/smaps_rollup): pages of the mapped file are shared by all processes, and the system takes
them back when it wants. The same process tells how long it took to its first batch, tokenizer's and
files' digests included.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import harness
import numpy as np
from results import machine, table, write_section
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.data import DataSpec
from workers.data.batches import Batches, collate
from workers.data.encode import Encoder
from workers.data.example import Example, Span
from workers.data.rows import Row, training_rows
from workers.data.sources.records import SourceDigests, data_digest
from workers.data.store.arrow import StoredExamples, write
from workers.data.store.entries import ROWS
from workers.data.store.identity import tokenizer_digest
from workers.data.store.token_store import TokenStore
from workers.data.streaming.mixed import one_pass
from workers.data.streaming.windows import Place, StreamReader

GOAL_BYTES = 6
TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NO_ROW = Row((), "", "", "", "", (), (), -1)


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    rows: int = 4000
    """Encoded."""
    tokens: int = 250
    few: int = 10_000
    many: int = 1_000_000
    steps: int = 500
    batch: int = 8
    rounds: int = 3


def text(words: list[str], count: int, draw: random.Random) -> str:
    """Words, of which some are much more frequent."""
    return " ".join(words[int(len(words) * draw.random() ** 3)] for _ in range(count))


def tokenizer_of(words: list[str], draw: random.Random) -> PreTrainedTokenizerBase:
    """Byte-level BPE, trained on such text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((text(words, 200, draw) for _ in range(500)), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.chat_template = TEMPLATE
    return made


def write_rows(path: Path, sizes: Sizes, words: list[str], draw: random.Random) -> None:
    """Chats of about so many tokens."""
    with path.open("w") as file:
        for _ in range(sizes.rows):
            length = int(sizes.tokens * draw.uniform(0.5, 1.1))
            turns = [
                {"role": "user", "content": text(words, length * 2 // 3, draw)},
                {"role": "assistant", "content": text(words, length // 4, draw)},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def as_before(encoder: Encoder) -> int:
    """All rows in a list, and each encoded by itself, into Python's integers; tokens."""
    rows = list(training_rows(encoder.data))
    return sum(map(len, [encoder.example(row) for row in rows]))


def encode(sizes: Sizes, folder: Path, named: str | None) -> dict[str, float]:
    """Tokens by processor second of both ways, and what the store takes on disk."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5000)]
    tokenizer = AutoTokenizer.from_pretrained(named) if named else tokenizer_of(words, draw)
    write_rows(folder / "rows.jsonl", sizes, words, draw)
    source = str(folder / "rows.jsonl")
    tokens, speeds = 0, dict[str, list[float]](store=[], before=[])
    for turn in range(sizes.rounds):
        # Another limit that no row reaches is another entry: it is encoded again.
        data = DataSpec(train=source, validation=source, max_length=8 * sizes.tokens + turn)
        encoder = Encoder(tokenizer, data)
        found: list[int] = []
        took = harness.milliseconds(lambda: found.append(as_before(encoder)))  # noqa: B023
        speeds["before"].append(1000 * found[0] / took)
        took = harness.milliseconds(lambda: TokenStore(encoder).training())  # noqa: B023
        tokens = TokenStore(encoder).training().counts.tokens
        assert tokens == found[0]
        speeds["store"].append(1000 * tokens / took)
    files = sorted((folder / "cache" / "rows").glob(f"*/{ROWS}"))
    return stream(sizes, source, tokenizer) | {
        "bytes_per_token": files[0].stat().st_size / tokens,
        "encode_tokens_per_cpu_s": statistics.median(speeds["store"]),
        "before_tokens_per_cpu_s": statistics.median(speeds["before"]),
        "over_today": statistics.median(
            ours / theirs for ours, theirs in zip(speeds["store"], speeds["before"], strict=True)
        ),
    }


def stream(sizes: Sizes, source: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Tokens by processor second of a stream's windows, and rows that are passed by."""
    limits = {"streaming_buffer": max(sizes.rows // 2, 1), "max_length": 8 * sizes.tokens}
    data = DataSpec(train=source, validation=source, streaming=True, **limits)
    encoder, noted = Encoder(tokenizer, data), SourceDigests.of(data).listings
    tokens, speeds, passed = 0, list[float](), list[float]()
    for _ in range(sizes.rounds):
        found: list[int] = []

        def read(found: list[int] = found) -> None:
            reader = StreamReader(encoder, 0, noted, Place())
            found.extend(reader.next(sizes.rows).source.counts.tokens for _ in range(2))

        took = harness.milliseconds(read)
        tokens = sum(found)
        speeds.append(1000 * tokens / took)
        took = harness.milliseconds(lambda: sum(1 for _ in one_pass(data, 0, 0)))
        passed.append(1000 * sizes.rows / took)
    return {
        "streamed_tokens_per_cpu_s": statistics.median(speeds),
        "passed_by_rows_per_cpu_s": statistics.median(passed),
    }


def write_store(path: Path, count: int, sizes: Sizes, vocabulary: int = 2**16) -> float:
    """Random rows, a few at a time; bytes of a token."""
    draw = np.random.default_rng(0)

    def rows() -> Iterator[tuple[Row, Example]]:
        for _ in range(count):
            ids = draw.integers(0, 2**16, sizes.tokens)
            yield NO_ROW, Example(ids, (Span(sizes.tokens * 4 // 5, sizes.tokens),))

    write(path, rows(), vocabulary, scored=False)
    return path.stat().st_size / (count * sizes.tokens)


def worker(path: Path, folder: Path, sizes: Sizes) -> dict[str, float]:
    """What a worker does with a store that is there: its memory, and seconds to its first batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    source = str(folder / "rows.jsonl")
    spec = DataSpec(train=source, validation=source)
    data_digest(spec)
    started, used = time.perf_counter(), time.process_time()
    data_digest(spec), tokenizer_digest(tokenizer)
    batches = Batches(StoredExamples(path.open("rb")), sizes.batch)
    collate(batches.share(0), 0)
    first = {
        "first_batch_s": time.perf_counter() - started,
        "first_batch_cpu_s": time.process_time() - used,
    }
    for step in range(min(sizes.steps, batches.steps_per_epoch)):
        collate(batches.share(step), 0)
    return {"anonymous_mb": anonymous_bytes() / 1e6, **first}


def anonymous_bytes() -> int:
    """Of this process: what is its own, and no file's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("Anonymous:")]
    return int(line.split()[1]) * 1024


def in_a_process(path: Path, folder: Path, sizes: Sizes) -> dict[str, float]:
    """What `worker` gives in a fresh process."""
    options = [f"--{name}={value}" for name, value in asdict(sizes).items()]
    command = [sys.executable, __file__, "--worker", str(path), str(folder), *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def short(count: int) -> str:
    """10k, 1m."""
    for size, letter in ((10**6, "m"), (10**3, "k")):
        if count >= size and count % size == 0:
            return f"{count // size}{letter}"
    return str(count)


def run(sizes: Sizes, named: str | None, out: TextIO, results: Path | None) -> dict[str, Any]:
    """Measure all, print it, and write the section of RESULTS.md."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MOETUNE_CACHE"] = str(folder / "cache")
        found: dict[str, Any] = encode(sizes, folder, named)
        kept = (
            AutoTokenizer.from_pretrained(named) if named else tokenizer_of(["a"], random.Random())
        )
        kept.save_pretrained(folder / "tokenizer")
        found["bytes_per_token_large_vocabulary"] = write_store(
            folder / "large", sizes.few, sizes, 2**17
        )
        workers = {}
        for count in (sizes.few, sizes.many):
            write_store(folder / "store", count, sizes)
            workers[short(count)] = in_a_process(folder / "store", folder, sizes)
    found["resident_mb"] = {at: round(one["anonymous_mb"], 1) for at, one in workers.items()}
    found["first_batch_s"] = {at: round(one["first_batch_s"], 3) for at, one in workers.items()}
    found["first_batch_cpu_s"] = {
        at: round(one["first_batch_cpu_s"], 3) for at, one in workers.items()
    }
    text = report(found)
    print(text, file=out)
    if results is not None:
        about = f"Rows of {sizes.tokens} tokens. Goal: {GOAL_BYTES} bytes a token at most."
        tokenizer = named or "a byte-level BPE of 8192, trained on random words"
        write_section(
            "data.py", f"{machine()}\n\n{about} Tokenizer: {tokenizer}.\n\n{text}", results
        )
    return {**found, "sizes": asdict(sizes)}


def report(found: dict[str, Any]) -> str:
    """Two tables."""
    encoding = table(
        ["", "tokens / CPU s", "bytes a token"],
        [
            [
                "token store",
                f"{found['encode_tokens_per_cpu_s']:.0f}",
                f"{found['bytes_per_token']:.2f}",
            ],
            ["as before", f"{found['before_tokens_per_cpu_s']:.0f}", "in memory"],
            ["streamed", f"{found['streamed_tokens_per_cpu_s']:.0f}", "none"],
            ["ratio", f"{found['over_today']:.2f}", ""],
            [
                "vocabulary above 65,536",
                "",
                f"{found['bytes_per_token_large_vocabulary']:.2f}",
            ],
        ],
    )
    memory = table(
        ["rows", "anonymous MB of a worker", "s to the first batch", "of it CPU s"],
        [
            [at, str(mb), str(found["first_batch_s"][at]), str(found["first_batch_cpu_s"][at])]
            for at, mb in found["resident_mb"].items()
        ],
    )
    passed = (
        f"A stream that goes on passes by {found['passed_by_rows_per_cpu_s']:.0f} rows a CPU s."
    )
    return f"{encoding}\n\n{passed}\n\n{memory}"


def main() -> None:
    """Parse the arguments, print the tables, and end with one line of JSON."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument("--tokenizer", metavar="FOLDER", help="a real one, with a chat template")
    parser.add_argument("--results", type=Path, metavar="PATH", help="write a section there")
    parser.add_argument("--worker", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    path, named, results, child = (
        options.pop(name) for name in ("json", "tokenizer", "results", "worker")
    )
    sizes = Sizes(**options)
    if child:
        harness.finish(worker(*child, sizes), None)
    else:
        harness.finish(run(sizes, named, harness.output(path), results), path)


if __name__ == "__main__":
    main()
