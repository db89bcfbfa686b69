"""The K most probable experts (MixLoRA, arXiv 2404.15159)."""

from torch import Tensor

from workers.layers.routing.base import Router


class TopK(Router):
    """K = `top_k`, always filled."""

    def select(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """The largest logits."""
        return self.largest(logits_TE)
