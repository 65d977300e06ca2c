"""A model at its weights, with data: its loss and gradient there and nearby, and everything left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mooring.anchors.names import plain
from mooring.kernels.eager import row_sums
from mooring.perturb.replay import Generators
from mooring.perturb.weights import Member, Weights
from mooring.step.batch import compute_dtype
from mooring.step.shards import Axis, all_sum, is_sharded, local, sharding

Loss = Callable[[nn.Module, Any], Tensor]
"""The mean loss of a model over one batch, a tensor of one element."""

Progress = Callable[[int, int | None], None]
"""Told how many evaluations are done and, where that is known beforehand, of how many."""

Offset = Callable[[Member, Tensor], Tensor | None]
"""From a parameter and its saved value in the compute type, what to add to it: a fresh tensor, or None for nothing."""


class Point:
    """The mean loss ``sum_b w_b loss(model, b)`` over batches, at the weights and at moved ones.

    One batch is in memory at a time where ``batches`` can be read again and again without holding all of them (a
    DataLoader); an iterator is read to its end first.

    Where weights are sharded (DTensor), every process hands over its own part of the data; the loss is the mean over
    processes, which is what gradients are averaged to.

    Args:
        model: the module; of its parameters those with ``requires_grad`` count.
        loss: the mean loss over one batch.
        batches: what ``loss`` is given, one after the other.
        sizes: how many examples each batch has; equal where not given.
        params: the parameters that count, if not all.

    Raises:
        ValueError: without trainable parameters, without batches, where ``sizes`` has another length or a sum of 0, or
            for a model inside DistributedDataParallel.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Any],
        sizes: Sequence[float] | None = None,
        params: Sequence[Tensor] | None = None,
    ) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError("model is wrapped in DistributedDataParallel; hand over model.module and all of the data")
        self.model, self.loss = model, loss
        self.batches: Any = list(batches) if isinstance(batches, Iterator) else batches
        self._moving = Weights(self, model)
        self._moving.gather_anew()  # parameters that a forward pass has gathered are none to keep
        self.everything: list[Tensor] = list(model.parameters())
        chosen = None if params is None else {id(p) for p in params}
        named = [
            (plain(name), p)
            for name, p in model.named_parameters()
            if p.requires_grad and p.numel() and (chosen is None or id(p) in chosen)
        ]
        if not named:
            raise ValueError("model has no parameter with requires_grad=True")
        self.names: list[str] = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        count = len(self.batches) if isinstance(self.batches, Sized) else sum(1 for _ in self._each())
        if not count:
            raise ValueError("batches must hold at least one batch")
        if sizes is not None and len(sizes) != count:
            raise ValueError(f"sizes must have one number per batch ({count}), got {len(sizes)}")
        shares = [1.0] * count if sizes is None else [float(s) for s in sizes]
        if min(shares) < 0 or not sum(shares) > 0:
            raise ValueError(f"sizes must be numbers >= 0 with a sum above 0, got {list(sizes or ())}")
        self.weights = [share / sum(shares) for share in shares]
        self.param_groups: list[dict[str, Any]] = [{"params": self.params, "param_names": self.names}]
        self._depth = 0
        self._generators: Generators | None = None
        self.sharded = any(is_sharded(p) for p in self.everything)

    @property
    def size(self) -> int:
        """How many weights there are, in all processes together."""
        return sum(p.numel() for p in self.params)

    @property
    def axes(self) -> list[tuple[Axis, ...]]:
        """For each parameter, the mesh dimensions along which processes hold its other elements."""
        return [sharding(p, 0).axes for p in self.params]

    @property
    def members(self) -> list[Member]:
        """The parameters as the noise knows them."""
        return [Member(p, {}, name) for p, name in zip(self.params, self.names)]

    @contextmanager
    def measuring(self, *, twice: bool = False) -> Iterator[None]:
        """Evaluation mode, and everything as it was afterwards, also when something raises.

        Restored are weights (to the bit), gradients, buffers, each module's mode, and the random number generators;
        every evaluation inside sees the same random numbers.

        Args:
            twice: let attention run on the mathematical implementation, which can be differentiated twice.
        """
        with ExitStack() as stack:
            if self._depth == 0:
                self._enter(stack)
            self._depth += 1
            stack.callback(self._leave)
            if twice:
                stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
            yield

    def _enter(self, stack: ExitStack) -> None:
        modes = [(module, module.training) for module in self.model.modules()]
        buffers = [(b, b.clone(), b._version) for b in self.model.buffers()]
        self._generators = Generators({p.device for p in self.params})

        @torch.no_grad()
        def put_back() -> None:
            for module, mode in modes:
                module.training = mode
            for buffer, value, version in buffers:
                if buffer._version != version:
                    buffer.copy_(value)
            assert self._generators is not None
            self._generators.restore()
            self._generators = None

        def weights_back() -> None:
            self._moving.restore()
            self._moving.forget()

        stack.callback(put_back)
        stack.callback(weights_back)
        self.model.eval()

    def _leave(self) -> None:
        self._depth -= 1

    def move(self, offset: Offset) -> None:
        """Put every weight at its value plus an offset, with one rounding; only inside :meth:`measuring`."""
        with torch.no_grad():
            self._moving.place(offset)

    def back(self) -> None:
        """Put the weights back to the bit."""
        self._moving.restore()

    def losses(self) -> Iterator[tuple[Tensor, float]]:
        """The loss of every batch, with its weight."""
        if self._generators is not None:
            self._generators.restore()
        for batch, weight in zip(self._each(), self.weights):
            loss = self.loss(self.model, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"loss must return a tensor of one element (a mean over the batch), got {what}")
            yield loss.reshape(()), weight

    def _each(self) -> Iterator[Any]:
        state = torch.get_rng_state()  # a DataLoader draws a seed when it is asked for its first batch
        iterator: Iterator[Any] = iter(self.batches)
        torch.set_rng_state(state)
        return iterator

    def value(self) -> float:
        """The loss; one forward pass per batch. Batches are added in float64."""
        with self.measuring(), torch.no_grad():
            total = torch.zeros((), dtype=torch.float64, device=self.params[0].device)
            for loss, weight in self.losses():
                total += weight * loss.to(total.device, torch.float64)
            return float(self.over_processes(total))

    def gradient(self) -> list[Tensor]:
        """This process's part of the gradient, in the compute type; one forward and one backward pass per batch."""
        with self.measuring(), torch.enable_grad():
            total = [torch.zeros_like(local(p.detach()), dtype=compute_dtype(p.dtype)) for p in self.params]
            if self.sharded:
                self._backward_into(total)
                return total
            for loss, weight in self.losses():
                if not loss.requires_grad:
                    continue
                for t, g in zip(total, torch.autograd.grad(loss, self.params, allow_unused=True)):
                    if g is not None:
                        t.add_(g.detach(), alpha=weight)
            return total

    def _backward_into(self, total: list[Tensor]) -> None:
        """Shards are reduced by hooks of ``backward`` alone, so that is what runs; the user's gradients wait aside."""
        kept = [p.grad for p in self.everything]
        try:
            for loss, weight in self.losses():
                for p in self.everything:
                    p.grad = None
                loss.backward()  # type: ignore[no-untyped-call]
                for t, p in zip(total, self.params):
                    if p.grad is not None:
                        t.add_(self._own_part(p), alpha=weight)
        finally:
            for p, grad in zip(self.everything, kept):
                p.grad = grad

    def _own_part(self, p: Tensor) -> Tensor:
        grad = p.grad
        assert grad is not None
        if not is_sharded(p):
            return self.over_processes(grad.detach().to(compute_dtype(p.dtype)))
        if grad.placements != p.placements:  # type: ignore[attr-defined]
            grad = grad.redistribute(placements=p.placements)  # type: ignore[attr-defined]
        return local(grad.detach())

    def over_processes(self, x: Tensor) -> Tensor:
        """The mean of ``x`` over the processes that share the sharded weights."""
        mesh = next((p.device_mesh for p in self.everything if is_sharded(p)), None)  # type: ignore[attr-defined]
        if mesh is None:
            return x
        [total] = all_sum([(x, tuple((mesh, dim) for dim in range(mesh.ndim)))])
        mean: Tensor = total / mesh.size()
        return mean

    def inner(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """``<a_i, b_i>`` of every parameter over all processes: float64, one number each."""
        return self.sums([torch.mul(x.double(), y.double()) for x, y in zip(a, b)])

    def sums(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum of every part over all processes: float64, one number each, on the CPU."""
        added = [row_sums(x.reshape(1, -1).contiguous()) for x in parts]
        return torch.cat([x.cpu() for x in all_sum(list(zip(added, self.axes)))])

    def norm(self) -> float:
        """The Euclidean norm of the weights."""
        pieces = [local(p.detach()).to(compute_dtype(p.dtype)) for p in self.params]
        return float(self.inner(pieces, pieces).sum().sqrt())
