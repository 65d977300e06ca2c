"""The Hessian of a loss over all trainable weights together, as an operator: its trace and its largest eigenvalues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor]
"""The mean loss of a model over one batch."""


@dataclass(frozen=True)
class Estimate:
    """A mean over probes.

    Attributes:
        value: the mean.
        error: its standard error; NaN for a single probe.
        probes: how many.
    """

    value: float
    error: float
    probes: int


class Hessian:
    """The Hessian of ``sum_b w_b loss(model, b)`` over batches, ``w_b`` proportional to their sizes.

    It is never formed: a product with a vector costs two backward passes over each batch, one batch at a time, so
    memory does not grow with their number. The model is measured in evaluation mode (no dropout, fixed running
    statistics) and is left as it was found: mode, gradients and buffers. Attention runs on the mathematical
    implementation, the one that can be differentiated twice.

    Args:
        model: the module; parameters with ``requires_grad`` count, all of them jointly.
        loss: the mean loss over one batch.
        batches: what ``loss`` is given, one after the other.
        sizes: how many examples each batch has; equal where not given.

    Raises:
        ValueError: without trainable parameters, without batches, or where ``sizes`` has another length.

    Example:
        >>> import torch
        >>> from mooring.measure import Hessian
        >>> model = torch.nn.Linear(3, 1)
        >>> hessian = Hessian(model, lambda m, x: m(x).square().mean(), [torch.ones(4, 3)])
        >>> round(hessian.top(1)[0], 4)
        8.0
    """

    def __init__(
        self, model: nn.Module, loss: Loss, batches: Sequence[Any], sizes: Sequence[float] | None = None
    ) -> None:
        self.model, self.loss, self.batches = model, loss, list(batches)
        self.params = [p for p in model.parameters() if p.requires_grad and p.numel()]
        if not self.params:
            raise ValueError("model has no parameter with requires_grad=True")
        if not self.batches:
            raise ValueError("batches must hold at least one batch")
        if sizes is not None and len(sizes) != len(self.batches):
            raise ValueError(f"sizes must have one number per batch ({len(self.batches)}), got {len(sizes)}")
        weights = [1.0] * len(self.batches) if sizes is None else [float(s) for s in sizes]
        self.weights = [w / sum(weights) for w in weights]

    @property
    def size(self) -> int:
        """How many weights there are."""
        return sum(p.numel() for p in self.params)

    def product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """H v, in the shapes of the parameters.

        Args:
            vector: one tensor per trainable parameter, in its shape.
        """
        total = [torch.zeros_like(p) for p in self.params]
        with _measuring(self.model), torch.enable_grad():
            for batch, weight in zip(self.batches, self.weights):
                loss = self.loss(self.model, batch)
                slopes = torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)
                along = sum(((g * v).sum() for g, v in zip(slopes, vector) if g is not None), loss.new_zeros(()))
                if not along.requires_grad:  # the loss is linear in every weight
                    continue
                curved = torch.autograd.grad(along, self.params, allow_unused=True)
                for t, h in zip(total, curved):
                    if h is not None:
                        t.add_(h.detach(), alpha=weight)
        return total

    def trace(self, probes: int = 64, seed: int = 0) -> Estimate:
        """Trace of H by Hutchinson's estimator: the mean of ``v·Hv`` over random signs v.

        Its variance is twice the sum of the squared off-diagonal elements. The same seed gives the same probes for
        every model of one shape, so differences between models are less noisy than each value.

        Args:
            probes: how many vectors; each costs one product.
            seed: of the signs.
        """
        if probes < 1:
            raise ValueError(f"probes must be >= 1, got {probes!r}")
        generator = torch.Generator().manual_seed(seed)
        values = []
        for _ in range(probes):
            signs = [torch.randint(0, 2, p.shape, generator=generator).mul_(2).sub_(1).to(p) for p in self.params]
            products = self.product(signs)
            values.append(float(sum((v.double() * h.double()).sum() for v, h in zip(signs, products))))
        mean = sum(values) / probes
        if probes == 1:
            return Estimate(mean, float("nan"), 1)
        variance = sum((x - mean) ** 2 for x in values) / (probes - 1)
        return Estimate(mean, (variance / probes) ** 0.5, probes)

    def top(self, k: int = 1, tolerance: float = 1e-4, seed: int = 0) -> list[float]:
        """The k algebraically largest eigenvalues, largest first, by Lanczos iteration (ARPACK, through scipy).

        Args:
            k: how many; less than the number of weights.
            tolerance: relative accuracy.
            seed: of the starting vector.

        Raises:
            ImportError: without scipy (``pip install "mooring[cli]"``).
            ValueError: for k out of range.
        """
        if not 1 <= k < self.size:
            raise ValueError(f"k must be between 1 and {self.size - 1} (the number of weights less one), got {k!r}")
        try:
            import numpy as np
            from scipy.sparse.linalg import LinearOperator, eigsh
        except ImportError as error:
            raise ImportError('eigenvalues need scipy: pip install "mooring[cli]"') from error

        def multiply(x: Any) -> Any:
            flat = torch.as_tensor(np.ascontiguousarray(x).reshape(-1))
            return self._join(self.product(self._split(flat))).numpy()

        operator = LinearOperator((self.size, self.size), matvec=multiply, dtype=np.float64)
        start = np.random.default_rng(seed).standard_normal(self.size)
        found = eigsh(operator, k=k, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
        return sorted((float(x) for x in found), reverse=True)

    def dense(self) -> Tensor:
        """The matrix itself, (size, size) float64: one product per weight. For small models and for checks."""
        columns = []
        for i in range(self.size):
            unit = torch.zeros(self.size, dtype=torch.float64)
            unit[i] = 1
            columns.append(self._join(self.product(self._split(unit))))
        return torch.stack(columns, dim=1)

    def _split(self, flat: Tensor) -> list[Tensor]:
        pieces = torch.split(flat, [p.numel() for p in self.params])
        return [x.reshape(p.shape).to(p) for x, p in zip(pieces, self.params)]

    @staticmethod
    def _join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.reshape(-1).double().cpu() for t in tensors])


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and twice differentiable attention; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
