"""One contestant in a process of its own, driven by peers.py turn by turn.

    python peer_worker.py NAME SETUP_AS_JSON

Each line of standard input asks for one thing, each line of standard output answers it in JSON:
`step` and `evaluation` by CPU milliseconds of this process, `memory` by bytes, `logits PATH` by the
file written. The end of standard input ends it.
"""

import json
import os
import sys
from typing import Any

import torch
from harness import milliseconds, peak_bytes
from peer_setup import Contestant, Setup, load


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
