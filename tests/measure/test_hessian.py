"""The Hessian as an operator, against the explicit one and closed forms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mooring.measure import Hessian


def explicit(model: nn.Module, loss: Any, batches: list[Any], weights: list[float]) -> Tensor:
    """Row by row of the gradient's gradient, with torch's own functional tools."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    shapes = [p.shape for p in model.parameters() if p.requires_grad]
    fixed = {**dict(model.named_buffers()), **{n: p for n, p in model.named_parameters() if not p.requires_grad}}

    def value(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [s.numel() for s in shapes])
        params = {n: x.reshape(s) for n, x, s in zip(names, parts, shapes)}
        total = flat.new_zeros(())
        for batch, w in zip(batches, weights):
            total = total + w * loss(lambda x: torch.func.functional_call(model, {**fixed, **params}, (x,)), batch)
        return total

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
    found: Tensor = torch.autograd.functional.hessian(value, flat)  # type: ignore[no-untyped-call]
    return found


def squared(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mixed: Tensor = self.out(nn.functional.scaled_dot_product_attention(q, k, v)).mean(1)
        return mixed


def case(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    nets: dict[str, nn.Module] = {
        "mlp": nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        "batch norm and dropout": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)),
        "attention": Attention(),
    }
    net = nets[name].double()
    shape = (3, 4) if name == "attention" else (3,)
    return net, [(torch.randn(n, *shape).double(), torch.randn(n, 2).double()) for n in (5, 3)]


@pytest.mark.parametrize("name", ["mlp", "batch norm and dropout", "attention"])
def test_products_trace_and_eigenvalues_are_those_of_the_matrix(name: str) -> None:
    net, batches = case(name)
    hessian = Hessian(net, squared, batches, sizes=[5, 3])
    matrix = explicit(copy.deepcopy(net).eval(), squared, batches, [5 / 8, 3 / 8])
    torch.testing.assert_close(hessian.dense(), matrix, rtol=1e-9, atol=1e-11)
    eigenvalues = torch.linalg.eigvalsh(matrix).flip(0)
    for got, wanted in zip(hessian.top(3), eigenvalues.tolist()):
        assert abs(got - wanted) <= 1e-3 * abs(eigenvalues[0])
    estimate = hessian.trace(probes=200)
    off_diagonal = float(matrix.square().sum() - matrix.diagonal().square().sum())
    exact_error = (2 * off_diagonal / 200) ** 0.5
    assert abs(estimate.value - float(matrix.trace())) < 4 * exact_error
    assert 0.7 < estimate.error / exact_error < 1.4


def test_a_diagonal_hessian_needs_one_probe() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("p", p)
    hessian = Hessian(model, lambda m, c: (c * m.p.square()).sum() / 2, [torch.tensor([1.0, 4.0, 9.0]).double()])
    estimate = hessian.trace(probes=1)
    assert estimate.value == 14.0
    assert estimate.error != estimate.error
    assert abs(hessian.top(1)[0] - 9.0) < 1e-6


def test_the_model_is_left_as_it_was() -> None:
    net, batches = case("batch norm and dropout")
    net.train()
    net[1].eval()  # type: ignore[index]
    before = copy.deepcopy(net.state_dict())
    hessian = Hessian(net, squared, batches)
    hessian.trace(2)
    assert [m.training for m in net] == [True, False, True, True]  # type: ignore[attr-defined]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(ZeroDivisionError):
        Hessian(net, lambda m, b: 1 / 0, batches).trace(1)
    assert net.training
    assert torch.equal(torch.tensor(hessian.trace(3, seed=1).value), torch.tensor(hessian.trace(3, seed=1).value))


def test_a_loss_that_is_linear_has_no_curvature() -> None:
    net = nn.Linear(3, 1)
    assert Hessian(net, lambda m, x: m(x).sum(), [torch.ones(2, 3)]).trace(3).value == 0.0


def test_wrong_arguments() -> None:
    net, batches = case("mlp")
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        Hessian(net, squared, [])
    with pytest.raises(ValueError, match=r"sizes must have one number per batch \(2\), got 1"):
        Hessian(net, squared, batches, sizes=[1])
    with pytest.raises(ValueError, match=r"k must be between 1 and 25 .*got 26"):
        Hessian(net, squared, batches).top(26)
    with pytest.raises(ValueError, match="probes must be >= 1, got 0"):
        Hessian(net, squared, batches).trace(0)
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        Hessian(net, squared, batches)
