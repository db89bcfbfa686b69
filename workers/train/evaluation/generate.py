"""Greedy answers to a batch of prompts. Tensor suffixes: B rows, S positions."""

from collections.abc import Sequence

from transformers import GenerationConfig

from workers.data.batches import collate_prompts
from workers.train.inputs import Inputs


def generate(
    inputs: Inputs, prompts: Sequence[Sequence[int]], longest: int, *, together: bool
) -> list[str]:
    """Answers of at most `longest` tokens; `together` where every worker must take each step."""
    tokenizer, device = inputs.base.tokenizer, inputs.base.device
    ids_BS, mask_BS = collate_prompts(prompts, inputs.pad_token_id)
    ends = {*inputs.encoder.stops, tokenizer.eos_token_id} - {None}
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=longest,
        eos_token_id=sorted(ends),
        pad_token_id=inputs.pad_token_id,
    )
    whole_BS = inputs.base.model.generate(
        ids_BS.to(device),
        attention_mask=mask_BS.to(device),
        generation_config=config,
        synced_gpus=together,
    )
    answers = []
    for ids in whole_BS[:, ids_BS.shape[1] :].tolist():
        length = next((at for at, token in enumerate(ids) if token in ends), len(ids))
        answers.append(tokenizer.decode(ids[:length], skip_special_tokens=True).strip())
    return answers
