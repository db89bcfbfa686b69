"""The program that tries JSON schemas out: each in a process of its own with limits of time and
memory, forked from one that knows the tokenizer.

The engine starts it, and asks it over a connection whose descriptor is its argument. It ends with
that connection. No torch.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from llguidance import LLTokenizer

from workers.engine.structured_output.grammar import Vocabulary, compiled

NICENESS = 5
"""Answers come first."""
OUT_OF_TIME = (signal.SIGPROF, signal.SIGXCPU)


def main() -> None:
    """Answer until nobody asks any more. The first message is what to know, the second the
    tokenizer, every further one a schema; an empty one breaks off what is being tried."""
    engine = Connection(int(sys.argv[1]))
    os.nice(NICENESS)
    with suppress(EOFError, OSError):
        told = json.loads(engine.recv_bytes())
        written = engine.recv_bytes().decode()
        tokenizer = Vocabulary(written, told["columns"], told["stops"]).made()
        engine.send_bytes(b"{}")
        while True:
            if schema := engine.recv_bytes():
                verdict = _try(engine, tokenizer, schema.decode(), told)
                engine.send_bytes(json.dumps(verdict).encode())


def _try(engine: Connection, tokenizer: LLTokenizer, schema: str, told: Any) -> dict[str, Any]:
    """`ended` is how its process did. Where that is well, `refused` says why it is, and `bytes` how
    much memory it holds."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        _compile(writer, tokenizer, schema, told)
    os.close(writer)
    ready = wait([reader, engine], told["patience"])
    if reader not in ready:
        os.kill(process, signal.SIGKILL)
    _, status, used = os.wait4(process, 0)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode()
    ended = _ending(status) if reader in ready else "broken off"
    verdict: dict[str, Any] = {} if ended else json.loads(said)
    return verdict | {"ended": ended, "seconds": used.ru_utime + used.ru_stime}


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in OUT_OF_TIME:
        return "time"
    return "" if status == 0 else "memory"


def _compile(writer: int, tokenizer: LLTokenizer, schema: str, told: Any) -> NoReturn:
    """In the process that may be killed. Without memory the library aborts it."""
    try:
        before = _mapped()
        _limit(told["seconds"], before and before + told["bytes"])
        refused = ""
        try:
            matcher = compiled(tokenizer, schema, told["stops"])  # noqa: F841 - what it holds counts
        except ValueError as error:
            refused = " ".join(str(error).split())[:300]
        answer = {"refused": refused, "bytes": _mapped() - before}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    finally:
        os._exit(1)


def _limit(seconds: float, memory: int) -> None:
    """CPU time, not the clock's: what a busy machine takes longer for is not worse."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    whole = int(seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _mapped() -> int:
    """Bytes of this process's memory; 0 where the system does not tell (other than Linux)."""
    with suppress(FileNotFoundError), open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[0]) * resource.getpagesize()
    return 0


if __name__ == "__main__":
    main()
