"""PEFT's LoRA with as many trained weights, driven as transformers' Trainer drives it."""

import torch
from peer_setup import LEARNING_RATE, Setup
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
IGNORED = -100
"""Label of a token that is no target, in transformers."""


class PeftLora:
    """A contestant; see peer_setup.Contestant.

    Rank R in the attention and E * R in the feed-forward block: in each place as many weights as
    the experts there have. The routers come on top of the experts.
    """

    def __init__(self, setup: Setup) -> None:
        sizes = setup.sizes
        self._ids_BS, self._labels_BS = setup.tokens_BS, setup.labels_BS(IGNORED)
        self._mask_BS = torch.ones_like(self._ids_BS)
        base = AutoModelForCausalLM.from_pretrained(
            setup.base, dtype=torch.float32, attn_implementation=setup.attention
        )
        config = LoraConfig(
            r=sizes.rank,
            lora_alpha=sizes.alpha,
            lora_dropout=sizes.dropout,
            target_modules=[*ATTENTION, *FEED_FORWARD],
            rank_pattern=dict.fromkeys(FEED_FORWARD, setup.experts * sizes.rank),
            task_type="CAUSAL_LM",
        )
        self._model = get_peft_model(base, config)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self.trainable = sum(parameter.numel() for parameter in self._parameters)
        for name, parameter in self._model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=LEARNING_RATE, fused=True)

    def step(self) -> None:
        """The model's own loss, clipping at 1, fused AdamW."""
        self._model.train()
        output = self._model(
            self._ids_BS, attention_mask=self._mask_BS, labels=self._labels_BS, use_cache=False
        )
        output.loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """See peer_setup.Contestant."""
        self._model.eval()
        return self._ask(self._ids_BS, self._mask_BS)

    @torch.no_grad()
    def logits(self, tokens_BS: Tensor, *, adapted: bool) -> Tensor:
        """See peer_setup.Contestant."""
        self._model.eval()
        if adapted:
            return self._ask(tokens_BS)
        with self._model.disable_adapter():
            return self._ask(tokens_BS)

    def _ask(self, tokens_BS: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        output = self._model(tokens_BS, attention_mask=attention_mask, use_cache=False)
        logits_BSV: Tensor = output.logits
        return logits_BSV
