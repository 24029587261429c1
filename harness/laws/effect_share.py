"""What share of an adapter's effect is left when it is computed in a lower precision.

1. The effect is what the adapter changes in the logits: those with it less those without it.
2. In float32 it is E. Computed in another way it is F, with and without the adapter in that way.
3. The share that is left is the part of F along E: <F, E> / <E, E>. 1 is all of it, 0 none.
4. What F has beside that is rounding: |F - share E| / |E|. If it is above 1, rounding is larger than the adapter's effect.
5. The share is a ratio of sums over tokens. Its uncertainty is two standard errors of such a ratio, with the tokens as the
   sample (the linearised estimator; W. G. Cochran, Sampling Techniques, 1977, section 2.11).

Rounding that does not know the adapter moves F up as often as down, so it lowers no share. A share below 1 means that the
adapter's part was rounded away: it was added to a number that lay on the grid of the format already, and was less than half
of the distance to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Roundings to bfloat16 that the adapter's own part goes through in a layer: x, A, A x, B, B A x, the scaled product, and
#: those of the layers after it, which make it smaller or larger at random. Each is at most 2^-8 of it, the unit roundoff.
_ROUNDINGS = 16


@dataclass(frozen=True)
class Share:
    """share, uncertainty, rounding: see the module."""

    share: float
    uncertainty: float
    rounding: float


def share(seen: torch.Tensor, effect: torch.Tensor) -> Share:
    """Return what is left of an effect. seen, effect: F and E, (tokens, vocabulary), in float64."""
    along, whole = (seen * effect).sum(dim=-1), effect.square().sum(dim=-1)
    left = float(along.sum() / whole.sum())
    error = float((along - left * whole).square().sum().sqrt() / whole.sum())
    return Share(left, 2 * error, float((seen - left * effect).norm() / effect.norm()))


def least(dtype: torch.dtype) -> float:
    """Return the share that must be left in a dtype: 1 less what the roundings of the adapter's own part can take."""
    return 1.0 - _ROUNDINGS * torch.finfo(dtype).eps / 2
