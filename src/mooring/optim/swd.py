"""AdamS and SGDS: Xie et al., "On the Overlooked Pitfalls of Weight Decay and How to Mitigate Them", NeurIPS 2023."""

from __future__ import annotations

from typing_extensions import Unpack

from mooring.moments.adam import Adam
from mooring.moments.sgd import Momentum
from mooring.optim.base import Optimizer, ParamsT
from mooring.optim.common import CommonOptions
from mooring.rules import StableDecay


class AdamS(Optimizer):
    """Adam with stable weight decay (arXiv 2011.11152).

    AdamW's decay is as strong for a tensor with large gradients, which takes small effective steps, as for one with
    small gradients. Here the decay follows the effective learning rate::

        v̄ = mean of v̂ over all elements of all parameters that have a gradient
        p <- p - min(lr * weight_decay / sqrt(v̄), 1) * p - lr * m̂ / (sqrt(v̂) + eps)         (no decay while v̄ = 0)

    ``weight_decay`` is not AdamW's: 5e-4 here is about 0.5 there at lr 1e-3. v̄ depends on the gradient's scale, so
    give it unscaled, clipped gradients. State: 8 bytes per float32 element and one number per tensor. Beside AdamW's
    traffic it reads g once more.

    Args:
        params: parameters, ``named_parameters()``, or groups.
        lr: learning rate, a number or a 0-dim tensor.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the bias-corrected second moment.
        weight_decay: decay toward zero per unit of effective learning rate.
        amsgrad: use the running maximum of the second moment, for v̄ too.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.AdamS(model.parameters(), lr=1e-3, weight_decay=5e-4)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        options = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize)
        super().__init__(params, options, Adam(track_sum=True), [StableDecay()], common)


class SGDS(Optimizer):
    """SGD with stable weight decay (arXiv 2011.11152).

    ::

        b <- momentum * b + (1 - dampening) * g          (the first buffer is g itself)
        p <- p - min(lr * weight_decay * (1 - dampening) / (1 - momentum), 1) * p - lr * b

    The shrink is the one that L2 in the buffer reaches only after many steps, from the first step on.
    State: 4 bytes per float32 element with momentum.

    Args:
        params: parameters, ``named_parameters()``, or groups.
        lr: learning rate, a number or a 0-dim tensor.
        momentum: factor of the buffer, in [0, 1).
        dampening: fraction of the gradient kept out of the buffer.
        weight_decay: decay toward zero per unit of effective learning rate.
        nesterov: Nesterov momentum; needs momentum > 0 and dampening 0.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.SGDS(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
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
        super().__init__(params, options, Momentum(), [StableDecay()], common)
