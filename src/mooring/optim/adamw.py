"""AdamW, the baseline, as a recipe on our step."""

from __future__ import annotations

from typing_extensions import Unpack

from mooring.moments.adam import Adam
from mooring.optim.base import Optimizer, ParamsT
from mooring.optim.common import CommonOptions
from mooring.rules import DecoupledDecay


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101).

    ::

        p <- p - min(lr * weight_decay, 1) * p - lr * m̂ / (sqrt(v̂) + eps)

    Equal to ``torch.optim.AdamW`` within two units in the last place per step, and interchangeable with it in
    checkpoints. State: 8 bytes per float32 element (12 with amsgrad). Reads p, g, m, v and writes p, m, v once.

    Args:
        params: parameters, ``named_parameters()``, or groups.
        lr: learning rate, a number or a 0-dim tensor.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the bias-corrected second moment.
        weight_decay: decay toward zero per unit of learning rate.
        amsgrad: use the running maximum of the second moment.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.AdamW(model.parameters(), lr=1e-3)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        options = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize)
        super().__init__(params, options, Adam(), [DecoupledDecay()], common)
