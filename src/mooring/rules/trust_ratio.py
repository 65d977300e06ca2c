"""Layer-wise trust ratio: LAMB, You et al., ICLR 2020 (arXiv 1904.00962)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.step.move import Slices, pending_entries
from mooring.step.rule import Rule


class TrustRatio(Rule):
    """Rescale the pending step of each tensor to ``lr * |p|``, the identity as the paper's phi.

    ``s <- s * lr |p| / |s|``; unchanged where either norm is zero. With Adam's moments and decoupled decay before it
    this is LAMB; with momentum it is LARS with the ratio taken after the buffer. Two norms per tensor.
    """

    scope = "tensor"
    order = 3

    @override
    def reads(self, live: str) -> set[str]:
        return {"pp"} | pending_entries(live)

    @override
    def sums(self, x: Slices) -> list[Tensor]:
        return [x.dot("p", "p"), x.pending_square()]

    @override
    def decide(self, x: Slices, totals: list[Tensor]) -> None:
        x.move.scale(x.per_slice(self._ratio(x, totals)))

    @override
    def report(self, x: Slices, totals: list[Tensor]) -> dict[str, Tensor]:
        return {"ratio": self._ratio(x, totals)}

    @staticmethod
    def _ratio(x: Slices, totals: list[Tensor]) -> Tensor:
        pp, ss = totals
        return torch.where((pp > 0) & (ss > 0), x.option("lr") * (pp / ss).sqrt(), torch.ones_like(pp))

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        return "trust ratio"
