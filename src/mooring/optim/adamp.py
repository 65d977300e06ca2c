"""AdamP and SGDP: Heo et al., ICLR 2021.

"AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", arXiv 2006.08217.
"""

from __future__ import annotations

from typing_extensions import Unpack

from mooring.moments.adam import Adam
from mooring.moments.sgd import Momentum
from mooring.optim.base import Optimizer, ParamsT
from mooring.optim.common import CommonOptions
from mooring.rules import BufferHorizonDecay, DecoupledDecay, RadialProjection


class AdamP(Optimizer):
    """AdamW whose update loses its radial part where the weights are scale invariant (arXiv 2006.08217).

    Weights that feed a normalisation layer do not change the function when they are scaled. Momentum inflates them and
    so shrinks their effective step. See :class:`mooring.rules.RadialProjection` for the test and the projection::

        p <- p - min(lr * weight_decay * rho, 1) * p - lr * (u - p̂ <p̂, u>)       rho = wd_ratio if projected, else 1

    The test never projects tensors of fewer than two dimensions. State: 8 bytes per float32 element, as AdamW. 10
    passes over memory where AdamW has 7, because the four inner products are known only after a first run over p.

    Args:
        params: parameters, ``named_parameters()``, or groups; a group may set ``row_dim=1`` where output channels are
            stored in the second dimension (ConvTranspose, GPT-2's Conv1D).
        lr: learning rate, a number or a 0-dim tensor.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the bias-corrected second moment; floor of the norms in the cosine test.
        weight_decay: decay toward zero per unit of learning rate.
        delta: threshold of the cosine test; 0 never projects.
        wd_ratio: factor on the decay of projected tensors.
        nesterov: Nesterov momentum as in the authors' code.
        scale_invariant: ``"test"``, or what is declared invariant instead of being tested: ``"row"``, ``"tensor"``,
            ``"none"``. Best set per group: ``param_groups(model, scale_invariant=...)``.
        amsgrad: use the running maximum of the second moment.
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        ValueError: for an option out of range, or a complex parameter.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> opt = mo.AdamP(model.parameters(), lr=1e-3, weight_decay=1e-2)
        >>> model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        *,
        scale_invariant: str = "test",
        amsgrad: bool = False,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        options = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            delta=delta,
            scale_invariant=scale_invariant,
            wd_ratio=wd_ratio,
            nesterov=nesterov,
            amsgrad=amsgrad,
            maximize=maximize,
        )
        super().__init__(params, options, Adam(nesterov=True), [RadialProjection(), DecoupledDecay()], common)


class SGDP(Optimizer):
    """SGD with momentum whose update loses its radial part where the weights are scale invariant (arXiv 2006.08217).

    ::

        b <- momentum * b + (1 - dampening) * g                     (from zero: the first step is dampened too)
        u  = b, or g + momentum * b with nesterov
        p <- p - min(lr * weight_decay * rho / (1 - momentum), 1) * p - lr * (u - p̂ <p̂, u>)

    The authors' code projects the momentum buffer itself; the paper's algorithm does not. The default follows the
    paper, ``project_buffer=True`` the code. State: 4 bytes per float32 element with momentum.

    Args:
        params: parameters, ``named_parameters()``, or groups.
        lr: learning rate, a number or a 0-dim tensor.
        momentum: factor of the buffer, in [0, 1).
        dampening: fraction of the gradient kept out of the buffer.
        weight_decay: decay toward zero per unit of learning rate, over the buffer's horizon 1/(1-momentum).
        nesterov: Nesterov momentum.
        eps: floor of the norms in the cosine test.
        delta: threshold of the cosine test; 0 never projects.
        wd_ratio: factor on the decay of projected tensors.
        scale_invariant: ``"test"``, or what is declared invariant instead of being tested: ``"row"``, ``"tensor"``,
            ``"none"``. Best set per group: ``param_groups(model, scale_invariant=...)``.
        project_buffer: project the momentum buffer in place (no effect with nesterov).
        maximize: ascend.
        common: see :class:`mooring.optim.common.CommonOptions`.

    Raises:
        ValueError: for an option out of range, or a complex parameter.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> opt = mo.SGDP(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-5)
        >>> model(torch.randn(2, 3, 8, 8)).square().sum().backward()
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
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        scale_invariant: str = "test",
        project_buffer: bool = False,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        options = dict(
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            eps=eps,
            delta=delta,
            scale_invariant=scale_invariant,
            wd_ratio=wd_ratio,
            project_buffer=project_buffer,
            maximize=maximize,
        )
        super().__init__(params, options, Momentum(zero_start=True), [RadialProjection(), BufferHorizonDecay()], common)
