"""One contestant in a process of its own, driven by peers.py turn by turn.

    python peer_worker.py NAME SETUP_AS_JSON

Each line of standard input asks for one thing, each line of standard output answers it in JSON:
`step` and `evaluation` by CPU milliseconds of this process, `memory` by bytes, `logits PATH` by the
file written. The end of standard input ends it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from peer_setup import Contestant, Setup, load


def milliseconds(turn: Callable[[], object]) -> float:
    """CPU time of this process, all its threads."""
    start = time.process_time()
    turn()
    return 1000 * (time.process_time() - start)


def peak_bytes(turn: Callable[[], object]) -> int:
    """The most that torch holds during the turn above what it held before.

    From the allocator's own record, which every tensor and temporary is in; the process's resident
    size shows it only as far as malloc gives memory back. oneDNN's scratch pads are not in it.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as recorded:
        turn()
    events = recorded.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def write_logits(contestant: Contestant, setup: Setup, path: str) -> str:
    """Logits of the probe, without and with the adapter."""
    found = {
        name: contestant.logits(setup.probe_BS, adapted=name == "adapted").clone()
        for name in ("bare", "adapted")
    }
    torch.save(found, path)
    return path


def main() -> None:
    """Load the contestant, say what it is, then answer."""
    name, setup = sys.argv[1], Setup.from_json(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print is no answer
    torch.set_num_threads(1)
    torch.manual_seed(0)
    contestant = load(name, setup)
    answer: Any = {"torch": torch.__version__, "trainable": contestant.trainable}
    print(json.dumps(answer), file=answers, flush=True)
    for line in sys.stdin:
        word, _, path = line.strip().partition(" ")
        if word == "logits":
            answer = write_logits(contestant, setup, path)
        elif word == "memory":
            answer = peak_bytes(contestant.step)
        else:
            turns = {"step": contestant.step, "evaluation": contestant.evaluate}
            answer = milliseconds(turns[word])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
