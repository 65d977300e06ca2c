"""Radial projection: AdamP and SGDP, Heo et al., ICLR 2021 (arXiv 2006.08217)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.rules.decay import DecoupledDecay
from mooring.step.move import Slices
from mooring.step.rule import Rule

INVARIANCE = ("test", "row", "tensor", "none")
"""How a group says what of it is scale invariant."""


class RadialProjection(Rule):
    """Remove the radial part of the update where the weights look scale invariant.

    For a tensor of two or more dimensions and a gradient that is not exactly zero::

        cos_r = |<g_r, p_r>| / (max(|g_r|, eps) * max(|p_r|, eps))            for every row r
        every cos_r < delta / sqrt(row length)        -> project every row
        else cos of the whole tensor < delta / sqrt(numel) -> project the whole tensor
        projection: u <- u - p̂ <p̂, u>,   p̂ = p / (|p| + eps)

    A projected tensor's decay is multiplied by ``wd_ratio``. Everything is decided by four inner products per row.

    Where ``scale_invariant`` is declared instead of tested, the gradient is not read: what is declared is projected at
    every step, also where the gradient is zero, and nothing else is. Two inner products, and one collective less where
    rows lie whole on one process. :func:`mooring.scale_invariant_parameters` finds what to declare.

    Args:
        delta: threshold of the cosine test; 0 never projects. Not read where the invariance is declared.
        wd_ratio: factor on the decay of projected tensors, in [0, 1].
        eps: floor of the norms.
        scale_invariant: ``"test"`` is the cosine test; ``"row"`` declares every row of tensors with two or more
            dimensions invariant, ``"tensor"`` each tensor as a whole, vectors too, ``"none"`` nothing.

    Where a group has ``project_buffer``, the momentum buffer is projected in place too, as the authors' SGDP does
    without Nesterov.
    """

    scope = "row"
    order = 1
    writes = "p"

    def __init__(
        self, delta: float = 0.1, wd_ratio: float = 0.1, eps: float = 1e-8, scale_invariant: str = "test"
    ) -> None:
        self._options = {"delta": delta, "wd_ratio": wd_ratio, "eps": eps, "scale_invariant": scale_invariant}

    @override
    def options(self) -> dict[str, Any]:
        return dict(self._options)

    @override
    def check(self, group: Mapping[str, Any]) -> None:
        for name in ("delta", "eps"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must be >= 0, got {group[name]!r}")
        if not 0 <= group["wd_ratio"] <= 1:
            raise ValueError(f"wd_ratio must be in [0, 1], got {group['wd_ratio']!r}")
        if group["scale_invariant"] not in INVARIANCE:
            raise ValueError(
                f"scale_invariant must be 'test' (the cosine test), 'row', 'tensor' or 'none', "
                f"got {group['scale_invariant']!r}"
            )

    @override
    def active(self, group: Mapping[str, Any]) -> bool:
        if group["scale_invariant"] == "test":
            return bool(group["delta"] != 0)
        return bool(group["scale_invariant"] != "none")

    @override
    def shared(self, group: Mapping[str, Any]) -> Hashable:
        return _projects_buffer(group), group["scale_invariant"]

    @override
    def reads(self, live: str) -> set[str]:
        return {"gg", "gp", "pp", "pu"}

    @override
    def reads_for(self, live: str, group: Mapping[str, Any]) -> set[str]:
        return self.reads(live) if group["scale_invariant"] == "test" else {"pp", "pu"}

    @override
    def adds_up(self, group: Mapping[str, Any]) -> bool:
        return bool(group["scale_invariant"] != "row")

    @override
    def rewrites(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if _projects_buffer(group) else ()

    @override
    def sums(self, x: Slices) -> list[Tensor]:
        declared = x.shared["scale_invariant"]
        if declared != "test":
            return [] if declared == "row" else [x.dot("p", "p"), x.dot("p", "u")]
        gg, gp, pp, pu = (x.dot(*name) for name in ("gg", "gp", "pp", "pu"))
        limit = x.option("delta") / x.row_length.sqrt()
        fails = ~(_cosine(gg, gp, pp, x.per_slice(x.option("eps"))) < x.per_slice(limit))
        return [fails.to(gg.dtype), gg, gp, pp, pu]

    @override
    def decide(self, x: Slices, totals: list[Tensor]) -> None:
        eps = x.option("eps")
        by_row, by_tensor = _views(x, totals)

        radial = _radial(x.dot("p", "u"), x.dot("p", "p"), x.per_slice(eps))
        if totals:  # rows that are declared need no sums over the tensor
            pp, pu = totals[-2:]
            radial = torch.where(x.per_slice(by_row), radial, x.per_slice(_radial(pu, pp, eps)))
        projected = by_row | by_tensor
        radial = torch.where(x.per_slice(projected), radial, torch.zeros_like(radial))

        x.move.add("p", -x.move.beta * radial)
        x.move.rho = torch.where(projected, x.option("wd_ratio"), torch.ones_like(eps))
        if _projects_buffer(x.shared):
            x.move.buffer = radial

    @override
    def report(self, x: Slices, totals: list[Tensor]) -> dict[str, Tensor]:
        by_row, by_tensor = _views(x, totals)
        shares = {"by_row": by_row.double(), "by_tensor": by_tensor.double()}
        if x.shared["scale_invariant"] == "test":
            shares["rows_below"] = 1 - totals[0] / (x.numel / x.row_length)
        return {name: torch.where(x.matrix | by_tensor, share, torch.nan) for name, share in shares.items()}

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        buffer = ", buffer too" if _projects_buffer(group) else ""
        declared = group["scale_invariant"]
        where = f"delta={group['delta']:g}" if declared == "test" else f"scale invariant by {declared}"
        return f"radial projection({where}, wd_ratio={group['wd_ratio']:g}{buffer})"


class BufferHorizonDecay(DecoupledDecay):
    """SGDP's decay: ``scale = 1/(1-momentum)``; it ignores dampening and applies to vectors too, as released."""

    @override
    def scale(self, x: Slices) -> Tensor | None:
        return 1 / (1 - x.option("momentum"))

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        return f"decoupled decay(weight_decay={group['weight_decay']:g} / (1 - momentum), toward zero)"

    @override
    def scale_text(self) -> str:
        return " / (1 - momentum)"


