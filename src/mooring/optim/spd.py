"""AdamSPD and SGDSPD: Tian, Huang and Kira, NeurIPS 2024.

"Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models", arXiv 2411.01713.
"""

from __future__ import annotations

from typing_extensions import Unpack

from mooring.moments.adam import Adam
from mooring.moments.sgd import Momentum
from mooring.optim.base import Optimizer, ParamsT, announce_anchored_decay
from mooring.optim.common import CommonOptions
from mooring.rules import DecoupledDecay, SelectiveProjection

# The paper's rule; a decay, where asked for, goes to the anchor, and to zero in groups that have none.
RECIPE = [DecoupledDecay(toward="anchor"), DecoupledDecay(free_only=True), SelectiveProjection()]


class AdamSPD(Optimizer):
    """Adam with selective projection decay toward the pretrained weights (arXiv 2411.01713).

    A tensor is pulled back toward its anchor only where the gradient says that it has moved too far; see
    :class:`mooring.rules.SelectiveProjection`. The anchor is what the weights are at the first step with a learning
    rate other than 0. State: 12 bytes per float32 element (8 with ``anchor="zero"``). 11 passes over memory
    where AdamW has 7 (9 with ``anchor="zero"``): the four inner products are known only after a first run over p.

    Args:
        params: parameters, ``named_parameters()``, or groups. A new head, which has no pretrained value, goes into a
            group with ``anchor=None``.
        lr: learning rate, a number or a 0-dim tensor.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the bias-corrected second moment.
        weight_decay: decoupled decay toward the *anchor*, per unit of learning rate; toward zero in groups without
            one. The paper has none (its authors call ``strength`` weight_decay).
        amsgrad: use the running maximum of the second moment.
        strength: the paper's lambda, dimensionless; 1 projects onto the previous radius, 0 switches SPD off.
        anchor: ``"capture"``, ``"zero"`` (for LoRA factors), None for no anchor, or where the
            pretrained weights are: a safetensors file, a folder of them or of
            torch.distributed.checkpoint, or a hub id; see docs/anchors.md.
        anchor_store: where the anchor is kept: ``"device"``, ``"bfloat16"``, ``"cpu"`` or ``"mmap"``.
        anchor_file: the file to which a captured anchor is written with the stores ``"cpu"`` and ``"mmap"``.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        ValueError: for an option out of range, a complex parameter, or a checkpoint without its anchor.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> backbone, head = model[0], model[2]
        >>> groups = [{"params": backbone.parameters()}, {"params": head.parameters(), "anchor": None}]
        >>> opt = mo.AdamSPD(groups, lr=1e-5, strength=1.0)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> opt.step()
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
        strength: float = 1.0,
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
            strength=strength,
            anchor=anchor,
            anchor_store=anchor_store,
            anchor_file=anchor_file,
            maximize=maximize,
        )
        super().__init__(params, options, Adam(), RECIPE, common)
        announce_anchored_decay(type(self).__name__, self.param_groups)


class SGDSPD(Optimizer):
    """SGD with selective projection decay toward the pretrained weights (arXiv 2411.01713).

    The plain step is SGD's with torch's momentum buffer; see :class:`mooring.rules.SelectiveProjection` and
    :class:`AdamSPD`. State: 8 bytes per float32 element with momentum (4 with ``anchor="zero"``).

    Args:
        params: parameters, ``named_parameters()``, or groups. A new head, which has no pretrained value, goes into a
            group with ``anchor=None``.
        lr: learning rate, a number or a 0-dim tensor.
        momentum: factor of the buffer, in [0, 1).
        dampening: fraction of the gradient kept out of the buffer.
        weight_decay: decoupled decay toward the *anchor*, per unit of learning rate; toward zero in groups without one.
        nesterov: Nesterov momentum; needs momentum > 0 and dampening 0.
        strength: the paper's lambda, dimensionless; 1 projects onto the previous radius, 0 switches SPD off.
        anchor: ``"capture"``, ``"zero"`` (for LoRA factors), None for no anchor, or where the
            pretrained weights are: a safetensors file, a folder of them or of
            torch.distributed.checkpoint, or a hub id; see docs/anchors.md.
        anchor_store: where the anchor is kept: ``"device"``, ``"bfloat16"``, ``"cpu"`` or ``"mmap"``.
        anchor_file: the file to which a captured anchor is written with the stores ``"cpu"`` and ``"mmap"``.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        ValueError: for an option out of range, a complex parameter, or a checkpoint without its anchor.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.SGDSPD(model.parameters(), lr=0.01, momentum=0.9)
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
        strength: float = 1.0,
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
            strength=strength,
            anchor=anchor,
            anchor_store=anchor_store,
            anchor_file=anchor_file,
            maximize=maximize,
        )
        super().__init__(params, options, Momentum(), RECIPE, common)
        announce_anchored_decay(type(self).__name__, self.param_groups)
