"""The sharpness-aware family: SAM, USAM, ASAM, RSAM.

SAM: Foret et al., ICLR 2021, arXiv 2010.01412. USAM: Andriushchenko and Flammarion, ICML 2022, arXiv 2206.06232.
ASAM: Kwon et al., ICML 2021, arXiv 2102.11600. RSAM: Liu et al., CVPR 2022 ("Random Sharpness-Aware Minimization").
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from mooring.kernels import random
from mooring.kernels.eager import row_sums
from mooring.perturb import compiled
from mooring.perturb.frame import Perturbed, Stage, check_size
from mooring.perturb.noise import draw, filter_norms
from mooring.perturb.weights import Member, widened
from mooring.step.processes import Processes
from mooring.step.shards import all_sum, ordered_sum, sharding

_FLOOR = 1e-12
SCOPES = ("global", "local")


class Ascent(Perturbed):
    """What the family shares: a first gradient says where to go, the second one, taken there, is the step's.

    The step is taken from the true weights. Costs two gradients and one copy of the weights per step.
    """

    _kind = "plain"  # for the kernels

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float,
        options: dict[str, Any] | None = None,
        *,
        norm: str = "global",
        seed: int = 0,
        model: nn.Module | None = None,
        clean_forward: bool = True,
    ) -> None:
        if norm not in SCOPES:
            raise ValueError(f"norm must be one of {', '.join(map(repr, SCOPES))}, got {norm!r}")
        options = {"rho": rho, **(options or {})}
        super().__init__(base, options, model=model, seed=seed, clean_forward=clean_forward, config={"norm": norm})

    @override
    def _check_group(self, group: dict[str, Any]) -> None:
        check_size(group, "rho")

    @override
    def _stages(self) -> list[Stage]:
        if all(group["rho"] == 0 for group in self.param_groups):
            return [Stage()]
        return [Stage(weight=0.0), Stage(self._climb)]

    @override
    def _syncs_early(self, stage: Stage) -> bool:
        # The direction of the ascent is that of all processes' gradient, unless it was asked to be each one's own.
        return self._config["norm"] == "global" and stage.gradient and stage.weight == 0.0

    # The ascent.

    def _direction(self, member: Member, wide: Tensor, g: Tensor) -> Tensor:
        """The tensor whose global norm scales the ascent; fresh."""
        return g.clone()

    def _climb(self) -> None:
        self._weights.save()
        scale = self._scaler.scale(torch.ones((), device=self._weights.members[0].p.device)) if self._scaler else None
        norm = self._total_norm()

        def offset(member: Member, wide: Tensor) -> Tensor | None:
            g = self._gradient(member, wide)
            return None if g is None else self._ascent(member, wide, g, norm, scale)

        def numbers(member: Member) -> tuple[float, float, float, float]:
            return self._numbers(member, float(norm), 1.0 if scale is None else float(scale))

        self._weights.place(offset, lambda pairs: compiled.climb(pairs, self._kind, numbers))

    def _eta(self, member: Member) -> float:
        """For the kernels: what is added to |weight| in the direction; below 0 where the weight is not in it."""
        return -1.0

    def _numbers(self, member: Member, norm: float, scale: float) -> tuple[float, float, float, float]:
        """For the kernels: :meth:`_ascent` in numbers; see :func:`mooring.perturb.compiled.climb`."""
        return float(member.group["rho"]) / (norm + _FLOOR) + norm * 0, self._eta(member), 0.0, 1.0

    def _ascent(self, member: Member, wide: Tensor, g: Tensor, norm: Tensor, scale: Tensor | None) -> Tensor:
        """``rho * direction / norm``; the loss's scale cancels."""
        return self._direction(member, wide, g).mul_(self._factor(member, norm, wide))

    def _factor(self, member: Member, norm: Tensor, wide: Tensor) -> Tensor:
        # An infinite gradient would climb by nothing, and the step would be taken; now it is not a number anywhere.
        return (float(member.group["rho"]) / (norm + _FLOOR) + norm * 0).to(device=wide.device, dtype=wide.dtype)

    @staticmethod
    def _gradient(member: Member, wide: Tensor) -> Tensor | None:
        g = member.gradient()
        return None if g is None else g.to(wide.dtype)

    def _total_norm(self) -> Tensor:
        """The norm of the direction over all tensors, 0-dim float64, the same on every process that holds any."""
        parts, axes, positions = [], [], []
        known = compiled.squares(self._weights.pairs, self._kind, self._eta)
        for i, (member, saved) in enumerate(self._weights.pairs):
            if member.p.grad is not None:
                parts.append(known[i] if i in known else self._squares(member, saved))
                axes.append(sharding(member.p, 0).axes if self._config["norm"] == "global" else ())
                positions.append([i])
        return self._over_model(all_sum(list(zip(parts, axes))), positions).sqrt()

    def _squares(self, member: Member, saved: Tensor) -> Tensor:
        """The sum of squares of one direction, (1,) float64."""
        wide = widened(saved)
        g = self._gradient(member, wide)
        assert g is not None
        x = torch.view_as_real(g) if g.is_complex() else self._direction(member, wide, g)
        return row_sums((x * x).reshape(1, -1))

    def _over_model(self, squares: list[Tensor], positions: list[list[int]]) -> Tensor:
        """Add squares of all tensors, complete over their shards, over the stages of the base's pipeline too."""
        nothing = torch.zeros((), dtype=torch.float64, device=self._weights.members[0].p.device)
        total = ordered_sum(squares, positions) if squares else nothing
        if self._config["norm"] == "local":
            return total
        return Processes(getattr(self.base, "process_group", None)).over_model(total.reshape(1))[0]

    @override
    def _describe(self) -> str:
        rhos = sorted({f"{group['rho']:g}" for group in self.param_groups})
        return f"{type(self).__name__}(rho={'/'.join(rhos)}; {self.gradients_per_step} gradients per step)"


