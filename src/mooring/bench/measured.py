"""One method on the shapes of one model: verified, warmed, watched, timed in pairs, and its branch looked at again."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch

from mooring.bench.backends import use
from mooring.bench.branches import Branch, Problem, differs, taken
from mooring.bench.memory import temporaries
from mooring.bench.methods import BASELINE, METHODS, Method, cost_bytes, declared_bytes
from mooring.bench.results import Between, Row
from mooring.bench.shapes import Model
from mooring.bench.statistics import median_interval, met
from mooring.bench.timing import Act, Clock, Pairs
from mooring.bench.verify import verify

LR = 1e-9
"""So small that thousands of steps leave the numbers in the branch that they were built for."""


_PRODUCT = 1024
"""Rows and columns of the matrices: a product takes about as long as a step of 25 million parameters."""
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


class Baseline:
    """Fused AdamW, stepped in turn with what is measured against it.

    Args:
        problem: weights and gradients.
        beside: an optimizer of the same parameters. Where a tensor's pages lie can change the time of a step by a
            third, so both step the same weights, gradients and moments: each of them finds what the other has left,
            and at this learning rate and these constant gradients that is what it would have made itself.
    """

    def __init__(self, problem: Problem, beside: Any = None) -> None:
        own = problem
        like = problem.params[0]
        if like.dtype != torch.float32:  # fused AdamW is in float32
            own = Problem([p.shape for p in problem.params], Branch(), dtype=torch.float32, device=like.device)
        self.problem = own
        self.optimizer = METHODS[BASELINE].make(own.named, LR)
        self.step: Act = self.optimizer.step
        self.step()
        for p, q in zip(own.params, problem.params, strict=True):
            state = {} if beside is None else beside.state.get(q, {})
            shared = [state[name] for name in _MOMENTS if name in state]
            for name, x in zip(("exp_avg", "exp_avg_sq"), shared):
                if x.shape == p.shape and x.dtype == p.dtype and x.stride() == p.stride():
                    self.optimizer.state[p][name] = x
        self.step()


class Bench:
    """How everything is timed in one run.

    Args:
        device: where it runs.
        count: pairs per row.
        seed: of their order.
        copy: bytes per second of a copy.
        tell: takes how many pairs of the current row are done.
    """

    def __init__(
        self, device: torch.device, count: int, seed: int, copy: float, tell: Callable[[int], None] = lambda _: None
    ) -> None:
        self.device, self.count, self.seed, self.copy, self.tell = device, count, seed, copy, tell
        self.clock = Clock(device)

    def pairs(self, candidate: Act, baseline: Act, before: tuple[Act | None, Act | None] = (None, None)) -> Pairs:
        """Samples of both in turn, each after what comes before it."""
        return self.clock.pairs(candidate, baseline, self.count, seed=self.seed, tell=self.tell, before=before)

    def row(self, method: Method, backend: str, model: Model) -> Row:
        """Verify, then time; a failing one is not timed."""
        gc.collect()  # optimizers refer to themselves, and the last row's state would stay beside this one's
        served = backend if method.ours else ""
        known: dict[str, Any] = dict(shapes=model.name, method=method.id, package=method.package, backend=served)
        found = verify(method, model.shapes, backend, self.device)
        if not math.isnan(found.deviation):
            known.update(deviation=found.deviation, allowed=found.allowed)
        known.update(verified=found.tensors)
        if found.error is not None:
            return Row(**known, status="failed", why=found.error)
        try:
            return self._timed(method, backend, model, known)
        except Exception as error:  # of one row; the others go on
            return Row(**known, status="failed", why=f"{type(error).__name__}: {error}")

    def between(self, method: Method, backend: str, model: Model) -> Between:
        """Steps right after a matrix product, whose threads may not have come to rest."""
        problem = Problem(model.shapes, method.branch, dtype=method.dtype, device=self.device)
        a = torch.randn(_PRODUCT, _PRODUCT, device=self.device)

        def product() -> None:
            a @ a

        with use(backend if method.ours else ""):
            optimizer = prepared(method, problem)
            optimizer.step()
            there = self.pairs(optimizer.step, Baseline(problem, optimizer).step, (product, product))
            alone = self.pairs(optimizer.step, optimizer.step, (product, None))
        seconds = statistics.median(there.candidate)
        ratios = median_interval(there.ratios), median_interval(alone.ratios)
        return Between(model.name, method.id, backend if method.ours else "", seconds, *ratios)

    def _timed(self, method: Method, backend: str, model: Model, known: dict[str, Any]) -> Row:
        problem = Problem(model.shapes, method.branch, dtype=method.dtype, device=self.device)
        with use(backend if method.ours else ""):
            optimizer = prepared(method, problem)
            optimizer.step()
            before = self._branch(method, optimizer, problem)
            if isinstance(before, str):
                return Row(**known, status="failed", why=f"another branch than built: {before}")
            extra = temporaries(optimizer.step, self.device)
            pairs = self.pairs(optimizer.step, Baseline(problem, optimizer).step)
            after = self._branch(method, optimizer, problem)
            if isinstance(after, str):
                return Row(**known, status="failed", why=f"it left its branch while it was timed: {after}")
        ratio, seconds = median_interval(pairs.ratios), statistics.median(pairs.candidate)
        declared, most = _declared(method, optimizer, problem)
        target = method.target(model.name, declared) if method.ours else None
        return Row(
            **known, status="timed", branch=after, ratio=ratio, seconds=seconds,
            baseline=statistics.median(pairs.baseline), declared=declared, most=most, target=target,
            met=None if target is None else met(ratio, target),
            bandwidth=declared * model.elements / seconds / self.copy, temporaries=extra,
        )  # fmt: skip

    def _branch(self, method: Method, optimizer: Any, problem: Problem) -> dict[str, float] | str:
        """What a recorded step did; in words where that is not what it was built for."""
        if not method.ours:
            return {}
        optimizer.record(1)
        optimizer.step()
        found = taken(optimizer, problem.params)
        optimizer.record(None)
        return differs(found, problem.expected()) or found


def prepared(method: Method, problem: Problem) -> Any:
    """The optimizer of a row on a problem, anchored where that has anchors."""
    optimizer: Any = method.make(problem.named, LR)
    if problem.anchors and method.ours:
        optimizer.anchor_to(problem.anchors)
        problem.anchors = {}  # it holds copies
    return optimizer


def _declared(method: Method, optimizer: Any, problem: Problem) -> tuple[float, float | None]:
    """Bytes per element of this branch, and the most of the recipe; of the method itself for other implementations."""
    contracted = problem.expected().get("contracted", 0.0)
    if method.ours:
        return declared_bytes(method, optimizer, contracted), cost_bytes(optimizer)
    ours = METHODS[method.reference]
    tiny = Problem(((2, 2),), ours.branch, dtype=ours.dtype, device=torch.device("cpu"))
    return declared_bytes(ours, prepared(ours, tiny), contracted), None
