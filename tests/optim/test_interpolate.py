"""WiSE-FT's interpolation: its ends to the bit, every kind of entry, and what optimizers hold as anchors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model(torch.randn(6, 4))  # running statistics and a counter
    return model


def clones(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("as_state", [False, True], ids=["modules", "state dicts"])
def test_every_entry_lies_between(as_state: bool) -> None:
    pretrained, tuned = net(0), net(1)
    tuned(torch.randn(6, 4))
    a, b = clones(pretrained), clones(tuned)
    ends: tuple[Any, Any] = (tuned.state_dict(), pretrained.state_dict()) if as_state else (tuned, pretrained)
    for alpha in (0, 0.25, 0.7, 1):
        mixed = mo.interpolate(*ends, alpha)
        assert list(mixed) == list(b)
        for name, value in mixed.items():
            if not value.is_floating_point():
                assert torch.equal(value, a[name] if alpha == 0 else b[name])
            elif alpha in (0, 1):
                assert torch.equal(value, (a, b)[int(alpha)][name])
            else:
                torch.testing.assert_close(value, (1 - alpha) * a[name] + alpha * b[name])
            value.add_(1)  # shares nothing with what was given
        tuned.load_state_dict(mixed)
        tuned.load_state_dict(b)
    assert all(torch.equal(x, a[name]) for name, x in pretrained.state_dict().items())
    assert all(torch.equal(x, b[name]) for name, x in tuned.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_rounds_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(500, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    b[:3] = a[:3]
    a[3] = b[3] = -torch.inf
    mixed = mo.interpolate({"w": b}, {"w": a}, 0.3)["w"]
    exact = (0.7 * a.double() + 0.3 * b.double()).to(dtype)
    assert mixed.dtype == dtype
    assert torch.equal(mixed[:4], b[:4])
    if dtype.itemsize == 2:
        assert (mixed != exact).double().mean() <= 0.01  # double rounding, at ties of float32
    torch.testing.assert_close(mixed, exact)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for t in range(3):
        optimizer.zero_grad()
        model(torch.randn(6, 4, generator=torch.Generator().manual_seed(t))).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("wrapped", [False, True])
def test_captured_anchors_are_the_start(wrapped: bool) -> None:
    """Weights lie between; a free head, frozen weights and buffers are the model's."""
    model = net(0)
    model[0].bias.requires_grad_(False)
    start = clones(model)
    groups: Any = mo.param_groups(model, head="2")
    optimizer: torch.optim.Optimizer
    if wrapped:
        optimizer = mo.wrap(torch.optim.Adam(groups, lr=0.1), rules=[mo.SelectiveProjection()])
    else:
        optimizer = mo.AdamSPD(groups, lr=0.1)
    train(model, optimizer)
    end = clones(model)
    mixed = mo.interpolate(model, optimizer, 0.25)
    anchored = {"0.weight", "1.weight", "1.bias"}
    for name, value in mixed.items():
        assert name not in anchored or not torch.equal(start[name], end[name])
        expected = start[name] + 0.25 * (end[name] - start[name]) if name in anchored else end[name]
        torch.testing.assert_close(value, expected)
    again = mo.interpolate(model, start, 0.25, free=["2", "1.running_mean", "1.running_var"])
    assert all(torch.equal(mixed[name], again[name]) for name in mixed)


def test_tied_weights_and_anchors_at_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    optimizer = mo.AdamSPD(model.parameters(), lr=0.1, anchor="zero")
    train(model, optimizer)
    mixed = mo.interpolate(model, optimizer, 0.5)
    assert torch.equal(mixed["0.weight"], 0.5 * model[0].weight.detach())
    assert torch.equal(mixed["0.weight"], mixed["1.weight"])


def test_errors_say_what_to_do() -> None:
    model, other = net(0), net(1)
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
            mo.interpolate(model, other, alpha)
    less = {name: value for name, value in other.state_dict().items() if not name.startswith("2")}
    with pytest.raises(ValueError, match=r"it has no '2\.weight' .*name what is new in free="):
        mo.interpolate(model, less, 0.5)
    with pytest.raises(ValueError, match="free='3' names nothing"):
        mo.interpolate(model, less, 0.5, free="3")
    wide = {**clones(other), "2.weight": torch.zeros(5, 3)}
    with pytest.raises(ValueError, match=r"'2\.weight' has shape \(5, 3\) and in the model \(2, 3\)"):
        mo.interpolate(model, wide, 0.5)
    assert torch.equal(mo.interpolate(model, wide, 0.5, free="2")["2.weight"], model[2].weight)
    fresh = mo.AdamSPD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="holds no anchor yet"):
        mo.interpolate(model, fresh, 0.5)
    with pytest.raises(ValueError, match="AdamW holds no anchors; give the pretrained state dict"):
        mo.interpolate(model, mo.AdamW(model.parameters()), 0.5)
    with pytest.raises(TypeError, match="it must be the module"):
        mo.interpolate(model.state_dict(), fresh, 0.5)
    train(model, fresh)
    with pytest.raises(ValueError, match="steps none of this model's parameters"):
        mo.interpolate(copy.deepcopy(model), fresh, 0.5)
