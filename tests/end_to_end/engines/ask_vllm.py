"""Run by a Python that has vLLM: ask_vllm.py CHECKPOINT QUESTIONS ANSWERS."""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams  # type: ignore[import-not-found]


def main() -> None:
    checkpoint, questions, answers = sys.argv[1:]
    asked = json.loads(Path(questions).read_text())
    engine = LLM(
        model=checkpoint,
        dtype="float32",  # left out, it computes a float32 checkpoint in 16 bits
        enforce_eager=True,
        max_model_len=256,
        disable_log_stats=True,
    )
    greedy = SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True)
    given = engine.generate([{"prompt_token_ids": ids} for ids in asked["prompts"]], greedy)
    Path(answers).write_text(json.dumps([list(one.outputs[0].token_ids) for one in given]))


if __name__ == "__main__":  # vLLM's engine is a process of its own, which reads this file too
    main()
