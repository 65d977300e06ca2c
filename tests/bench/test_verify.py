"""The verification lets right steps pass and no others, and what is declared, timed and weighed is what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import mooring as mo
from mooring.bench import perturbed
from mooring.bench.branches import Branch, Problem
from mooring.bench.measured import Bench, prepared
from mooring.bench.memory import temporaries
from mooring.bench.methods import METHODS, Method, cost_bytes, declared_bytes, installed, parse_methods
from mooring.bench.shapes import Model, convolutional, resnet50, small
from mooring.bench.timing import Clock
from mooring.bench.verify import sample, verify
from mooring.finetune.errors import SpecError

CPU = torch.device("cpu")
SHAPES = [*convolutional()[:6], *small(4)]
HERE = [m for m in METHODS.values() if installed(m)]


@pytest.mark.parametrize("method", HERE, ids=lambda m: m.id)
def test_every_row_takes_the_step_of_its_reference(method: Method) -> None:
    found = verify(method, SHAPES, "eager", CPU)
    assert found.error is None, found
    assert 0 < found.deviation <= found.allowed < 0.1
    assert found.tensors == len(SHAPES)


@pytest.mark.parametrize("method", HERE, ids=lambda m: m.id)
def test_one_matrix_is_a_whole_model(method: Method) -> None:
    """`--shapes 1x64x64`: what reads the whole model is refused for one parameter elsewhere."""
    method.make([("w", torch.nn.Parameter(torch.ones(2, 2)))], 1e-3)


def _scaled(factor: float) -> Callable[..., Any]:
    return lambda params, lr: mo.AdamW(list(params), lr=factor * lr, weight_decay=1e-2)


def _raising(params: Any, lr: float) -> Any:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("row", "make", "message"),
    [
        ("adamw", _scaled(1.001), "differs from its float64 reference"),
        ("adamw", lambda params, lr: torch.optim.AdamW([p for _, p in params], lr=lr, weight_decay=0.5), "differs"),
        ("adamp-tensor", lambda params, lr: torch.optim.AdamW([p for _, p in params], lr=lr), "differs"),
        ("adamw", lambda params, lr: mo.AdamW(list(params), lr=float(lr) * 0), "differs"),
        ("adamw", _raising, "RuntimeError: no such kernel"),
    ],
)
def test_a_wrong_step_is_found(row: str, make: Callable[..., Any], message: str) -> None:
    wrong = replace(METHODS[row], id="other", package="torch", like=row, make=make)
    found = verify(wrong, SHAPES, "eager", CPU)
    assert found.error is not None and message in found.error


def test_a_row_that_leaves_its_branch_is_not_timed() -> None:
    # A test that never passes, so nothing is projected although the gradients are orthogonal.
    lost = replace(METHODS["adamp-rows"], make=lambda params, lr: mo.AdamP(list(params), lr=lr, delta=0.0))
    bench = Bench(CPU, 6, 0, 1e9)
    model = Model("m", "m", tuple(SHAPES))
    row = bench.row(replace(lost, like="adamp-rows"), "eager", model)
    assert row.status == "failed" and "another branch than built" in row.why and row.ratio is None


def test_the_sample_has_every_shape_that_fits() -> None:
    found = sample(resnet50())
    assert set(found) == set(resnet50()) and len(found) > len(set(found))
    assert sample(small()) == small()  # all of them: many small tensors are taken together
    assert sample([(5, 5), (2,), (2,), (100, 100)], 30, 0) == [(5, 5), (2,)]
    assert sample([(5, 5), (2,), (2,), (100, 100), (2,), (2,)], 30, 4) == [(5, 5), (2,), (2,), (2,)]
    assert sample([(100, 100)], 30, 0) == [(100, 100)]


def test_declared_bytes() -> None:
    expected = {
        "adamw": 28, "adamw-clip": 32, "adamp-rows": 36, "adamp-tensor": 40, "adams": 32, "adams-clip": 32,
        "adamspd-0": 32, "adamspd-1": 44, "adamspd-bf16-anchor": 40, "sgd": 20, "adamw-bf16": 22,
        "adamw-bf16-kahan": 26,
    }  # fmt: skip
    for method in METHODS.values():
        if not method.ours:
            continue
        problem = Problem(SHAPES, method.branch, dtype=method.dtype, device=CPU)
        optimizer = prepared(method, problem)
        share = problem.expected().get("contracted", 0.0)
        found = declared_bytes(method, optimizer, share)
        assert found <= cost_bytes(optimizer), method.id
        if method.id in expected:
            assert found == expected[method.id], method.id
    assert METHODS["adamw"].target("resnet50", 28) == 1.0 and METHODS["adamw"].target("small-3000", 28) == 0.5
    assert METHODS["adams"].target("resnet50", 32) == pytest.approx(1.1 * 32 / 28)
    assert METHODS["adamp-none"].target("small-3000", 36) == 0.8


def test_temporaries_are_those_of_the_call() -> None:
    x = torch.zeros(1 << 20)

    def act() -> torch.Tensor:
        kept = x + 1
        (kept * 2).sum()
        (kept * 3).sum()
        return kept.sum()

    found = temporaries(act, CPU)  # two of 4 MiB at a time, never three
    assert 8 << 20 <= found < 9 << 20
    assert temporaries(lambda: bytearray(3 << 20), CPU) >= 3 << 20
    assert temporaries(lambda: x.add_(1), CPU) < 1 << 16


def test_pairs_run_in_either_order_equally_often() -> None:
    clock, calls, order = Clock(CPU), [], list[str]()
    clock.calls = lambda act: 1  # type: ignore[method-assign]

    pairs = clock.pairs(lambda: order.append("a"), lambda: order.append("b"), 31, seed=1, tell=calls.append)
    assert len(pairs.ratios) == 31 and calls == list(range(1, 32))
    first = order[::2]
    assert sorted(order) == ["a"] * 31 + ["b"] * 31
    assert {first.count("a"), first.count("b")} == {15, 16}
    assert all({x, y} == {"a", "b"} for x, y in zip(order[::2], order[1::2], strict=True))
    assert first != sorted(first) and first != ["a", "b"] * 15 + ["a"]


def test_moved_weights_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(SHAPES, Branch(), dtype=torch.float32, device=CPU)
    with torch.no_grad():
        assert perturbed._Noise(problem.params).wrong() is None
        assert perturbed._nso_wrong(problem) is None
        assert perturbed._sam_wrong(problem) is None
        monkeypatch.setattr(perturbed, "draw", lambda m, *_: torch.full(m.p.shape, 0.01))
        assert "mean 1" in str(perturbed._Noise(problem.params).wrong())
    sam = mo.SAM
    monkeypatch.setattr(mo, "SAM", lambda base, rho: sam(base, rho=0.9 * rho))
    assert "is 0.045 away instead of 0.05" in str(perturbed._sam_wrong(problem))


def test_methods_are_found_by_row_family_and_package() -> None:
    assert [m.id for m in parse_methods("adamp-tensor,adams", quick=False)][:2] == ["adamp-tensor", "adams"]
    assert {m.family for m in parse_methods("adamp", quick=False)} == {"adamp", "sgdp"}  # the package has both
    assert {m.package for m in parse_methods("torch", quick=False)} == {"torch"}
    assert all(m.id in METHODS for m in parse_methods(None, quick=True))
    with pytest.raises(SpecError, match="did you mean 'adamw'"):
        parse_methods("adamww", quick=False)
    with pytest.raises(SpecError, match="names no method"):
        parse_methods(" , ", quick=False)
