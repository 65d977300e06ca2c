"""What `mo.cost` says is what a step does: its bytes are the state's, its tensors those that the step touches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mooring as mo
from tests.optim.table import BY_NAME, ROWS, OptimizerRow

CASES = [pytest.param(row, variant, id=f"{row.name}-{variant}") for row in ROWS for variant in row.variants]


class Traffic(TorchDispatchMode):
    """Which of the watched tensors operations read and write; views are followed by their storage."""

    def __init__(self, watched: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.names = {tensor.untyped_storage().data_ptr(): name for name, tensor in watched.items()}
        self.read: set[str] = set()
        self.written: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema.arguments
        given = {argument.name: value for argument, value in zip(schema, args)} | (kwargs or {})
        overwrites = func._schema.name in ("aten::copy_", "aten::_foreach_copy_")
        for argument in schema:
            value = given.get(argument.name)
            is_view = argument.alias_info is not None and not argument.alias_info.is_write
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if not isinstance(tensor, torch.Tensor) or is_view:
                    continue
                name = self.names.get(tensor.untyped_storage().data_ptr())
                if name is None:
                    continue
                if argument.alias_info is not None:
                    self.written.add(name)
                if argument.alias_info is None or not overwrites:
                    self.read.add(name)
        return func(*args, **(kwargs or {}))


def stepped(row: OptimizerRow, variant: str, dtype: torch.dtype = torch.float32) -> tuple[Any, torch.nn.Parameter]:
    """An optimizer over one matrix after a step, with the next gradient waiting."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 5, dtype=dtype))
    optimizer = row.build([weight], variant, backend="eager")  # whose operations can be watched
    for _ in range(2):
        weight.grad = torch.randn_like(weight)
        if not optimizer.state:
            optimizer.step()
    return optimizer, weight


@pytest.mark.parametrize(("row", "variant"), CASES)
def test_the_tensors_are_those_that_a_step_touches(row: OptimizerRow, variant: str) -> None:
    optimizer, weight = stepped(row, variant)
    assert weight.grad is not None
    shaped = {k: v for k, v in optimizer.state[weight].items() if v.ndim}
    with Traffic({"weights": weight.data, "gradient": weight.grad, **shaped}) as traffic:
        optimizer.step()
    (cost,) = mo.cost(optimizer)
    assert traffic.read == {name for sweep in cost.sweeps for name in sweep.reads}
    assert traffic.written == {name for sweep in cost.sweeps for name in sweep.writes}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("row", "variant"), CASES)
def test_bytes_asked_for_are_the_bytes_kept(row: OptimizerRow, variant: str, dtype: torch.dtype) -> None:
    optimizer, weight = stepped(row, variant, dtype)
    shaped = [v for v in optimizer.state[weight].values() if v.ndim]
    kept = sum(v.numel() * v.element_size() for v in shaped) / weight.numel()
    assert mo.cost(optimizer)[0].state_bytes == kept
    fresh = row.build([torch.nn.Parameter(torch.zeros(3, 2, dtype=dtype))], variant)
    assert mo.cost(fresh)[0].state_bytes == kept
    assert not fresh.state  # asking allocates nothing


SIXTEEN_BITS: list[tuple[dict[str, Any], int]] = [
    ({"rounding": "kahan"}, 8 + 2 + 2),  # two float32 moments, a bfloat16 anchor, 16 more bits of the weight
    ({"rounding": "stochastic", "state_dtype": "bfloat16"}, 4 + 2),
    ({"max_grad_norm": 1.0}, 8 + 2),
]


@pytest.mark.parametrize(("options", "size"), SIXTEEN_BITS)
def test_what_the_common_options_add(options: dict[str, Any], size: int) -> None:
    row = BY_NAME["AdamSPD"]
    weight = torch.nn.Parameter(torch.randn(6, 5, dtype=torch.bfloat16))
    optimizer = row.build([weight], backend="eager", **options)
    assert mo.cost(optimizer)[0].state_bytes == size
    for _ in range(2):
        weight.grad = torch.randn_like(weight)
        if not optimizer.state:
            optimizer.step()
    shaped = {k: v for k, v in optimizer.state[weight].items() if v.ndim}
    assert sum(v.element_size() for v in shaped.values()) == size == mo.cost(optimizer)[0].state_bytes
    assert weight.grad is not None
    with Traffic({"weights": weight.data, "gradient": weight.grad, **shaped}) as traffic:
        optimizer.step()
    (cost,) = mo.cost(optimizer)
    assert traffic.read == {name for sweep in cost.sweeps for name in sweep.reads}
    assert traffic.written == {name for sweep in cost.sweeps for name in sweep.writes}


