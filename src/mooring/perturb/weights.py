"""The weights that are perturbed: put aside once per step, moved for a pass, and put back to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mooring.anchors.names import plain
from mooring.step.batch import compute_dtype
from mooring.step.shards import Piece, is_sharded, local, piece


class Grouped(Protocol):
    """Whatever keeps parameters in groups, as optimizers do."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups, each with ``params`` and, where they have names, ``param_names``."""


@dataclass(frozen=True)
class Member:
    """One trainable parameter.

    Attributes:
        p: the parameter.
        group: its group.
        name: its name without wrappers' prefixes, or its place among all parameters where it has none.
    """

    p: Tensor
    group: dict[str, Any]
    name: str

    @property
    def where(self) -> Piece:
        """Which part of it this process holds."""
        return piece(self.p)

    def local(self) -> Tensor:
        """This process's part, sharing memory."""
        return local(self.p.detach())

    def gradient(self) -> Tensor | None:
        """This process's part of the gradient, sharing memory."""
        return None if self.p.grad is None else local(self.p.grad.detach())


def members(groups: list[dict[str, Any]]) -> list[Member]:
    """All parameters of an optimizer that take gradients and have elements."""
    found: list[Member] = []
    position = 0
    for group in groups:
        names = group.get("param_names")
        for i, p in enumerate(group["params"]):
            if p.requires_grad and p.numel():
                found.append(Member(p, group, plain(names[i]) if names else str(position)))
            position += 1
    return found


Pair = tuple[Member, Tensor]
"""A parameter and its saved value, as it is stored."""
Many = Callable[[list[Pair]], list[Pair]]
"""Places parameters, and returns those that it leaves to others."""


class Weights:
    """The weights of an optimizer's groups, or of whatever else has groups.

    One copy of them is made when they are first moved in a step, and dropped with :meth:`forget`: undoing a
    perturbation by subtracting it would change bits.
    """

    def __init__(self, owner: Grouped, model: nn.Module | None) -> None:
        self._owner = owner  # asked anew each time: loading a checkpoint replaces its groups
        self._model = model
        self._saved: list[Tensor] = []
        self.members: list[Member] = []
        self.moved = False

    def save(self) -> None:
        """Copy the weights, unless this step has done so."""
        if not self._saved:
            self.members = members(self._owner.param_groups)
            self._saved = [m.local().clone() for m in self.members]

    @property
    def pairs(self) -> list[Pair]:
        """Every member with its saved value as it is stored."""
        return list(zip(self.members, self._saved))

    @property
    def saved(self) -> list[Tensor]:
        """The saved values in the compute type, in the order of ``members``."""
        return [widened(x) for x in self._saved]

    def place(self, offset: Callable[[Member, Tensor], Tensor | None], many: Many | None = None) -> None:
        """Put every weight at its saved value plus an offset, with one rounding.

        Args:
            offset: takes a member and its saved value in the compute type; returns the offset in that type, a fresh
                tensor, or None for none.
            many: asked first; places the members it can, in one go.
        """
        self.save()
        self.gather_anew()
        self.moved = True
        for member, saved in self.pairs if many is None else many(self.pairs):
            wide = widened(saved)
            moved = offset(member, wide)
            if moved is not None:
                if saved.dtype == wide.dtype:
                    torch.add(wide, moved, out=member.local())
                else:
                    member.local().copy_(moved.add_(wide))

    def restore(self) -> None:
        """Put the weights back, also when interrupted on the way."""
        if not self.moved:
            return
        try:
            self._copy_back()
        except BaseException:
            self._copy_back()
            raise
        self.moved = False

    @torch.no_grad()
    def _copy_back(self) -> None:
        self.gather_anew()
        if self.members:
            torch._foreach_copy_([m.local() for m in self.members], self._saved)

    def forget(self) -> None:
        """Drop the copy."""
        self._saved, self.members = [], []

    def gather_anew(self) -> None:
        """Drop copies of the weights that others keep, so that whoever needs them gathers them anew.

        Autocast keeps rounded ones for as long as its block lasts, and a root module of FSDP keeps gathered ones after
        a forward without backward.
        """
        torch.clear_autocast_cache()
        if self._model is None:
            return
        for module in self._model.modules():
            reshard = getattr(module, "reshard", None)
            if reshard is not None and hasattr(module, "set_requires_gradient_sync"):
                reshard()


def widened(x: Tensor) -> Tensor:
    """In the compute type; complex numbers as they are."""
    return x if x.is_complex() else x.to(compute_dtype(x.dtype))


def needs_model(groups: list[dict[str, Any]]) -> bool:
    """Whether weights are gathered from shards by their module, so that moving a shard has to be made known to it."""
    return any(is_sharded(p) for group in groups for p in group["params"])