class SAM(Ascent):
    """Sharpness-aware minimization around any torch optimizer (Foret et al., ICLR 2021, arXiv 2010.01412).

    The base sees the gradient at ``W + e`` and steps from W::

        e = rho * g / (|g| + 1e-12)                |g| over all tensors

    Args:
        base: any torch optimizer. Its groups get the option ``rho``.
        rho: radius of the ascent; 0 takes the base's own step. A group may have its own.
        norm: ``"global"``: of the gradient averaged over all processes; ``"local"``: of each process's own under DDP,
            which then climbs by itself (the m-sharpness of the paper) and saves a reduction.
        model: the module; needed for running statistics, DDP's ``no_sync`` and sharded weights.

    Raises:
        TypeError: if base is no optimizer.
        ValueError: for an option out of range.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 1)
        >>> sam = mo.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> sam.zero_grad()
        >>> for pass_ in sam.passes():
        ...     with pass_:
        ...         pass_.backward(model(torch.ones(8, 4)).square().mean())
        >>> sam.step()
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.05,
        *,
        norm: str = "global",
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base, rho, norm=norm, model=model)


class USAM(Ascent):
    """SAM without the normalisation (Andriushchenko and Flammarion, ICML 2022, arXiv 2206.06232).

    ``e = rho * g``; see :class:`SAM` for the arguments. With a GradScaler the scale is divided out of g.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 1)
        >>> sam = mo.USAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    """

    _kind = "unscaled"

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.05,
        *,
        norm: str = "global",
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base, rho, norm=norm, model=model)

    @override
    def _total_norm(self) -> Tensor:
        """Not the norm, which nobody needs: 0, or NaN where a gradient of this process is not finite."""
        found = torch.zeros((), dtype=torch.float64)
        for member in self._weights.members:
            g = member.gradient()
            if g is not None and g.numel():
                flag = torch.linalg.vector_norm(g, math.inf).double() * 0
                found = found.to(flag.device, non_blocking=True) + flag
        return found

    @override
    def _numbers(self, member: Member, norm: float, scale: float) -> tuple[float, float, float, float]:
        return float(member.group["rho"]), -1.0, norm, scale

    @override
    def _ascent(self, member: Member, wide: Tensor, g: Tensor, norm: Tensor, scale: Tensor | None) -> Tensor:
        # Behind a sigmoid an infinite weight would be forgotten, and the step be taken.
        climbed = g * float(member.group["rho"]) + norm.to(device=g.device, dtype=g.dtype)
        return climbed if scale is None else climbed.div_(scale.to(climbed.dtype))


class ASAM(Ascent):
    """Adaptive SAM, invariant to the scale of the weights (Kwon et al., ICML 2021, arXiv 2102.11600).

    ::

        e = rho * T^2 g / (|T g| + 1e-12),      T = |W|

    With ``eta > 0``, as the paper has it, ``T = |W| + eta`` on parameters whose name ends in ``weight`` and 1 on all
    others; that needs names (``named_parameters()``).

    Args:
        base: any torch optimizer. Its groups get the options ``rho`` and ``eta``.
        rho: radius of the ascent; 0 takes the base's own step.
        eta: added to |W|; the paper uses 0.01.
        norm: see :class:`SAM`.
        model: see :class:`SAM`.

    Raises:
        ValueError: for an option out of range, or ``eta > 0`` without names.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 1)
        >>> sam = mo.ASAM(torch.optim.SGD(model.named_parameters(), lr=0.1), rho=0.5, eta=0.01)
    """

    _kind = "adaptive"

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.5,
        *,
        eta: float = 0.0,
        norm: str = "global",
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base, rho, {"eta": eta}, norm=norm, model=model)

    @override
    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_size(group, "eta")
        if group["eta"] > 0 and "param_names" not in group and not _named(group):
            raise ValueError(
                f"eta={group['eta']!r} acts on parameters named weight, and this optimizer knows no names; "
                "build the base with model.named_parameters()"
            )

    @staticmethod
    def _size(member: Member, wide: Tensor) -> Tensor | None:
        """T; None is one."""
        eta = float(member.group["eta"])
        if eta == 0:
            return wide.abs()
        return wide.abs().add_(eta) if member.name.rpartition(".")[2] == "weight" else None

    @override
    def _eta(self, member: Member) -> float:
        eta = float(member.group["eta"])
        return eta if eta == 0 or member.name.rpartition(".")[2] == "weight" else -1.0

    @override
    def _direction(self, member: Member, wide: Tensor, g: Tensor) -> Tensor:
        size = self._size(member, wide)
        return g.clone() if size is None else size.mul_(g)

    @override
    def _ascent(self, member: Member, wide: Tensor, g: Tensor, norm: Tensor, scale: Tensor | None) -> Tensor:
        climbed = super()._ascent(member, wide, g, norm, scale)
        size = self._size(member, wide)
        return climbed if size is None else climbed.mul_(size)


class RSAM(Ascent):
    """Random SAM: the first gradient is taken at noisy weights (Liu et al., CVPR 2022).

    ::

        g1 = g(W + U),      U = sigma * |filter| * N(0, 1)
        e  = rho * g1 / n,  n^2 = sum over tensors of (|g1| + |U|)^2
        the base sees g(W + e) and steps from W

    A filter is a kernel of a tensor of four dimensions or a row of a matrix; other tensors get noise of size sigma.

    Args:
        base: any torch optimizer. Its groups get the options ``rho``, ``sigma``, ``noise_seed``, ``noise_draws``.
        rho: radius of the ascent; 0 takes the base's own step.
        sigma: size of the noise.
        norm: see :class:`SAM`.
        seed: of the noise.
        model: see :class:`SAM`.
        clean_forward: see :class:`mooring.NSO`; no pass of RSAM is at the true weights.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 1)
        >>> sam = mo.RSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, sigma=0.01)
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.05,
        sigma: float = 0.01,
        *,
        norm: str = "global",
        seed: int = 0,
        model: nn.Module | None = None,
        clean_forward: bool = True,
    ) -> None:
        super().__init__(base, rho, {"sigma": sigma}, norm=norm, seed=seed, model=model, clean_forward=clean_forward)

    @override
    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_size(group, "sigma")

    @override
    def _stages(self) -> list[Stage]:
        if all(group["rho"] == 0 for group in self.param_groups):
            return [Stage()]
        return [Stage(self._shake, weight=0.0), Stage(self._climb)]

    def _noise(self, member: Member, wide: Tensor) -> Tensor:
        group = member.group
        noise = draw(member, "normal", random.key("rsam", group["noise_seed"], group["noise_draws"], member.name))
        noise.mul_(float(group["sigma"]))
        size = filter_norms(member, wide)
        return noise if size is None else noise.mul_(size)

    def _shake(self) -> None:
        self._weights.place(self._noise)

    @override
    def _total_norm(self) -> Tensor:
        squares, axes, positions = [], [], []
        for i, (member, saved) in enumerate(zip(self._weights.members, self._weights.saved)):
            g = self._gradient(member, saved)
            if g is not None:
                u = self._noise(member, saved)
                squares.append(torch.cat([row_sums((x * x).reshape(1, -1)) for x in (g, u)]))
                axes.append(sharding(member.p, 0).axes if self._config["norm"] == "global" else ())
                positions.append([i])
        home = self._weights.members[0].p.device
        scale = 1.0 if self._scaler is None else self._scaler.scale(torch.ones((), device=home)).double()
        norms = [s.sqrt() for s in all_sum(list(zip(squares, axes)))]
        return self._over_model([(g + u * scale).square().reshape(1) for g, u in norms], positions).sqrt()


def _named(group: dict[str, Any]) -> bool:
    params = group.get("params")
    return isinstance(params, (list, tuple)) and bool(params) and isinstance(params[0], tuple)
