"""Wrong arguments are refused at once, in words that name the argument, the value and what would be right."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from tests.optim.table import BY_NAME, ROWS, OptimizerRow, every_row

WRONG: dict[str, list[Any]] = {
    "lr": [-1e-3, -1, math.nan, torch.tensor(-1.0)],
    "eps": [-1e-8, math.nan],
    "betas": [(1.0, 0.999), (0.9, 1.0), (-0.1, 0.999), (0.9, -0.5), (0.9, math.nan)],
    "weight_decay": [-0.1, math.nan],
    "momentum": [-0.1, math.nan],
    "delta": [-0.1, math.nan],
    "wd_ratio": [-0.1, math.nan],
    "strength": [-1.0, math.nan],
    "anchor": ["init", "captured", 3],
}
CASES = [
    pytest.param(row, key, value, id=f"{row.name}-{key}-{value}")
    for row in ROWS
    for key, values in WRONG.items()
    if key in row.reference.defaults
    for value in values
]


def param() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 2))


def number(value: Any) -> str:
    """A piece of the value that must appear in the message."""
    if isinstance(value, tuple):
        return next(str(v) for v in value if not 0 <= v < 1)
    return "-1" if torch.is_tensor(value) else str(value)


@pytest.mark.parametrize(("row", "key", "value"), CASES)
def test_out_of_range(row: OptimizerRow, key: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        row.build([param()], **{key: value})
    message = str(caught.value)
    assert key.rstrip("s") in message, message
    assert number(value) in message, message
    assert re.search(r"<=|>=|<|>|\[|between|at least|one of|None|'zero'", message), f"no range in: {message}"


@pytest.mark.parametrize(("row", "key", "value"), CASES)
def test_out_of_range_in_a_group(row: OptimizerRow, key: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=key.rstrip("s")):
        row.build([{"params": [param()]}, {"params": [param()], key: value}])
    optimizer = row.build([param()])
    with pytest.raises((ValueError, TypeError), match=key.rstrip("s")):
        optimizer.add_param_group({"params": [param()], key: value})


@pytest.mark.parametrize("name", ["SGDP", "SGDS"])
def test_momentum_one_divides_by_zero(name: str) -> None:
    with pytest.raises(ValueError, match=r"momentum.*1"):
        BY_NAME[name].build([param()], momentum=1.0, weight_decay=0.1)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "dampening": 0.1}], ids=["no momentum", "dampening"])
@pytest.mark.parametrize("name", ["SGD", "SGDS", "SGDSPD"])
def test_nesterov_needs_momentum_and_no_dampening(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(?i)nesterov.*momentum"):
        BY_NAME[name].build([param()], nesterov=True, **options)


@every_row
def test_empty_parameter_list_and_foreign_objects(row: OptimizerRow) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        row.build([])
    with pytest.raises(TypeError):
        row.build(["weight"])
    with pytest.raises(TypeError):
        row.build([param()], learning_rate=0.1)
    with pytest.raises(ValueError, match="leaf"):
        row.build([param() * 2])


@every_row
def test_sparse_gradients_are_refused_by_name(row: OptimizerRow) -> None:
    net = nn.ModuleDict({"body": nn.Linear(3, 3), "words": nn.Embedding(5, 3, sparse=True)})
    optimizer = row.build(net.named_parameters())
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net["body"](net["words"](torch.tensor([1, 2]))).sum().backward()
    with pytest.raises((RuntimeError, ValueError), match=r"words\.weight") as caught:
        optimizer.step()
    assert "sparse" in str(caught.value)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters()), "half a step was taken"


@every_row
def test_sparse_gradients_without_names_are_refused_by_position(row: OptimizerRow) -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = row.build(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises((RuntimeError, ValueError), match=r"sparse.*parameter 0"):
        optimizer.step()


@pytest.mark.parametrize("row", [r for r in ROWS if r.scope in ("tensor", "row")], ids=lambda r: r.name)
def test_complex_weights_are_refused_where_norms_are_needed(row: OptimizerRow) -> None:
    p = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises((TypeError, ValueError, RuntimeError), match="complex"):
        optimizer = row.build([p])
        p.grad = torch.ones_like(p)
        optimizer.step()


@every_row
def test_zero_is_a_value(row: OptimizerRow) -> None:
    """`value or default` would eat these."""
    zeros: dict[str, Any] = {
        k: 0.0
        for k in ("weight_decay", "eps", "delta", "wd_ratio", "strength", "momentum")
        if k in row.reference.defaults
    }
    optimizer = row.build([param()], lr=0.0, **zeros)
    for key, value in {**zeros, "lr": 0.0}.items():
        assert optimizer.param_groups[0][key] == value, key


def test_defaults_and_signatures_are_the_papers() -> None:
    """Names, order and defaults as published, so that a line that calls the authors' code keeps its meaning."""
    import inspect

    import mooring as mo

    expected = {
        "AdamW": "lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=False, *, maximize=False",
        "Adam": "lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0, amsgrad=False, *, rules=(), nesterov=False, "
        "anchor='capture', anchor_store='device', anchor_file=None, maximize=False",
        "Adai": "lr, betas=(0.1, 0.99), eps=0.001, weight_decay=0, *, rules=(), anchor='capture', "
        "anchor_store='device', anchor_file=None, maximize=False",
        "AdaiS": "lr, betas=(0.1, 0.99), eps=0.001, weight_decay=0, *, maximize=False",
        "SGD": "lr=0.001, momentum=0, dampening=0, weight_decay=0, nesterov=False, *, rules=(), anchor='capture', "
        "anchor_store='device', anchor_file=None, maximize=False",
        "AdamP": "lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0, delta=0.1, wd_ratio=0.1, nesterov=False, *, "
        "scale_invariant='test', amsgrad=False, maximize=False",
        "SGDP": "lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, eps=1e-08, delta=0.1, wd_ratio=0.1, *, "
        "scale_invariant='test', project_buffer=False, maximize=False",
        "AdamS": "lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0001, amsgrad=False, *, maximize=False",
        "SGDS": "lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, *, maximize=False",
        "AdamSPD": "lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0, amsgrad=False, *, strength=1.0, "
        "anchor='capture', anchor_store='device', anchor_file=None, maximize=False",
        "SGDSPD": "lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, *, strength=1.0, anchor='capture', "
        "anchor_store='device', anchor_file=None, maximize=False",
    }
    for name, signature in expected.items():
        parameters = list(inspect.signature(getattr(mo, name)).parameters.values())
        assert parameters[0].name == "params"
        bare = inspect.Signature([q.replace(annotation=inspect.Parameter.empty) for q in parameters[1:]])
        assert str(bare) == f"({signature}, **common)", name
