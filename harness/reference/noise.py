"""NEFTune (arXiv 2310.05914): noise on the embeddings while training. transformers/integrations/neftune.py."""

from typing import Any

import torch


def add_noise(base: Any, alpha: float | None) -> None:
    """Add noise to what the input embeddings return in training mode, from now on. It draws from the global state.

    - alpha: neftune_noise_alpha. Each number is drawn between +-alpha / sqrt(length * width), so the noise of a whole row
      has about the same size whatever its length is. None: no noise
    """
    if alpha is None:
        return

    def noisy(layer: Any, inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return embedded
        # In float32, as upstream: the limits' rounding can be seen in the noise.
        limit = float(alpha / torch.tensor(float(embedded.shape[1] * embedded.shape[2]), dtype=torch.float32).sqrt())
        return embedded + torch.zeros_like(embedded).uniform_(-limit, limit)

    base.get_input_embeddings().register_forward_hook(noisy)
