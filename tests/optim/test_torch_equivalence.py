"""AdamW, Adam and SGD are torch's, within 2 units in the last place per step, state included."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from tests.optim.precision import ulp
from tests.optim.table import OptimizerRow, every_torch_variant


def assert_ulps(ours: Tensor, theirs: Tensor, unit_at: Tensor, what: str) -> None:
    unit = ulp(unit_at, ours.dtype)
    distance = ((ours.double() - theirs.double()).abs() / unit).max() if ours.numel() else torch.tensor(0.0)
    assert distance <= 2, f"{what}: {float(distance)} ulp"


def weights(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Numbers of size .5 to 2, large beside a step: an ulp of a weight that a step takes through 0 says nothing."""
    sign = torch.randn(shape, generator=generator, dtype=dtype).sign()
    return sign * (0.5 + 1.5 * torch.rand(shape, generator=generator, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_torch_variant
def test_two_ulps_per_step(row: OptimizerRow, variant: str, dtype: torch.dtype) -> None:
    """One step from the same weights and state, 25 times along our own moments; both come from our state dict."""
    assert row.torch_class is not None
    generator = torch.Generator().manual_seed(4)
    shapes = [(30, 20), (17,), (), (4, 3, 3, 3), (0, 2)]
    params = [nn.Parameter(weights(s, generator, dtype)) for s in shapes]
    options = {**row.hyper(variant), "lr": 1e-3}
    ours = row.build(params, variant, lr=1e-3)
    for t in range(25):
        with torch.no_grad():
            for p in params:
                p.copy_(weights(tuple(p.shape), generator, dtype))
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        theirs = row.torch_class(twins, **options)
        theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
        old = {p: {k: v.clone() for k, v in ours.state[p].items() if torch.is_tensor(v)} for p in params}
        for p, q in zip(params, twins):
            g = torch.randn(p.shape, generator=generator, dtype=dtype)
            p.grad, q.grad = (None, None) if (t + p.dim()) % 7 == 0 else (g, g.clone())
        ours.step()
        theirs.step()
        for p, q in zip(params, twins):
            assert_ulps(p.detach(), q.detach(), q.detach(), f"step {t}, shape {tuple(p.shape)}")
            for key, value in theirs.state[q].items():
                if torch.is_tensor(value) and key != "step" and p.grad is not None:
                    # A moment may cancel: its unit is that of the terms it is the sum of.
                    part = p.grad.square() if "sq" in key else p.grad.abs()
                    if row.name in ("SGD", "Adam"):
                        coupled = options.get("weight_decay", 0) * p.detach().abs()
                        part = part + (coupled * (coupled + 2 * p.grad.abs()) if "sq" in key else coupled)
                    assert_ulps(ours.state[p][key], value, old[p].get(key, part).abs() + part, f"step {t}, {key}")
            if row.adaptive and p.numel() and p.grad is not None:
                assert float(ours.state[p]["step"]) == float(theirs.state[q]["step"])


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_signature_and_defaults_are_torchs(name: str) -> None:
    p = nn.Parameter(torch.zeros(2))
    ours, theirs = getattr(mo, name)([p]), getattr(torch.optim, name)([p])
    for key, value in ours.defaults.items():
        if key in theirs.defaults:
            assert value == theirs.defaults[key], key
    for key in ("lr", "betas", "eps", "weight_decay", "amsgrad", "momentum", "dampening", "maximize"):
        assert (key in ours.defaults) == (key in theirs.defaults), key


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {}),
        ("AdamW", {"amsgrad": True}),
        ("AdamW", {"maximize": True}),
        ("Adam", {"weight_decay": 0.1}),
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("SGD", {}),
    ],
    ids=str,
)
def test_complex_weights_as_torch_treats_them(name: str, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(6)

    def draw() -> Tensor:
        return torch.randn(4, 3, generator=generator, dtype=torch.complex128)

    start = draw()
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = getattr(mo, name)([p], lr=0.01, **options)
    theirs = getattr(torch.optim, name)([q], lr=0.01, **options)
    for _ in range(10):
        p.grad = draw()
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-13, atol=1e-14)
    loaded = getattr(torch.optim, name)([q], lr=0.01, **options)
    loaded.load_state_dict(ours.state_dict())
    for key, value in theirs.state[q].items():
        if torch.is_tensor(value):
            torch.testing.assert_close(loaded.state[q][key], value, rtol=1e-13, atol=1e-14)
