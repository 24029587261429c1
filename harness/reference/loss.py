"""The training loss: a sum over tokens, divided by the number of tokens in the whole accumulation window.

If each micro-batch were averaged by itself, short micro-batches would weigh too much. Divided by the window's tokens,
the losses of a window's micro-batches add up to the mean over its tokens, however the rows are cut into micro-batches.
"""

import torch
from torch.nn import functional

#: A label with this value is not trained on: prompts and padding.
IGNORED = -100


def count_tokens(batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Count the labels that a causal model predicts in these batches: a 0-d float32 tensor.

    Position 0 is not counted, since no token stands before it. trainer.py:_get_num_items_in_batch.
    """
    counts = [(batch["labels"][..., 1:] != IGNORED).sum() for batch in batches]
    # Upstream divides by the number of devices that share the rows. It is 1 here, and int64 becomes float32.
    return torch.stack(counts).sum() / 1


def causal_loss(logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor) -> torch.Tensor:
    """Sum the cross entropy of each next token and divide it by `num_items`: a 0-d float32 tensor.

    - logits: (rows, length, vocabulary), any float dtype
    - labels: int64 (rows, length)
    - num_items: 0-d, see `count_tokens`

    transformers/loss/loss_utils.py:ForCausalLMLoss. It shifts the labels, since cutting the logits would copy them.
    """
    following = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].reshape(-1)
    logits = logits.float().view(-1, logits.shape[-1])
    return functional.cross_entropy(logits, following, ignore_index=IGNORED, reduction="sum") / num_items


def smoothed_loss(logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor, factor: float) -> torch.Tensor:
    """Return (1 - factor) * NLL + factor * the mean over the vocabulary of -log p, per token as in `causal_loss`.

    factor: label_smoothing_factor. transformers/trainer_pt_utils.py:LabelSmoother.
    """
    labels = labels[..., 1:].unsqueeze(-1)
    negative = -functional.log_softmax(logits[..., :-1, :].contiguous(), dim=-1)
    nll = negative.gather(-1, labels.clamp(min=0)).masked_fill(labels == IGNORED, 0.0)
    uniform = negative.sum(-1, keepdim=True, dtype=torch.float32).masked_fill(labels == IGNORED, 0.0)
    return (1 - factor) * (nll.sum() / num_items) + factor * (uniform.sum() / (num_items * negative.shape[-1]))
