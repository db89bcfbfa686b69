"""The two contestants of our own environment: moetune, and PEFT's LoRA of the same size."""

import sys
from pathlib import Path

import torch
from peer_setup import LEARNING_RATE, Setup
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.adapter.files import load_into
from workers.data.batches import Batch
from workers.inject import row_map
from workers.losses import IGNORED
from workers.model import Base, load_base
from workers.spec import DataSpec, ModelSpec, OptimizerSpec, TrainSpec
from workers.train.forward import scored_logits
from workers.train.step import TrainStep
from workers.train.world import World

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


class Moetune:
    """A contestant; see peer_setup.Contestant. Its step is the one of a training run."""

    def __init__(self, setup: Setup) -> None:
        self._base = _base(setup)
        self._batch = _batch(setup)
        adapter = load_into(self._base.model, setup.adapter)
        self.trainable = adapter.num_parameters()
        spec = TrainSpec(
            model=ModelSpec(path=setup.base, attention=setup.attention),
            adapter=adapter.spec,
            data=DataSpec(train="", validation=""),
            optimizer=OptimizerSpec(lr=LEARNING_RATE, schedule="constant"),
        )
        self._step = TrainStep(spec, self._base, adapter, World())

    def step(self) -> None:
        """workers.train.step.TrainStep: losses, gradients, clipping, AdamW."""
        self._base.model.train()
        self._step([self._batch])

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """See peer_setup.Contestant."""
        self._base.model.eval()
        return scored_logits(self._base, self._batch)[0]

    @torch.no_grad()
    def logits(self, tokens_BS: Tensor, *, adapted: bool) -> Tensor:
        """See peer_setup.Contestant."""
        self._base.model.eval()
        with row_map(self._base.model).everywhere("default" if adapted else None):
            logits_BSV: Tensor = self._base.model(tokens_BS, use_cache=False).logits
        return logits_BSV


class PeftLora:
    """A contestant; see peer_setup.Contestant.

    Rank R in the attention and E * R in the feed-forward block: in each place as many weights as
    the experts there have. The routers come on top of the experts.
    """

    def __init__(self, setup: Setup) -> None:
        self._batch = _batch(setup)
        sizes = setup.sizes
        config = LoraConfig(
            r=sizes.rank,
            lora_alpha=sizes.alpha,
            lora_dropout=sizes.dropout,
            target_modules=[*ATTENTION, *FEED_FORWARD],
            rank_pattern=dict.fromkeys(FEED_FORWARD, setup.experts * sizes.rank),
            task_type="CAUSAL_LM",
        )
        self._model = get_peft_model(_base(setup).model, config)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self.trainable = sum(parameter.numel() for parameter in self._parameters)
        for name, parameter in self._model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=LEARNING_RATE)

    def step(self) -> None:
        """As transformers' Trainer does it: the model's own loss, clipping at 1, AdamW."""
        self._model.train()
        batch = self._batch
        output = self._model(
            batch.input_ids_BS,
            attention_mask=batch.attention_mask_BS,
            labels=batch.labels_BS,
            use_cache=False,
        )
        output.loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """See peer_setup.Contestant."""
        self._model.eval()
        mask_BS = self._batch.attention_mask_BS
        return self._ask(self._batch.input_ids_BS, attention_mask=mask_BS)

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


def _base(setup: Setup) -> Base:
    return load_base(ModelSpec(path=setup.base, attention=setup.attention, device="cpu"))


def _batch(setup: Setup) -> Batch:
    """Every token but a row's first is predicted, as by moe-peft."""
    tokens_BS = setup.tokens_BS
    labels_BS = tokens_BS.clone()
    labels_BS[:, 0] = IGNORED
    return Batch(tokens_BS, torch.ones_like(tokens_BS), labels_BS)
