"""moe-peft's own generate(), a batch at a time: a contestant of serving.py, in its environment."""

from collections.abc import Callable
from typing import Any

import torch
from moe_peft import GenerateConfig, LLMModel, generate
from serving_batches import in_batches
from serving_process import answer_all
from serving_work import Request

PLAIN = {
    "description": "the prompt as it is",
    "prompt_input": "{instruction}",
    "prompt_no_input": "{instruction}",
    "response_split": "\n\n\n",
}


class Numbers:
    """A tokenizer whose words are token ids; as moe_peft.Tokenizer, which cannot read the files
    that today's transformers writes."""

    eos_id_ = -1
    pad_id_ = 0

    def encode(self, text: str) -> list[int]:
        """Words to numbers."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Numbers to words."""
        return " ".join(map(str, ids))


def start(options: dict[str, Any]) -> Callable[..., Any]:
    """Answer turns. Greedy, with its cache, as many rows at once as there are clients."""
    torch.set_num_threads(1)
    model = LLMModel.from_pretrained(options["base"], device="cpu", load_dtype=torch.float32)
    model.load_adapter(options["adapter"], "mixlora")
    tokenizer = Numbers()

    def batch(requests: list[Request]) -> None:
        config = GenerateConfig(
            adapter_name="mixlora",
            prompts=[tokenizer.decode(request.prompt) for request in requests],
            prompt_template=PLAIN,
            batch_size=len(requests),
            temperature=0,
            top_p=0,
            top_k=0,
            do_sample=False,
            repetition_penalty=0,
        )
        longest = max(request.tokens for request in requests)
        generate(model, tokenizer, [config], max_gen_len=longest, concurrent_jobs=len(requests))

    return in_batches(batch, options)


if __name__ == "__main__":
    answer_all(start)