def test_clipping_is_a_sweep_that_the_mean_of_the_second_moment_shares() -> None:
    def stages(**options: Any) -> tuple[list[str], int]:
        (cost,) = mo.cost(mo.AdamS([torch.nn.Parameter(torch.randn(3, 2))], one_parameter=True, **options))
        return [sweep.stage for sweep in cost.sweeps], cost.collectives

    assert stages() == (["scan", "apply"], 1)
    assert stages(max_grad_norm=1.0) == stages(non_finite="skip") == (["clip", "apply"], 1)
    assert stages(max_grad_norm=1.0, amsgrad=True) == (["clip", "scan", "apply"], 2)


def test_groups_have_costs_of_their_own() -> None:
    body, head = torch.nn.Linear(8, 4, bias=False), torch.nn.Linear(4, 2)
    optimizer = mo.AdamSPD([{"params": body.parameters()}, {"params": head.parameters(), "anchor": None}], lr=1e-3)
    costs = mo.cost(optimizer)
    assert [cost.state_bytes for cost in costs] == [12, 8]
    assert [cost.passes for cost in costs] == [11, 7]  # without an anchor the rule is off, and the step AdamW's
    assert [cost.collectives for cost in costs] == [1, 0]
    assert str(costs[0]) == "12 bytes of state, 11 passes over memory, 1 collective where sharded"
    assert str(costs[1]) == "8 bytes of state, 7 passes over memory"
    text = repr(optimizer)
    assert all(f"cost per parameter: {cost}\n" in text for cost in costs)


def test_a_rule_that_reads_sums_ends_one_sweep_and_begins_another() -> None:
    (cost,) = mo.cost(mo.SGDP([torch.nn.Parameter(torch.randn(3, 2))], lr=0.1, momentum=0.9, project_buffer=True))
    observe, apply = cost.sweeps
    assert (observe.stage, set(observe.reads), observe.writes) == (
        "observe", {"gradient", "momentum_buffer", "weights"}, ("momentum_buffer",),
    )  # fmt: skip
    assert (apply.stage, set(apply.reads), apply.writes) == (
        "apply", {"weights", "momentum_buffer"}, ("weights", "momentum_buffer"),
    )  # fmt: skip


def test_coupled_decay_under_a_scan_reads_the_weights_before_anything_is_written() -> None:
    rules = [mo.CoupledDecay(0.1, toward="anchor")]
    (cost,) = mo.cost(mo.Adai([torch.nn.Parameter(torch.randn(3, 2))], lr=0.1, rules=rules, one_parameter=True))
    assert [sweep.stage for sweep in cost.sweeps] == ["scan", "apply"]
    assert set(cost.sweeps[0].reads) == {"gradient", "weights", "anchor"}


def test_a_wrapped_optimizer_s_state_is_known_once_there_is_some() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = mo.wrap(torch.optim.NAdam([weight]), [mo.SelectiveProjection()])
    before = mo.cost(optimizer)[0]
    assert before.state_bytes is None and "known after the first step" in str(before)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    after = mo.cost(optimizer)[0]
    assert after.state_bytes == 12  # NAdam's two moments and the anchor
    assert [sweep.stage for sweep in after.sweeps] == ["copy", "observe", "apply"]
    assert "anchor" in after.sweeps[1].reads


def test_tensors_without_shape_or_elements_do_not_count() -> None:
    params = [torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.zeros(0, 3))]
    optimizer = mo.AdamW([*params, torch.nn.Parameter(torch.zeros(4))])
    optimizer.init_state()
    assert mo.cost(optimizer)[0].state_bytes == 8


def test_rows_of_another_dimension_are_split_over_shards() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    assert mo.cost(mo.AdamP([{"params": [weight], "row_dim": 1}]))[0].collectives == 2
    assert mo.cost(mo.AdamP([weight]))[0].collectives == 1


@pytest.mark.parametrize(("declared", "collectives"), [("test", 1), ("tensor", 1), ("row", 0), ("none", 0)])
def test_rows_declared_invariant_need_no_sums(declared: str, collectives: int) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    assert mo.cost(mo.AdamP([weight], scale_invariant=declared))[0].collectives == collectives


def test_another_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"cost knows mooring's optimizers and wrap\(...\), got SGD"):
        mo.cost(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]))  # type: ignore[arg-type]
