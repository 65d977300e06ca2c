"""Units in the last place, and an argued bound on one step in a low precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reference import base

F32 = 2.0**-24
"""Half a unit in the last place of 1.0 in float32: what one float32 operation may lose."""


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance to the next number of that dtype at |x| (float64 result)."""
    info = torch.finfo(dtype)
    size = x.detach().double().abs().clamp_min(info.smallest_normal)
    exponent = torch.floor(torch.log2(size))
    return torch.ldexp(torch.full_like(size, info.eps), exponent.to(torch.int32))


class Scale:
    """Remembers, element by element, how large a direction can be given the gradients seen so far."""

    def __init__(self, shapes: Sequence[torch.Size]) -> None:
        self.largest = [torch.zeros(s, dtype=torch.float64) for s in shapes]

    def see(self, params: Sequence[Tensor], coupled_decay: float) -> None:
        """The gradients of now, with the decay that the moments will find in them."""
        for largest, p in zip(self.largest, params):
            if p.grad is not None:
                size = p.grad.double().abs() + coupled_decay * p.detach().double().abs()
                torch.maximum(largest, size, out=largest)

    def direction(self, j: int, state: dict[str, Any], group: dict[str, Any]) -> Any:
        """|u| <= largest |g| / denominator for Adam, largest |g| / (1 - momentum) for SGD (twice that for Nesterov)."""
        state = state.get("moments", state)
        if "betas" in group and "amsgrad" not in group:
            # Adai's u is a weighted mean of gradients, but 1 - pi, of size eps at least, is formed by subtraction.
            return self.largest[j] / group["eps"]
        if "betas" not in group:
            return 2 * self.largest[j] / (1 - group["momentum"])
        v_hat = base.second_moment(state, {**group, "amsgrad": False})
        return self.largest[j] / (v_hat.sqrt() + group["eps"])


def step_bound(
    before: Tensor, after: Tensor, direction: Tensor, group: dict[str, Any], t: int, dtype: torch.dtype
) -> Any:
    """How far a correct float32 step, stored in `dtype`, may be from the float64 one.

    The step s is formed in float32 and p - s is rounded once to float32 and once to the storage type: half a unit of
    that type plus half a float32 unit of |p| (the ulp is taken a hair above |after|, in case the two lie on either
    side of a power of two). The moments lose a few float32 units of the largest gradient per step, t steps long; the
    direction inherits that relative to `direction`, its largest possible size. Inner products of a row or a tensor
    lose it relative to the norm of the direction, and the coefficients they give multiply unit vectors. What the
    decay removes is at most |after - before| plus the step.
    """
    lr, strength = float(group["lr"]), float(group.get("strength", 0.0))
    stored = 0.5 * ulp(after.abs() * (1 + 2**-6), dtype) + 2 * F32 * before.abs()
    size = lr * direction + (after - before).abs() + (1 + strength) * lr * direction.norm()
    return stored + (12 + 6 * t) * F32 * size
