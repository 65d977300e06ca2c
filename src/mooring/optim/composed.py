"""Bases for your own recipes: moments with any list of rules."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Unpack

from mooring.moments.adai import Adai as AdaiMoments
from mooring.moments.adam import Adam as AdamMoments
from mooring.moments.sgd import Momentum
from mooring.optim.base import Optimizer, ParamsT
from mooring.optim.common import CommonOptions
from mooring.optim.compose import compose
from mooring.rules import CoupledDecay, DecoupledDecay
from mooring.step.rule import Rule


class Adam(Optimizer):
    """Adam with any rules: projection, decay, trust ratio, selective projection, in that order.

    Without rules it is ``torch.optim.Adam``. With them::

        u  from the moments (of g + weight_decay * (p - target), with CoupledDecay)
        u  <- u - A <p̂, u> p̂                                  RadialProjection
        s   = lr * u + min(lr * weight_decay * scale * rho, 1) * (p - target)
        s  <- s * lr |p| / |s|                                 TrustRatio
        p  <- p - s, contracted toward the anchor              SelectiveProjection

    State: 8 bytes per float32 element, 4 more for an anchor and with amsgrad. Each rule adds what its own docstring
    says.

    Args:
        params: parameters, ``named_parameters()``, or groups.
        lr: learning rate, a number or a 0-dim tensor.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the bias-corrected second moment.
        weight_decay: coupled decay (L2), as torch's Adam; not beside a decay in ``rules``.
        amsgrad: use the running maximum of the second moment.
        rules: what is done with the update direction, in order; see ``mooring.rules``.
        nesterov: Nesterov momentum as in AdamP's released code.
        anchor: where a rule needs one: ``"capture"``, ``"zero"``, None for no anchor, or where the
            pretrained weights are: a safetensors file, a folder of them or of
            torch.distributed.checkpoint, or a hub id; see docs/anchors.md.
        anchor_store: where the anchor is kept: ``"device"``, ``"bfloat16"``, ``"cpu"`` or ``"mmap"``.
        anchor_file: the file to which a captured anchor is written with the stores ``"cpu"`` and ``"mmap"``.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        TypeError: for something in ``rules`` that is not a rule.
        ValueError: for an option out of range, rules in the wrong order, or rules that exclude each other.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> rules = [mo.RadialProjection(), mo.StableDecay(5e-4), mo.SelectiveProjection(1.0)]
        >>> opt = mo.Adam(model.parameters(), lr=1e-3, rules=rules)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        rules: Sequence[Rule] = (),
        nesterov: bool = False,
        anchor: str | None = "capture",
        anchor_store: str = "device",
        anchor_file: str | None = None,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        options = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            nesterov=nesterov,
            maximize=maximize,
        )
        anchored = dict(anchor=anchor, anchor_store=anchor_store, anchor_file=anchor_file)
        recipe = compose(rules, options, CoupledDecay(), anchored)
        scans = any(rule.needs_stable_scale for rule in recipe)
        super().__init__(params, options, AdamMoments(track_sum=scans, nesterov=True), recipe, common)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``, and with any rules.

    ::

        g <- g + weight_decay * p
        b <- momentum * b + (1 - dampening) * g          (the first buffer is g itself)
        p <- p - lr * b                                  (nesterov: p - lr * (g + momentum * b))

    Rules change the step as in :class:`Adam`. State: 4 bytes per float32 element with momentum, else none; 4 more for
    an anchor.

    Args:
        params: parameters, ``named_parameters()``, or groups.
        lr: learning rate, a number or a 0-dim tensor.
        momentum: factor of the buffer, in [0, 1).
        dampening: fraction of the gradient kept out of the buffer.
        weight_decay: coupled decay (L2), added to the gradient; not beside a decay in ``rules``.
        nesterov: Nesterov momentum; needs momentum > 0 and dampening 0.
        rules: what is done with the update direction, in order; see ``mooring.rules``.
        anchor: where a rule needs one: ``"capture"``, ``"zero"``, None for no anchor, or where the
            pretrained weights are: a safetensors file, a folder of them or of
            torch.distributed.checkpoint, or a hub id; see docs/anchors.md.
        anchor_store: where the anchor is kept: ``"device"``, ``"bfloat16"``, ``"cpu"`` or ``"mmap"``.
        anchor_file: the file to which a captured anchor is written with the stores ``"cpu"`` and ``"mmap"``.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        TypeError: for something in ``rules`` that is not a rule.
        ValueError: for an option out of range, rules in the wrong order, or rules that exclude each other.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        rules: Sequence[Rule] = (),
        anchor: str | None = "capture",
        anchor_store: str = "device",
        anchor_file: str | None = None,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        options = dict(
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )
        anchored = dict(anchor=anchor, anchor_store=anchor_store, anchor_file=anchor_file)
        super().__init__(params, options, Momentum(), compose(rules, options, CoupledDecay(), anchored), common)


