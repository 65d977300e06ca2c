"""What the experiments on digits measure, against the weights themselves."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import mooring as mo
from mooring.compare.statistics import summarise
from mooring.finetune.data import Split
from mooring.finetune.models import MLP
from mooring.reproduce import digits
from mooring.reproduce.experiments import digits_adam_variants, digits_decay_grid, digits_norm_growth


def early() -> Split:
    rows = digits.handwritten()
    return Split(rows.inputs[digits.EARLY], rows.labels[digits.EARLY])


@pytest.mark.parametrize("name", ["momentum", "SGDP"])
def test_norms_turns_and_growth_are_those_of_the_weights(name: str) -> None:
    steps, seed = 4, 1
    found = digits_norm_growth.train(name, False, seed, steps)

    model = digits.fresh(seed)
    names = ("features.0.weight", "features.3.weight", "features.6.weight", "hidden.0.weight")
    weights = [model.get_parameter(n) for n in names]

    def positions() -> list[torch.Tensor]:
        return [p.detach().double().clone() for p in weights]

    method = mo.SGDP if name == "SGDP" else torch.optim.SGD
    path = [positions()]
    optimizer = method(model.parameters(), lr=0.05, momentum=0.9)
    digits.train(model, optimizer, early(), steps, seed, each=lambda _: path.append(positions()))
    squares = [sum(float(p.square().sum()) for p in at) for at in path]
    assert found["start"] == pytest.approx(math.sqrt(squares[0]))
    assert found["norm"] == pytest.approx([math.sqrt(s) for s in squares[1:]], rel=1e-5)
    turns = [
        sum(float((q / q.norm() - p / p.norm()).norm()) for p, q in zip(before, after)) / len(weights)
        for before, after in pairwise(path)
    ]
    assert found["turn"] == pytest.approx(turns, rel=1e-4)
    travelled = sum(float((q - p).square().sum()) for before, after in pairwise(path) for p, q in zip(before, after))
    assert found["growth"] == pytest.approx((squares[-1] - squares[0]) / travelled, rel=1e-3)


def test_an_interval_is_student_s() -> None:
    found = summarise([1.0, 2.0, 4.0])
    deviation = math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    assert found.mean == pytest.approx(7 / 3)
    assert found.error == pytest.approx(deviation / math.sqrt(3))
    assert found.half == pytest.approx(4.302653 * deviation / math.sqrt(3))  # the table's t for two degrees of freedom
    diverged = summarise([1.0, math.nan])
    assert math.isnan(diverged.mean) and math.isnan(diverged.half)


def test_the_gradient_norm_is_the_slope_along_the_gradient() -> None:
    torch.manual_seed(0)
    model = MLP(64, width=8, classes=10).double()
    rows = early().rows(torch.arange(50))
    examples = Split(rows.inputs.flatten(1).double(), rows.labels)
    model(examples.inputs)  # running statistics that are not those of a fresh network
    found = digits_decay_grid.gradient_norm(model, examples)
    assert model.training and all(p.grad is None for p in model.parameters())

    model.eval()
    weights = list(model.parameters())
    gradients = torch.autograd.grad(digits.loss(model, examples), weights)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, g in zip(weights, gradients):
                p.add_(g / norm, alpha=sign * 1e-5)
            ends.append(digits.loss(model, examples).item())
            for p, g in zip(weights, gradients):
                p.sub_(g / norm, alpha=sign * 1e-5)
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_measures_are_read_off_at_a_norm_and_nowhere_beyond() -> None:
    curve = [{"norm": n, "trace": math.exp(5 - n)} for n in (4.0, 2.0, 3.0)]
    assert digits_decay_grid.at_norm(curve, 2.25, "trace") == pytest.approx(2.75)
    assert digits_decay_grid.at_norm(curve, 1.9, "trace") is None
    assert digits_decay_grid.at_norm(curve, 4.1, "trace") is None


def test_every_method_tries_the_same_points() -> None:
    shares = set()
    for method, variant in digits_adam_variants.VARIANTS.items():
        points = digits_adam_variants.points(method, 8)
        shares.add(tuple(
            (round(math.log(rate / variant.rate[0], variant.rate[1] / variant.rate[0]), 2),
             round(math.log(decay / variant.decay[0], variant.decay[1] / variant.decay[0]), 2))
            for rate, decay in points
        ))  # fmt: skip
    assert len(shares) == 1
    [unit] = shares
    assert len(set(unit)) == 8 and all(0 <= x <= 1 for point in unit for x in point)


def test_variants_without_their_package_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    here, missing = digits_adam_variants.available()
    assert missing == ["AdaBound", "Yogi", "PAdam"]
    assert here == ["AdamS", "Adam", "AdamW", "AMSGrad", "RAdam", "NAdam"]


@pytest.mark.parametrize("method", [m for m in digits_adam_variants.VARIANTS if m not in ("AdamS", "AdamW")])
def test_decay_of_the_variants_is_l2(method: str) -> None:
    if method in digits_adam_variants.available()[1]:
        pytest.skip("pytorch_optimizer is not installed")
    decayed, penalised = (torch.nn.Linear(3, 2, bias=False) for _ in range(2))
    penalised.load_state_dict(decayed.state_dict())
    first = digits_adam_variants.optimizer(method, decayed, 0.1, 0.5)
    second = digits_adam_variants.optimizer(method, penalised, 0.1, 0.0)
    for _ in range(7):
        decayed.weight.grad = torch.ones(2, 3)
        penalised.weight.grad = torch.ones(2, 3) + 0.5 * penalised.weight.detach()
        first.step()
        second.step()
    torch.testing.assert_close(decayed.weight, penalised.weight, rtol=1e-5, atol=1e-6)
