"""What NSO and SAM add to their passes: noise and moved weights, against torch's own sampling and a step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

import mooring as mo
from mooring.bench.backends import use
from mooring.bench.branches import Branch, Problem
from mooring.bench.measured import Baseline, Bench
from mooring.bench.results import Perturbation
from mooring.bench.shapes import Model
from mooring.bench.statistics import median_interval
from mooring.bench.timing import Act
from mooring.kernels import random
from mooring.perturb.noise import draw
from mooring.perturb.weights import Weights

SIGMA, RHO = 0.01, 0.05
STEP = "a step of fused AdamW"
SAMPLING = "torch's randn and add_"


def measure(bench: Bench, model: Model, backend: str, baseline: Baseline) -> Iterator[Perturbation]:
    """Each verified, then timed: the noise alone against torch's, and the frames of NSO and SAM against a step."""
    problem = Problem(model.shapes, Branch(), dtype=torch.float32, device=bench.device)
    with use(backend), torch.no_grad():
        noise = _Noise(problem.params)
        for what, act, against, other, wrong in (
            ("noise drawn and added", noise.ours, SAMPLING, noise.torchs, noise.wrong()),
            ("noise drawn and added", noise.ours, STEP, baseline.step, noise.wrong()),
            ("frame of NSO, k = 1", _nso(problem), STEP, baseline.step, _nso_wrong(problem)),
            ("frame of SAM", _sam(problem), STEP, baseline.step, _sam_wrong(problem)),
        ):
            if wrong is not None:
                yield Perturbation(model.name, what, against, backend, None, None, wrong)
                continue
            pairs = bench.pairs(act, other)
            ratio = median_interval(pairs.ratios)
            yield Perturbation(model.name, what, against, backend, statistics.median(pairs.candidate), ratio)


class _Noise:
    """Noise on all weights, ours and torch's."""

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        self.params = params
        self.weights = Weights(torch.optim.SGD(params), None)
        self.weights.save()
        self.generator, self.drawn = torch.Generator(params[0].device), 0

    def ours(self) -> None:
        self.drawn += 1
        self.weights.place(lambda m, _: draw(m, "normal", random.key("bench", self.drawn, m.name), SIGMA))

    def torchs(self) -> None:
        self.drawn += 1
        self.generator.manual_seed(self.drawn)
        for p, saved in zip(self.params, self.weights.saved, strict=True):
            noise = torch.randn(p.shape, generator=self.generator, device=p.device)
            torch.add(saved, noise, alpha=SIGMA, out=p.data)

    def wrong(self) -> str | None:
        """Mean, deviation and size of the noise, within six standard errors; and whether the weights come back."""
        before = [p.detach().clone() for p in self.params]
        self.ours()
        noise = torch.cat([(p - b).flatten().double() for p, b in zip(self.params, before)]) / SIGMA
        self.weights.restore()
        n = noise.numel()
        mean, spread = float(noise.mean()), float(noise.square().mean())
        if abs(mean) > 6 / math.sqrt(n) or abs(spread - 1) > 6 * math.sqrt(2 / n):
            return f"the noise has mean {mean:.3g} and variance {spread:.4g} in units of sigma, over {n} elements"
        return _returned(self.params, before)


def _returned(params: list[torch.nn.Parameter], before: list[Tensor]) -> str | None:
    same = all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    return None if same else "the weights do not come back to the bit"


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(x.double().square().sum()) for x in tensors))


def _nso(problem: Problem) -> Act:
    """Two passes with nothing inside. Gradients are zero, because every loop halves what the passes have added up."""
    nso = mo.NSO(torch.optim.SGD(problem.params, lr=0.0), sigma=SIGMA, k=1)
    zeros = [torch.zeros_like(p) for p in problem.params]

    def frame() -> None:
        for pass_ in nso.passes():
            with pass_:
                for p, zero in zip(problem.params, zeros):
                    p.grad = zero

    return frame


def _sam(problem: Problem) -> Act:
    gradients = [torch.ones_like(p) for p in problem.params]
    sam = mo.SAM(torch.optim.SGD(problem.params, lr=0.0), rho=RHO)

    def frame() -> None:
        for pass_ in sam.passes():
            with pass_:
                for p, gradient in zip(problem.params, gradients):
                    p.grad = gradient

    return frame


def _nso_wrong(problem: Problem) -> str | None:
    """The two points lie on either side of the weights, and these come back."""
    before = [p.detach().clone() for p in problem.params]
    nso = mo.NSO(torch.optim.SGD(problem.params, lr=0.0), sigma=SIGMA, k=1)
    seen: list[list[Tensor]] = []
    for pass_ in nso.passes():
        with pass_:
            seen.append([p.detach() - b for p, b in zip(problem.params, before)])
            for p in problem.params:
                p.grad = torch.zeros_like(p)
    for plus, minus, b in zip(*seen, before, strict=True):
        if not torch.allclose(plus, -minus, rtol=0, atol=float(b.abs().max() + 1) * 2.0**-22):
            return "the two points are not on either side of the weights"
    return _returned(problem.params, before)


def _sam_wrong(problem: Problem) -> str | None:
    """The second point lies rho away along the gradient, and the weights come back."""
    before = [p.detach().clone() for p in problem.params]
    gradients = [torch.ones_like(p) for p in problem.params]
    sam = mo.SAM(torch.optim.SGD(problem.params, lr=0.0), rho=RHO)
    away = 0.0
    for pass_ in sam.passes():
        with pass_:
            away = _norm([p.detach() - b for p, b in zip(problem.params, before)])
            for p, gradient in zip(problem.params, gradients):
                p.grad = gradient
    # Each weight is rounded once, by half a unit of its last place.
    rounding = 2.0**-24 * _norm(before)
    if abs(away - RHO) > 1e-4 * RHO + rounding:
        return f"the second point is {away:.4g} away instead of {RHO}"
    return _returned(problem.params, before)
