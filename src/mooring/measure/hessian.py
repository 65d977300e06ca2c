"""The Hessian of a loss over all trainable weights together, as an operator: trace, eigenvalues, density, blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mooring.measure.estimate import Estimate, mean_of
from mooring.measure.point import Loss, Point, Progress
from mooring.measure.spectrum import Density, Flat, lanczos
from mooring.perturb.weights import Member
from mooring.step.batch import compute_dtype
from mooring.step.shards import is_sharded, like_shard, local, local_part, whole

__all__ = ["Block", "Estimate", "Hessian", "Loss"]

METHODS = ("auto", "double_backward", "finite_difference")
Which = Literal["largest", "smallest", "magnitude"]
_ARPACK = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}
_SMALL = 16  # below this size a matrix is formed: Lanczos needs more vectors than that
# What torch says where a gradient cannot be differentiated again.
_ONCE_ONLY = (
    "is not implemented",  # "derivative for aten::... is not implemented"
    "once_differentiable",
    "differentiate twice",
    "double backward",
)


@dataclass(frozen=True)
class Block:
    """A diagonal block of the Hessian: the curvature within one parameter or module.

    Attributes:
        name: of the parameter or module.
        size: how many weights.
        trace: of the block.
        top: its largest eigenvalue; None where it was not asked for.
    """

    name: str
    size: int
    trace: Estimate
    top: float | None


class Hessian:
    """The Hessian of ``sum_b w_b loss(model, b)`` over batches, ``w_b`` proportional to their sizes.

    It is never formed: a product with a vector costs two backward passes over each batch, one batch at a time, so
    memory does not grow with their number. The model is measured in evaluation mode (no dropout, fixed running
    statistics) and is left as it was found, also when the loss raises: weights, gradients, buffers, modes and the
    random number generators. Attention runs on the mathematical implementation, the one that can be differentiated
    twice.

    Where gradients cannot be differentiated again (weights sharded by FSDP2, operators without a second derivative),
    products are central differences of gradients::

        H v ~ [g(W + h v) - g(W - h v)] / 2h,      h |v| = step |W|,     step = max(sqrt(eps), 1e-6)

    at the price of one copy of the weights and two gradients per batch. Their error is ``h^2/6`` times the third
    derivative of the gradient along v plus the rounding of a gradient over ``h``. Where curvature changes over
    distances like ``|W|`` the two balance at ``eps^(1/3)``; along the sharpest directions of a network that fits its
    data it changes a hundred times sooner, so the step is smaller, and rounding takes about half of the digits (3e-4
    relative in float32, 1e-9 in float64). Give a larger ``step`` where gradients are rounded more coarsely than
    the weights, as in mixed precision.

    The two kinds of products are two things where the loss has kinks (ReLU, max): double backward sees the curvature
    between kinks, differences over a step also the jumps of the gradient at the kinks that they cross, as noise on the
    weights does (:func:`noise_stability`).

    Under FSDP2 every process constructs it and calls the same methods, with its own part of the data; probes are
    those of one process, and results are the same everywhere.

    Args:
        model: the module; parameters with ``requires_grad`` count, all of them jointly.
        loss: the mean loss over one batch.
        batches: what ``loss`` is given, one after the other; a DataLoader is read anew for every product.
        sizes: how many examples each batch has; equal where not given.
        method: ``"double_backward"``, ``"finite_difference"``, or ``"auto"``: the first where it is possible. The
            attribute of this name says which it has become.
        step: ``h |v| / |W|`` of finite differences; by default the square root of the weights'
            precision and at least 1e-6: 3e-4 in float32, 0.09 in bfloat16.
        params: the parameters that count, if not all: a diagonal block.

    Raises:
        ValueError: without trainable parameters, without batches, where ``sizes`` has another length, or for an
            unknown ``method``.

    Example:
        >>> import torch
        >>> from mooring.measure import Hessian
        >>> model = torch.nn.Linear(3, 1)
        >>> hessian = Hessian(model, lambda m, x: m(x).square().mean(), [torch.ones(4, 3)])
        >>> round(hessian.top(1)[0], 4)
        8.0
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Any],
        sizes: Sequence[float] | None = None,
        *,
        method: str = "auto",
        step: float | None = None,
        params: Sequence[Tensor] | None = None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
        if step is not None and not 0 < step < math.inf:
            raise ValueError(f"step must be a finite number > 0, got {step!r}")
        self.point = Point(model, loss, batches, sizes, params)
        if self.point.sharded:
            if method == "double_backward":
                raise ValueError(
                    "method='double_backward' cannot be used with sharded weights, whose gradients are reduced by "
                    "hooks that cannot be differentiated; use 'finite_difference'"
                )
            method = "finite_difference"
        self.method = method
        self.params = self.point.params
        self.names = self.point.names
        precision = max(torch.finfo(p.dtype).eps for p in self.params)
        self.step = max(precision**0.5, 1e-6) if step is None else float(step)
        self._flat = Flat(self.point)
        self._looked = False

    @property
    def size(self) -> int:
        """How many weights there are."""
        return self.point.size

    # --- products ----------------------------------------------------------------------------------------------------

    def product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """H v, in the shapes of the parameters.

        Args:
            vector: one tensor per trainable parameter, in its shape; for a sharded parameter a DTensor split alike.

        Raises:
            ValueError: where number or shapes of the tensors are others.
        """
        shapes, given = [tuple(p.shape) for p in self.params], [tuple(v.shape) for v in vector]
        if shapes != given:
            raise ValueError(f"vector must have the shapes of the trainable parameters, {shapes}, got {given}")
        products = self._multiply([local(v.detach()) for v in vector])
        return [like_shard(h, p) for h, p in zip(products, self.params)]

    def _multiply(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """This process's part of H v from its part of v, in the compute type."""
        pieces = [v.to(p.device, compute_dtype(p.dtype)) for v, p in zip(vector, self.params)]
        if self.method == "finite_difference":
            return self._difference(pieces)
        try:
            return self._twice(pieces)
        except (RuntimeError, NotImplementedError) as error:
            if self.method == "double_backward" or not any(text in str(error) for text in _ONCE_ONLY):
                raise
        self.method = "finite_difference"
        return self._difference(pieces)

    def _twice(self, vector: Sequence[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(v) for v in vector]
        with self.point.measuring(twice=True), torch.enable_grad():
            for loss, weight in self.point.losses():
                if not loss.requires_grad:
                    continue
                slopes = torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)
                along = sum(
                    ((g * v.to(g)).sum().to(loss) for g, v in zip(slopes, vector) if g is not None), loss.new_zeros(())
                )
                if not along.requires_grad:  # the loss is linear in every weight
                    continue
                if not self._looked:
                    _refuse_once_only(along)
                    self._looked = True
                curved = torch.autograd.grad(along, self.params, allow_unused=True)
                for t, h in zip(total, curved):
                    if h is not None:
                        t.add_(h.detach(), alpha=weight)
        return total

    def _difference(self, vector: Sequence[Tensor]) -> list[Tensor]:
        length = float(self.point.inner(vector, vector).sum().sqrt())
        if length == 0:
            return [torch.zeros_like(v) for v in vector]
        h = self.step * (self.point.norm() or 1.0) / length
        place = {id(p): v for p, v in zip(self.params, vector)}

        def offset(sign: float) -> Callable[[Member, Tensor], Tensor]:
            return lambda member, wide: place[id(member.p)] * (sign * h)

        with self.point.measuring():
            self.point.move(offset(1.0))
            ahead = self.point.gradient()
            self.point.move(offset(-1.0))
            behind = self.point.gradient()
            self.point.back()
        for a, b in zip(ahead, behind):
            a.sub_(b).mul_(1 / (2 * h))
        return ahead

    def _signs(self, generator: torch.Generator) -> list[Tensor]:
        """Random signs, drawn whole on the CPU: the same on every device, and for every sharding."""
        signs = []
        for p in self.params:
            whole_signs = torch.randint(0, 2, p.shape, generator=generator).mul_(2).sub_(1)
            part = local_part(p)
            mine = whole_signs if part is None else whole_signs[part]
            signs.append(mine.to(p.device, compute_dtype(p.dtype)))
        return signs

    # --- the trace ---------------------------------------------------------------------------------------------------

    def trace(self, probes: int = 64, seed: int = 0, progress: Progress | None = None, *, sketch: int = 0) -> Estimate:
        """Trace of H by Hutchinson's estimator: the mean of ``v·Hv`` over random signs v.

        Its variance is twice the sum of the squared off-diagonal elements. The same seed gives the same probes for
        every model of one shape, so differences between models are less noisy than each value.

        With a sketch it is Hutch++ (Meyer et al. 2021, arXiv 2010.09649): ``tr Q'HQ``, with Q an orthonormal basis of
        H times ``sketch`` random vectors, plus the mean of ``w·Hw`` over ``w = v - QQ'v``. That takes out of the
        variance what a few eigenvalues apart from the rest put in. With as many products as without, the error of two
        trained networks was 1/6 in one, with such eigenvalues, and 4/3 in the other.

        Args:
            probes: how many vectors; each costs one product.
            seed: of the signs.
            progress: told after every product.
            sketch: how many vectors to sketch with; each costs two products and a vector of all weights in float64, on
                the CPU of every process.

        Raises:
            ValueError: for a number out of range.
        """
        if not 0 <= sketch < self.size:
            raise ValueError(f"sketch must be between 0 and {self.size - 1}, got {sketch!r}")
        if sketch == 0:
            return mean_of(self.quadratic(probes, seed, progress).sum(1).tolist())
        if probes < 1:
            raise ValueError(f"probes must be >= 1, got {probes!r}")
        generator = torch.Generator().manual_seed(seed)
        done = 0

        def product(vector: Sequence[Tensor]) -> Tensor:
            nonlocal done
            image = self._join(self._multiply(vector))
            done += 1
            if progress is not None:
                progress(done, 2 * sketch + probes)
            return image

        basis = torch.linalg.qr(torch.stack([product(self._signs(generator)) for _ in range(sketch)], 1))[0]
        inside = math.fsum(float(q @ product(self._split(q))) for q in basis.T)
        outside = []
        for _ in range(probes):
            v = self._join(self._signs(generator))
            w = v - basis @ (basis.T @ v)
            outside.append(float(w @ product(self._split(w))))
        rest = mean_of(outside)
        return Estimate(inside + rest.value, rest.error, probes)

    def quadratic(self, probes: int = 64, seed: int = 0, progress: Progress | None = None) -> Tensor:
        """What :meth:`trace` and :meth:`blocks` are means of: ``v_i·(Hv)_i`` of every probe and parameter.

        Returns:
            (probes, parameters), float64 on the CPU.
        """
        if probes < 1:
            raise ValueError(f"probes must be >= 1, got {probes!r}")
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for done in range(1, probes + 1):
            signs = self._signs(generator)
            rows.append(self.point.inner(signs, self._multiply(signs)))
            if progress is not None:
                progress(done, probes)
        return torch.stack(rows)

    # --- eigenvalues -------------------------------------------------------------------------------------------------

    def top(
        self,
        k: int = 1,
        tolerance: float = 1e-4,
        seed: int = 0,
        which: Which = "largest",
        progress: Progress | None = None,
    ) -> list[float]:
        """The k algebraically largest eigenvalues, largest first, by Lanczos iteration (ARPACK, through scipy).

        Memory: ``max(2k + 1, 20)`` vectors of all weights in float64, on the CPU of every process.

        Args:
            k: how many; less than the number of weights.
            tolerance: relative accuracy.
            seed: of the starting vector.
            which: ``"largest"``, ``"smallest"`` (algebraically, smallest first) or ``"magnitude"`` (largest first).
            progress: told after every product; how many there will be is not known.

        Raises:
            ImportError: without scipy (``pip install "mooring[cli]"``).
            ValueError: for k out of range or an unknown ``which``.
        """
        return [value for value, _ in self._eigenpairs(k, tolerance, seed, which, progress, vectors=False)]

    def eigenpairs(
        self,
        k: int = 1,
        tolerance: float = 1e-4,
        seed: int = 0,
        which: Which = "largest",
        progress: Progress | None = None,
    ) -> list[tuple[float, list[Tensor]]]:
        """Eigenvalues as :meth:`top` gives them, each with its unit eigenvector in the shapes of the parameters.

        The eigenvectors are whole tensors on the CPU, float64; the sign of each is arbitrary.
        """
        found = self._eigenpairs(k, tolerance, seed, which, progress, vectors=True)
        sizes = [p.numel() for p in self.params]
        return [
            (value, [x.reshape(p.shape) for x, p in zip(torch.split(vector, sizes), self.params)])
            for value, vector in found
        ]

    def _eigenpairs(
        self, k: int, tolerance: float, seed: int, which: str, progress: Progress | None, *, vectors: bool
    ) -> list[tuple[float, Tensor]]:
        if not 1 <= k < self.size:
            raise ValueError(f"k must be between 1 and {self.size - 1} (the number of weights less one), got {k!r}")
        if which not in _ARPACK:
            raise ValueError(f"which must be one of {', '.join(map(repr, _ARPACK))}, got {which!r}")
        try:
            import numpy as np
            from scipy.sparse.linalg import LinearOperator, eigsh
        except ImportError as error:
            raise ImportError('eigenvalues need scipy: pip install "mooring[cli]"') from error
        done = 0

        def multiply(x: Any) -> Any:
            nonlocal done
            flat = torch.as_tensor(np.ascontiguousarray(x).reshape(-1))
            product = self._join(self._multiply(self._split(flat))).numpy()
            done += 1
            if progress is not None:
                progress(done, None)
            return product

        operator = LinearOperator((self.size, self.size), matvec=multiply, dtype=np.float64)
        start = np.random.default_rng(seed).standard_normal(self.size)
        values, columns = eigsh(operator, k=k, which=_ARPACK[which], tol=tolerance, v0=start)
        keys = {"largest": lambda x: -x, "smallest": lambda x: x, "magnitude": lambda x: -abs(x)}
        order = sorted(range(k), key=lambda i: keys[which](float(values[i])))
        return [
            (float(values[i]), torch.from_numpy(columns[:, i].copy()) if vectors else torch.empty(0)) for i in order
        ]

    # --- the spectrum as a whole -------------------------------------------------------------------------------------

    def density(
        self,
        steps: int = 64,
        probes: int = 4,
        seed: int = 0,
        *,
        points: int = 1001,
        width: float | None = None,
        progress: Progress | None = None,
    ) -> Density:
        """How the eigenvalues are distributed, by stochastic Lanczos quadrature.

        From each probe v (the signs of :meth:`trace`), ``steps`` Lanczos steps with full reorthogonalisation give a
        quadrature of ``v·f(H)v``: nodes and weights that are exact for polynomials up to degree ``2 steps - 1``, and
        for every f once ``steps`` reaches the number of distinct eigenvalues. The mean over probes estimates
        ``tr f(H)``; see :class:`Density`.

        Costs ``steps * probes`` products and ``steps`` vectors in the compute type on the device of the weights.

        Args:
            steps: Lanczos steps; fewer where the weights are fewer.
            probes: how many vectors.
            seed: of the signs.
            points: of the grid on which the density is given.
            width: standard deviation of the Gaussian that each node is spread with; a hundredth of the range.
            progress: told after every product.

        Raises:
            ValueError: for a number out of range.
        """
        if probes < 1:
            raise ValueError(f"probes must be >= 1, got {probes!r}")
        if steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps!r}")
        if points < 2:
            raise ValueError(f"points must be >= 2, got {points!r}")
        if width is not None and not width > 0:
            raise ValueError(f"width must be > 0, got {width!r}")
        steps = min(steps, self.size)
        generator = torch.Generator().manual_seed(seed)
        rules = []
        for probe in range(probes):

            def count(done: int, before: int = probe * steps) -> None:
                if progress is not None:
                    progress(before + done, probes * steps)

            rules.append(lanczos(self._multiply, self._flat, self._signs(generator), steps, count))
        return Density.of(rules, self.size, points, width)

    # --- blocks ------------------------------------------------------------------------------------------------------

    def blocks(
        self,
        probes: int = 64,
        seed: int = 0,
        *,
        by: Literal["parameter", "module"] = "parameter",
        top: bool = False,
        tolerance: float = 1e-3,
        rows: Tensor | None = None,
        progress: Progress | None = None,
    ) -> list[Block]:
        """The diagonal blocks, one for every parameter or every module that holds parameters of its own.

        The traces come from the products of :meth:`trace` with the same seed and add up to it: every block's
        ``v_i·(Hv)_i``, whose variance also holds the couplings of the block to the others. The largest eigenvalue of
        each block is found on its own, by Lanczos iteration over that block alone.

        Args:
            probes: how many vectors; each costs one product for all blocks together.
            seed: of the signs and of the starting vectors.
            by: what makes a block.
            top: whether to find the largest eigenvalues; some 20 products and more for every block.
            tolerance: relative accuracy of these.
            rows: what :meth:`quadratic` returned, to take the traces from; no products are then made for them.
            progress: told after every product; how many there will be is known without ``top`` alone.

        Raises:
            ValueError: for an unknown ``by``, or probes out of range.
        """
        if by not in ("parameter", "module"):
            raise ValueError(f"by must be 'parameter' or 'module', got {by!r}")
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            groups.setdefault(name if by == "parameter" else name.rpartition(".")[0], []).append(i)
        done = 0

        def count(_: int, total: int | None) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, None if top else total)

        if rows is None:
            rows = self.quadratic(probes, seed, count)
        found = []
        for name, members in groups.items():
            estimate = mean_of(rows[:, members].sum(1).tolist())
            params = [self.params[i] for i in members]
            largest = self.block(params)._largest(tolerance, seed, count) if top else None
            found.append(Block(name, sum(p.numel() for p in params), estimate, largest))
        return found

    def block(self, params: Sequence[Tensor]) -> Hessian:
        """The Hessian over some of the parameters alone, with the same loss and data."""
        point = self.point
        shares = point.weights
        return Hessian(
            point.model, point.loss, point.batches, shares, method=self.method, step=self.step, params=params
        )

    def _largest(self, tolerance: float, seed: int, progress: Progress) -> float:
        if self.size > _SMALL:
            return self.top(1, tolerance, seed, progress=progress)[0]
        matrix = self.dense(progress)
        return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])

    def dense(self, progress: Progress | None = None) -> Tensor:
        """The matrix itself, (size, size) float64: one product per weight. For small models and for checks."""
        columns = []
        for i in range(self.size):
            unit = torch.zeros(self.size, dtype=torch.float64)
            unit[i] = 1
            columns.append(self._join(self._multiply(self._split(unit))))
            if progress is not None:
                progress(i + 1, self.size)
        return torch.stack(columns, dim=1)

    def agreement(self, seed: int = 0) -> float:
        """How far double backward and finite differences are apart: ``|a - b| / |b|`` for one probe.

        A number near 1 for a smooth loss says that an operator's own backward pass loses the second derivative without
        saying so, as kernels outside torch's autograd do: then measure with ``method="finite_difference"``. Kinks that
        the step crosses show here too; in float64 with ``step=1e-7`` hardly any is. Costs one product of each kind.

        Args:
            seed: of the signs.

        Raises:
            RuntimeError: where a gradient cannot be differentiated twice at all.
        """
        signs = self._signs(torch.Generator().manual_seed(seed))
        differences = self._difference(signs)
        apart = [a - b for a, b in zip(self._twice(signs), differences)]
        squares = [float(self.point.inner(x, x).sum()) for x in (apart, differences)]
        return math.sqrt(squares[0] / squares[1]) if squares[1] else float(squares[0] > 0)

    def _split(self, flat: Tensor) -> list[Tensor]:
        """This process's parts of a vector of all weights."""
        pieces = []
        for x, p in zip(torch.split(flat, [p.numel() for p in self.params]), self.params):
            part = local_part(p)
            shaped = x.reshape(p.shape)
            pieces.append((shaped if part is None else shaped[part]).to(p.device, compute_dtype(p.dtype)))
        return pieces

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """The vector of all weights from the parts of every process: float64 on the CPU."""
        wholes = [whole(like_shard(x, p)) if is_sharded(p) else x for x, p in zip(parts, self.params)]
        return torch.cat([x.reshape(-1).double().cpu() for x in wholes])


def _refuse_once_only(x: Tensor) -> None:
    """Raise where a gradient went through an operator that is marked as differentiable once.

    Asked for the gradients of chosen inputs, torch's engine does not visit the node that would say so.
    """
    seen: set[Any] = set()
    left = [x.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("the gradient of an operator marked once_differentiable cannot be differentiated twice")
        seen.add(node)
        left += [following for following, _ in node.next_functions]
