"""A process that is asked in lines of JSON, and how much CPU time it took.

No import but the standard library at the worker's side.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""MKL and oneDNN go by it too."""
MOE_PEFT = {"MOE_PEFT_EXECUTOR_TYPE": "CPU", "HF_HUB_OFFLINE": "1"}
"""For the Python in which MoE-PEFT is installed."""


def environment(python: Path) -> dict[str, str]:
    """Of a contestant's process."""
    theirs = {} if str(python) == sys.executable else MOE_PEFT
    return os.environ | ONE_THREAD | theirs


class Process:
    """The asking side."""

    def __init__(self, python: Path, script: str, options: Mapping[str, Any], log: Path) -> None:
        self._name, self._log = script, log
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [str(python), str(Path(__file__).parent / script), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment(python),
            )
        self.facts = self.answer()
        """What it said first."""

    def ask(self, **question: Any) -> Any:
        """Its answer."""
        self.begin(**question)
        return self.answer()

    def begin(self, **question: Any) -> None:
        """Ask, and let it work."""
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)

    def close(self) -> None:
        """End it, whatever it does: it keeps nothing."""
        self._process.kill()
        self._process.communicate()

    def answer(self) -> Any:
        """To what was begun."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} failed:\n{self._log.read_text()[-2000:]}")
        return json.loads(line)


def answer_all(start: Callable[[dict[str, Any]], Callable[..., Any]]) -> None:
    """The answering side: `start` takes the options and gives what answers; its first answer, to
    no question, are its facts."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print is no answer
    ask = start(json.loads(sys.argv[1]))
    print(json.dumps(ask()), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(ask(**json.loads(line))), file=answers, flush=True)
