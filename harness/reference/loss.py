"""The training loss: a sum over tokens, divided by the tokens of the whole accumulation window."""

import torch
from torch.nn import functional

IGNORED = -100


def count_tokens(batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """How many labels a causal model predicts in some batches: a 0-d float32 tensor.

    Position 0 is predicted by nothing and -100 is no label. transformers/trainer.py:_get_num_items_in_batch.
    """
    return torch.stack([(batch["labels"][..., 1:] != IGNORED).sum() for batch in batches]).sum() / 1


def causal_loss(logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each next token, summed and divided by `num_items`: a window's losses add up to its mean.

    logits: (rows, length, vocabulary), any float dtype. labels: int64 (rows, length). Returns a 0-d float32 tensor.
    transformers/loss/loss_utils.py:ForCausalLMLoss, which pads the labels by one rather than cut the logits.
    """
    following = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].reshape(-1)
    logits = logits.float().view(-1, logits.shape[-1])
    return functional.cross_entropy(logits, following, ignore_index=IGNORED, reduction="sum") / num_items


def smoothed_loss(logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor, factor: float) -> torch.Tensor:
    """(1 - factor) * NLL + factor * mean over the vocabulary of -log p, both summed over tokens / `num_items`.

    Shapes as in `causal_loss`. transformers/trainer_pt_utils.py:LabelSmoother.
    """
    labels = labels[..., 1:].unsqueeze(-1)
    negative = -functional.log_softmax(logits[..., :-1, :].contiguous(), dim=-1)
    nll = negative.gather(-1, labels.clamp(min=0)).masked_fill(labels == IGNORED, 0.0)
    uniform = negative.sum(-1, keepdim=True, dtype=torch.float32).masked_fill(labels == IGNORED, 0.0)
    return (1 - factor) * (nll.sum() / num_items) + factor * (uniform.sum() / (num_items * negative.shape[-1]))
