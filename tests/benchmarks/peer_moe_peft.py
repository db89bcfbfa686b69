"""moe-peft's MixLoRA, driven as its own trainer and evaluator drive it.

Its own defaults hold wherever the setup says nothing: eager attention, its operators called
efficient, AdamW, a router loss of 0.001.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from moe_peft import AdapterConfig, LLMBatchConfig, LLMModel, LLMModelInput
from moe_peft.trainer import TrainConfig, _compute_loss
from peer_setup import LEARNING_RATE, Setup
from torch import Tensor

NAME, BARE = "mixlora", "bare"


class MoePeft:
    """A contestant; see peer_setup.Contestant."""

    def __init__(self, setup: Setup) -> None:
        self._tokens = setup.tokens_BS.tolist()
        self._model = LLMModel.from_pretrained(setup.base, device="cpu", load_dtype=torch.float32)
        self._model.load_adapter(setup.adapter, NAME)
        self._model.init_adapter(AdapterConfig(adapter_name=BARE))
        rows = len(self._tokens)
        self._training = TrainConfig(
            adapter_name=NAME,
            num_epochs=1,
            batch_size=rows,
            micro_batch_size=rows,
            learning_rate=LEARNING_RATE,
        )
        weights = self._model.get_adapter_weight_dict(NAME)
        self._training.prepare(weights)
        self._training.prepare_lr_scheduler(rows)
        self.trainable = sum(weight.numel() for weight in weights.values())

    def step(self) -> None:
        """The body of the loop of moe_peft.trainer.train."""
        labels = [list(row) for row in self._tokens]
        outputs = self._model.forward(_input(self._tokens, NAME, batch_labels_=labels))
        _compute_loss({NAME: self._training}, outputs).backward()
        self._training.step()

    @torch.inference_mode()
    def evaluate(self) -> Tensor:
        """As moe_peft.evaluator.evaluate asks. Dropout is on: the package never switches it off."""
        return self._ask(self._tokens, NAME)

    # Not inference_mode: the package keeps tensors from its first forward pass for training.
    @torch.no_grad()
    def logits(self, tokens_BS: Tensor, *, adapted: bool) -> Tensor:
        """See peer_setup.Contestant."""
        with self._hardly_any_dropout():
            return self._ask(tokens_BS.tolist(), NAME if adapted else BARE)

    def _ask(self, tokens: list[list[int]], adapter: str) -> Tensor:
        outputs = self._model.forward(_input(tokens, adapter, inference_mode_=True))
        logits_BSV: Tensor = outputs[0].logits
        return logits_BSV

    @contextmanager
    def _hardly_any_dropout(self) -> Iterator[None]:
        """So rare that it hits nothing; the package insists on a probability above 0."""
        dropouts = [
            lora.dropout_
            for layer in self._model.model_.decoder_stack()
            for linears in layer.state_dict()
            for linear in linears.values()
            for lora in linear.loras_.values()
        ]
        before = [dropout.p for dropout in dropouts]
        for dropout in dropouts:
            dropout.p = 1e-12
        yield
        for dropout, probability in zip(dropouts, before, strict=True):
            dropout.p = probability


def _input(tokens: list[list[int]], adapter: str, **options: Any) -> LLMModelInput:
    """Lists, as its dispatcher makes them."""
    return LLMModelInput(
        batch_configs_=[LLMBatchConfig(adapter, 0, len(tokens))],
        batch_tokens_=tokens,
        batch_masks_=[[1] * len(row) for row in tokens],
        **options,
    )