class Adai(Optimizer):
    """Adaptive inertia (Xie et al., ICML 2022, arXiv 2006.15815): momentum per element, no adaptive step size.

    See :class:`mooring.moments.adai.Adai` for the moments. ``weight_decay`` is coupled; a decay in ``rules`` replaces
    it. State: 12 bytes per float32 element and one number per tensor; one more pass over the gradient, because the
    moments need the mean of v̂ over the whole model.

    Args:
        params: parameters, ``named_parameters()``, or groups.
        lr: learning rate, of the size used with SGD; it has no default.
        betas: the inertia's scale and the decay rate of the second moment.
        eps: 1 - eps is the largest momentum.
        weight_decay: coupled decay (L2).
        rules: what is done with the update direction, in order; see ``mooring.rules``.
        anchor: where a rule needs one: ``"capture"``, ``"zero"``, None for no anchor, or where the
            pretrained weights are: a safetensors file, a folder of them or of
            torch.distributed.checkpoint, or a hub id; see docs/anchors.md.
        anchor_store: where the anchor is kept: ``"device"``, ``"bfloat16"``, ``"cpu"`` or ``"mmap"``.
        anchor_file: the file to which a captured anchor is written with the stores ``"cpu"`` and ``"mmap"``.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        TypeError: for something in ``rules`` that is not a rule.
        ValueError: for an option out of range, rules in the wrong order, or rules that exclude each other.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.Adai(model.parameters(), lr=0.1)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float] = (0.1, 0.99),
        eps: float = 1e-3,
        weight_decay: float = 0,
        *,
        rules: Sequence[Rule] = (),
        anchor: str | None = "capture",
        anchor_store: str = "device",
        anchor_file: str | None = None,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        options = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)
        anchored = dict(anchor=anchor, anchor_store=anchor_store, anchor_file=anchor_file)
        super().__init__(params, options, AdaiMoments(), compose(rules, options, CoupledDecay(), anchored), common)


class AdaiS(Optimizer):
    """Adai with stable, that is decoupled, weight decay (Xie et al., NeurIPS 2023, arXiv 2011.11152).

    ``p <- p - min(lr * weight_decay, 1) * p - lr * u``: Adai's effective learning rate is lr, so its stable decay is
    the decoupled one. State and cost are :class:`Adai`'s.

    Args:
        params: parameters, ``named_parameters()``, or groups.
        lr: learning rate, of the size used with SGD; it has no default.
        betas: the inertia's scale and the decay rate of the second moment.
        eps: 1 - eps is the largest momentum.
        weight_decay: decay toward zero per unit of learning rate.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.AdaiS(model.parameters(), lr=0.1, weight_decay=5e-4)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float] = (0.1, 0.99),
        eps: float = 1e-3,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        options = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)
        super().__init__(params, options, AdaiMoments(), [DecoupledDecay()], common)
