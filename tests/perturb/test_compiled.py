"""Moving weights in compiled kernels: the points and the steps of eager operations."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from mooring.kernels import choice
from mooring.perturb.frame import Perturbed

pytest.importorskip("numba")

SHAPES = [(300, 7), (129,), (4, 3, 3, 3), (), (70_001,), (1,), (2, 150_001), *[(3, 5)] * 40]


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    made = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]
    channels_last = torch.randn(4, 3, 5, 5, generator=generator).to(dtype, memory_format=torch.channels_last)
    return [*made, nn.Parameter(channels_last)]


def points(optimizer: Perturbed, params: list[nn.Parameter]) -> list[list[Tensor]]:
    """The weights inside every pass of two steps, with gradients that no pass changes, and after the steps."""
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        for pass_ in optimizer.passes():
            with pass_:
                seen.append([p.detach().clone() for p in params])
                for p, g in zip(params, gradients):
                    p.grad = g.clone() if pass_.gradient else None
        optimizer.step()
        seen.append([p.detach().clone() for p in params])
    return seen


def both(name: str, dtype: torch.dtype, **options: Any) -> list[list[list[Tensor]]]:
    out = []
    for backend in ("eager", "numba"):
        params = parameters(dtype)
        with choice.use(backend):
            out.append(points(getattr(mo, name)(torch.optim.SGD(params, lr=0.1), **options), params))
    return out


def same_bits(a: Tensor, b: Tensor) -> bool:
    whole = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("law", ["normal", "laplace", "uniform"])
def test_noise_moves_weights_to_the_same_bits(law: str, dtype: torch.dtype) -> None:
    eager, compiled = both("NSO", dtype, sigma=0.03, noise=law, k=2, seed=4)
    assert len(eager) == 10
    for one, two in zip(eager, compiled):
        assert all(same_bits(a, b) for a, b in zip(one, two))
    start = parameters(dtype)
    assert not any(torch.equal(a, b) for a, b in zip(eager[0], start) if a.numel() > 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["SAM", "ASAM", "USAM", "RSAM"])
def test_the_climb_is_that_of_eager_operations(name: str, dtype: torch.dtype) -> None:
    """Norms are added in another order, so the climbs differ by some roundings of the factor."""
    eager, compiled = both(name, dtype, rho=0.5)
    start = parameters(dtype)
    for i, (one, two) in enumerate(zip(eager, compiled)):
        for a, b, w in zip(one, two, start):
            if name == "USAM":
                assert same_bits(a, b)
            # In the climb's own size, and a unit in the last place where that rounds to the other side.
            moved = (a.double() - w.double()).abs()
            off = (a.double() - b.double()).abs()
            assert bool((off <= moved * 1e-5 + a.double().abs() * torch.finfo(dtype).eps).all()), i


@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_the_climb_has_the_factor_of_the_norm_in_float64(eta: float) -> None:
    made = {("weight" if i % 2 else "bias") + str(i): p for i, p in enumerate(parameters(torch.float32)[:8])}
    named = [(name.rstrip("0123456789") if i == 1 else name, p) for i, (name, p) in enumerate(made.items())]
    with choice.use("numba"):
        sam = mo.ASAM(torch.optim.SGD(named, lr=0.0), rho=0.7, eta=eta)
        generator = torch.Generator().manual_seed(2)
        gradients = [torch.randn(p.shape, generator=generator) for _, p in named]
        before, seen = [p.detach().double() for _, p in named], []
        for pass_ in sam.passes():
            with pass_:
                seen = [p.detach().double() for _, p in named]
                for (_, p), g in zip(named, gradients):
                    p.grad = g.clone()
    sizes = [
        w.abs() + eta if eta == 0 or name == "weight" else torch.ones_like(w) for (name, _), w in zip(named, before)
    ]
    norm = sum(float((t * g.double()).square().sum()) for t, g in zip(sizes, gradients)) ** 0.5
    for there, w, t, g in zip(seen, before, sizes, gradients):
        torch.testing.assert_close(there, w + 0.7 * t * t * g.double() / norm, rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["SAM", "USAM", "ASAM"])
def test_a_gradient_that_is_not_finite_climbs_to_nan(name: str) -> None:
    params = parameters(torch.float32)[:4]
    with choice.use("numba"):
        sam = getattr(mo, name)(torch.optim.SGD(params, lr=0.0), rho=0.1)
        for pass_ in sam.passes():
            with pass_:
                seen = [p.detach().clone() for p in params]
                for p in params:
                    p.grad = torch.ones_like(p)
                params[1].grad[3] = float("inf")  # type: ignore[index]
    assert all(bool(x.isnan().all()) for x in seen)


@pytest.mark.parametrize("backend", ["eager", None])
def test_the_backend_that_the_base_was_given_is_kept(backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from mooring.kernels.cpu import many

    calls: list[int] = []
    kernel = many.shake
    monkeypatch.setattr(many, "shake", lambda *given: (calls.append(1), kernel(*given)))
    params = parameters(torch.float32)[:2]
    points(mo.NSO(mo.AdamW(params, lr=0.0, backend=backend), sigma=0.1), params)
    assert len(calls) == (0 if backend == "eager" else 4), "two passes in each of two steps"


def test_neither_threads_nor_neighbours_change_a_bit() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads, others in ((1, 0), (2, 0), (2, 9)):
            torch.set_num_threads(threads)
            params = [*parameters(torch.float32), *(nn.Parameter(torch.zeros(11)) for _ in range(others))]
            with choice.use("numba"):
                nso = mo.NSO(torch.optim.SGD(params, lr=0.0), sigma=0.1)
                found.append([x[: len(SHAPES)] for x in points(nso, params)])
                sam = mo.SAM(torch.optim.SGD(params[: len(SHAPES)], lr=0.0), rho=0.1)
                found[-1] += points(sam, params[: len(SHAPES)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(same_bits(a, b) for one, two in zip(found[0], other) for a, b in zip(one, two))


FORKED = """
import os, torch
import mooring as mo
from mooring.kernels import choice, random

p = torch.nn.Parameter(torch.ones(1000))
p.grad = torch.ones(1000)
with choice.use("numba"):
    mo.AdamW([p], lr=1e-3).step()
STEP = "step torch.float32"
assert choice._loaded == {STEP}
read, write = os.pipe()
child = os.fork()
if child == 0:
    x = random.fill(torch.empty(1000), 7, "normal")
    os.write(write, x.numpy().tobytes() + bytes([len(choice._loaded)]))
    os._exit(0)
os.close(write)
with os.fdopen(read, "rb") as pipe:
    data = pipe.read()
os.waitpid(child, 0)
assert data[-1] == 1, "the child compiled a kernel that its parent had not loaded"
assert data[:-1] == random.fill(torch.empty(1000), 7, "normal").numpy().tobytes()
assert choice._loaded == {STEP, "jobs"}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_compiles_nothing_and_draws_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
