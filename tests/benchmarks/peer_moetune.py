"""moetune, driven as its own training run drives it."""

import sys
from pathlib import Path

import torch
from peer_setup import LEARNING_RATE, Setup
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.adapter.files import load_into
from workers.config.data import DataSpec
from workers.config.model import ModelSpec
from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import Batch
from workers.injection.inject import row_map
from workers.losses.cross_entropy import IGNORED
from workers.models.base import load_base
from workers.parallel.update import Replicated
from workers.train.step import TrainStep


class Moetune:
    """A contestant; see peer_setup.Contestant."""

    def __init__(self, setup: Setup) -> None:
        model = ModelSpec(path=setup.base, attention=setup.attention, device="cpu")
        self._base = load_base(model)
        ids_BS = setup.tokens_BS
        self._batch = Batch(ids_BS, torch.ones_like(ids_BS), setup.labels_BS(IGNORED))
        adapter = load_into(self._base.model, setup.adapter)
        self.trainable = adapter.num_parameters()
        spec = TrainSpec(
            model=model,
            adapter=adapter.spec,
            data=DataSpec(train="none", validation="none"),
            optimizer=OptimizerSpec(lr=LEARNING_RATE, schedule="constant"),
        )
        self._step = TrainStep(spec, self._base, adapter, Replicated(adapter, spec.optimizer))

    def step(self) -> None:
        """workers.train.step.TrainStep: losses, gradients, clipping, AdamW."""
        self._base.model.train()
        self._step([self._batch])

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """See peer_setup.Contestant."""
        return self.logits(self._batch.input_ids_BS, adapted=True)

    @torch.no_grad()
    def logits(self, tokens_BS: Tensor, *, adapted: bool) -> Tensor:
        """See peer_setup.Contestant."""
        self._base.model.eval()
        with row_map(self._base.model).everywhere("default" if adapted else None):
            logits_BSV: Tensor = self._base.model(tokens_BS, use_cache=False).logits
        return logits_BSV