def _projects_buffer(group: Mapping[str, Any]) -> bool:
    # With Nesterov the update is a tensor of its own, so the released code projects that and leaves the buffer alone.
    return bool(group.get("project_buffer", False) and not group["nesterov"] and group["momentum"] != 0)


def _views(x: Slices, totals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Which tensors are projected row by row, and which as a whole; each (T,) bool."""
    declared = x.shared["scale_invariant"]
    if declared != "test":
        nowhere = torch.zeros_like(x.matrix)
        return (x.matrix, nowhere) if declared == "row" else (nowhere, ~nowhere)
    fails, gg, gp, pp, _ = totals
    candidate = x.matrix & (gg > 0)
    by_row = candidate & (fails == 0)
    limit = x.option("delta") / x.numel.sqrt()
    return by_row, candidate & ~by_row & (_cosine(gg, gp, pp, x.option("eps")) < limit)


def _cosine(gg: Tensor, gp: Tensor, pp: Tensor, eps: Tensor) -> Tensor:
    return gp.abs() / (torch.maximum(gg.sqrt(), eps) * torch.maximum(pp.sqrt(), eps))


def _radial(pu: Tensor, pp: Tensor, eps: Tensor) -> Tensor:
    """The coefficient of p in ``p̂ <p̂, u>``; 0 where p is exactly zero and eps is 0."""
    norm = pp.sqrt() + eps
    return torch.where(norm > 0, pu / (norm * norm), torch.zeros_like(pu))
