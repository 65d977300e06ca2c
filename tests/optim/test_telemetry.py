"""Telemetry tells what a step did, compared with the weights before and after it, and changes nothing by telling."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mooring as mo
from mooring.step.rule import Rule
from tests.optim.problems import backward, gradients, make_groups, make_net
from tests.optim.table import BY_NAME, OptimizerRow, every_row


def named_groups(net: Any, hyper: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups of the generic tests with the names of their parameters."""
    names = {p: name for name, p in net.named_parameters()}
    groups = make_groups(net, hyper)
    return [{**group, "params": [(names[p], p) for p in group["params"]]} for group in groups if group["params"]]


def options(row: OptimizerRow, variant: str = "default") -> dict[str, Any]:
    return {**row.reference.defaults, **row.hyper(variant)}


def trained(row: OptimizerRow, dtype: torch.dtype, every: int | None) -> list[Tensor]:
    net = make_net(dtype=dtype)
    optimizer = row.build(named_groups(net, options(row, row.remembering)), row.remembering)
    optimizer.record(every, drift=True)
    for t in range(50):
        backward(net, t)
        optimizer.step()
    recorded = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return [*(p.detach() for p in net.parameters()), *recorded]


@every_row
def test_recording_changes_no_bit(row: OptimizerRow) -> None:
    off, on = trained(row, torch.float32, None), trained(row, torch.float32, 2)
    assert len(off) == len(on) > 20
    for a, b in zip(off, on):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "common",
    [
        {"rounding": "stochastic", "state_dtype": "bfloat16"},
        {"rounding": "kahan"},
        {"max_grad_norm": 0.5, "non_finite": "skip"},
    ],
    ids=lambda common: " ".join(common),
)
def test_recording_changes_no_bit_of_rounded_clipped_and_skipped_steps(common: dict[str, Any]) -> None:
    ends = []
    for every in (None, 1):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(40, 30).bfloat16())
        optimizer = mo.AdamSPD([p], lr=1e-3, one_parameter=True, **common)
        optimizer.record(every)
        for t in range(20):
            before = p.detach().clone()
            p.grad = torch.randn_like(p)
            bad = t == 7 and "non_finite" in common
            if bad:
                p.grad[3, 3] = float("inf")
            optimizer.step()
            assert optimizer.recorded == (every is not None and not bad)
            if optimizer.recorded:
                found = optimizer.telemetry()
                assert found["model/step/norm"] == pytest.approx(norm([before.double() - p.detach().double()]))
                anchor = optimizer.state[p]["anchor"].double()
                drift = norm([p.detach().double() - anchor])
                assert found["model/drift/distance"] == pytest.approx(drift, rel=1e-5)
                if "max_grad_norm" in common:
                    assert found["model/gradient/norm"] == pytest.approx(0.5, rel=1e-3)
        ends.append([p.detach(), *(x for x in optimizer.state[p].values() if isinstance(x, Tensor))])
    assert len(ends[0]) == len(ends[1]) > 4
    for a, b in zip(*ends):
        assert torch.equal(a, b)


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(math.fsum(float(t.double().square().sum()) for t in tensors))


def direction_change(before: Tensor, after: Tensor) -> float:
    p, q = before.double(), after.double()
    return float((q / q.norm() - p / p.norm()).norm())


@every_row
def test_the_numbers_of_a_step_are_those_of_its_weights(row: OptimizerRow) -> None:
    """Norms, directions and drift of every tensor, group and the model, over a schedule of missing gradients."""
    net = make_net()
    optimizer = row.build(named_groups(net, options(row)))
    optimizer.record(1, drift=True)
    start: dict[str, Tensor] = {}
    for t in (*range(1, 10), 20, 21, 30, 31):  # missing gradients at 7, zeros at 5 and 20, none at 30
        backward(net, t)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        stepping = {name for name, p in net.named_parameters() if p.grad is not None and p.numel()}
        grads = {name: p.grad.clone() for name, p in net.named_parameters() if name in stepping}
        for name in stepping:
            start.setdefault(name, before[name])
        optimizer.step()
        after = {name: p.detach() for name, p in net.named_parameters()}
        if not stepping:
            continue
        found = optimizer.telemetry(per_tensor=True)
        assert found["model/step/tensors"] == len(stepping)
        effective, cosines = [], []
        for i, group in enumerate(optimizer.param_groups):
            members = [name for name in group["param_names"] if name in stepping]
            for name in group["param_names"]:
                assert (f"group{i}/step/norm/{name}" in found) == (name in stepping)
            for name in members:
                p, q, g = before[name], after[name], grads[name]
                value = {key.removeprefix(f"group{i}/").removesuffix(f"/{name}"): v for key, v in found.items()}
                assert value["step/norm"] == pytest.approx(norm([p - q]), rel=1e-9)
                assert value["weights/norm"] == pytest.approx(norm([q]), rel=1e-12)
                assert value["gradient/norm"] == pytest.approx(norm([g]), rel=1e-12)
                assert value["step/moved"] == pytest.approx(float((p != q).double().mean()), abs=1e-12)
                assert value["drift/distance"] == pytest.approx(norm([q - start[name]]), rel=1e-9)
                assert value["drift/relative"] == pytest.approx(norm([q - start[name]]) / norm([start[name]]), rel=1e-9)
                effective.append(direction_change(p, q))
                assert value["step/effective"] == pytest.approx(effective[-1], rel=1e-6, abs=1e-9)
                if norm([g]) > 0:
                    cosine = float((p * g).sum().abs()) / norm([p]) / norm([g]) * math.sqrt(p.numel())
                    assert value["weights/cosine"] == pytest.approx(cosine, rel=1e-9)
                    cosines.append(cosine)
            if members:
                assert found[f"group{i}/step/norm"] == pytest.approx(norm([before[n] - after[n] for n in members]))
                assert found[f"group{i}/drift/distance"] == pytest.approx(norm([after[n] - start[n] for n in members]))
        assert found["model/step/effective"] == pytest.approx(sum(effective) / len(effective), rel=1e-6, abs=1e-9)
        assert found["model/weights/norm"] == pytest.approx(norm([after[n] for n in stepping]), rel=1e-9)
        moved, whole = norm([after[n] - start[n] for n in stepping]), norm([start[n] for n in stepping])
        assert found["model/drift/relative"] == pytest.approx(moved / whole, rel=1e-9)
        if cosines:
            assert found["model/weights/cosine"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-9)


BRANCHES = {
    "AdamP": {"rows": "by_row", "tensor": "by_tensor"},
    "SGDP": {"rows": "by_row", "tensor": "by_tensor"},
    "AdamSPD": {"contracted": "contracted"},
    "SGDSPD": {"contracted": "contracted"},
    "AdamS": {"capped": "capped"},
    "Adam + projection + stable decay + SPD": {
        "rows": "by_row",
        "tensor": "by_tensor",
        "contracted": "contracted",
    },
}


@pytest.mark.parametrize("name", BRANCHES)
def test_rules_report_the_decisions_that_the_reference_took(name: str) -> None:
    """At each of 60 steps, as many tensors as the naive reference counted; each decision is seen both ways."""
    row = BY_NAME[name]
    more = {"weight_decay": 2.0} if name == "AdamS" else {}  # the cap binds on some steps
    hyper = {**options(row), **more}
    net, twin = make_net(), make_net()
    optimizer = row.build(named_groups(net, hyper), **more)
    optimizer.record(1)
    twin_groups = make_groups(twin, hyper)
    reference = row.reference([{**row.hyper(), **more, **group} for group in twin_groups])
    seen, steps_capped = Counter[str](), 0
    for t in range(60):
        backward(net, t)
        backward(twin, t)
        before = reference.branches.copy()
        optimizer.step()
        reference.step(gradients(twin_groups))
        with torch.no_grad():
            for group, result in zip(twin_groups, reference.groups):
                for p, value in zip(group["params"], result["params"]):
                    p.copy_(value)
        taken = reference.branches - before
        steps_capped += taken["capped"] > 0
        if not optimizer.recorded:
            continue
        found = optimizer.telemetry(per_tensor=True) if any(p.grad is not None for p in net.parameters()) else {}
        for branch, metric in BRANCHES[name].items():
            # per tensor: group/rule/metric/parameter
            reported = sum(v for key, v in found.items() if key.split("/")[2:3] == [metric] and key.count("/") == 3)
            assert reported == taken[branch], f"step {t}: {metric}"
            seen[metric] += int(reported)
    assert all(seen[metric] > 0 for metric in BRANCHES[name].values())
    if name == "AdamS":
        assert optimizer.telemetry()["model/stable_decay/capped_steps"] == steps_capped
        assert 0 < steps_capped < 50


def test_ratios_and_shrinks() -> None:
    """SPD's r from the radii of a plain step, the trust ratio from the step's length, 1/sqrt(v̄) from the gradients."""
    net = make_net()
    optimizer = mo.AdamSPD(net.named_parameters(), lr=1e-2, strength=0.7)
    optimizer.record(1)
    contracted = 0
    for t in range(1, 20):
        backward(net, t)
        plain, twin_net = copy.deepcopy((optimizer, net))
        for p, q in zip(net.parameters(), twin_net.parameters()):
            q.grad = None if p.grad is None else p.grad.clone()
        for group in plain.param_groups:
            group["strength"] = 0.0
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        optimizer.step()
        plain.step()
        found = optimizer.telemetry(per_tensor=True)
        ratios = []
        for name, q in twin_net.named_parameters():
            if found.get(f"group0/selective_projection/contracted/{name}"):
                a = optimizer.state[net.get_parameter(name)]["anchor"]
                now, was = norm([q.detach() - a]), norm([before[name] - a])
                ratios.append((now - was) / now)
                assert found[f"group0/selective_projection/ratio/{name}"] == pytest.approx(ratios[-1], rel=1e-6)
        if ratios:
            assert found["model/selective_projection/ratio"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-6)
        else:
            assert "model/selective_projection/ratio" not in found
        contracted += len(ratios)
    assert contracted > 10

    weights, grad = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    p = torch.nn.Parameter(weights.clone())
    optimizer = mo.Adam([p], lr=0.1, rules=[mo.StableDecay(0.3), mo.TrustRatio()], one_parameter=True)
    optimizer.record()
    p.grad = grad.clone()
    optimizer.step()
    found = optimizer.telemetry()
    scale = 1 / float(grad.square().mean().sqrt())
    assert found["group0/stable_decay/scale"] == pytest.approx(scale, rel=1e-12)
    assert found["group0/stable_decay/shrink"] == pytest.approx(0.1 * 0.3 * scale, rel=1e-12)
    update = grad.sign() + 0.3 * scale * weights  # before the trust ratio, per unit of learning rate
    assert found["group0/trust_ratio/ratio"] == pytest.approx(norm([weights]) / norm([update]), rel=1e-6)
    assert found["group0/step/norm"] == pytest.approx(0.1 * norm([weights]), rel=1e-12)


@pytest.mark.parametrize("lr", [1e-5, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_small_effective_steps_keep_their_digits(lr: float, dtype: torch.dtype) -> None:
    """Also on weights whose updates mostly round to nothing: what is told is what the stored weights did."""
    torch.manual_seed(0)
    p = torch.nn.Parameter((0.05 * torch.randn(300, 200)).to(dtype))
    optimizer = mo.AdamW([p], lr=lr, weight_decay=0.1)
    optimizer.record(1)
    for _ in range(3):
        before = p.detach().clone().double()
        p.grad = torch.randn(p.shape).to(dtype)
        optimizer.step()
        after, found = p.detach().double(), optimizer.telemetry()
        # The chord from the part of the step across the weights, formed element by element.
        s = before - after
        across = s - before * ((s * before).sum() / before.square().sum())
        sine = float(across.norm() / after.norm())
        assert found["group0/step/effective"] == pytest.approx(sine, rel=1e-7)
        assert found["group0/step/norm"] == pytest.approx(float(s.norm()), rel=1e-12)
        moved = found["group0/step/moved"]
        assert moved == pytest.approx(float((s != 0).double().mean()), rel=1e-12)
        assert moved < 0.5 if dtype == torch.bfloat16 else moved > 0.5


def test_large_turns() -> None:
    """Beyond a right angle, and a weight that is turned round."""
    for target in ([-1.0, 1.0], [-3.0, 0.0], [0.0, 2.0]):
        p = torch.nn.Parameter(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
        optimizer = mo.SGD([p], lr=1.0)
        optimizer.record()
        p.grad = p.detach() - torch.tensor([target], dtype=torch.float64)
        before = p.detach().clone()
        optimizer.step()
        assert optimizer.telemetry()["model/step/effective"] == pytest.approx(direction_change(before, p.detach()))


class Transfers(TorchDispatchMode):
    """Counts what reads a tensor's value on the host, which is where an accelerator would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += "_local_scalar_dense" in str(func) or "nonzero" in str(func) or "equal" in str(func)
        return func(*args, **(kwargs or {}))


@every_row
def test_a_recorded_step_reads_nothing_back(row: OptimizerRow) -> None:
    net = make_net(dtype=torch.float32)
    optimizer = row.build(named_groups(net, options(row)))
    counts = []
    for t in (1, 2, 3):
        backward(net, t)
        if t == 3:
            optimizer.record(drift=True)
        with Transfers() as seen:
            optimizer.step()
        counts.append(seen.reads)
    assert optimizer.recorded
    assert counts[1] == counts[2]  # the first step fills state


def test_every_wrap_and_other_kinds_of_parameters() -> None:
    """Muon under a rule, complex weights, groups with names, a learning rate of zero."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 4, bias=False)
    optimizer = mo.wrap(torch.optim.Muon(net.parameters(), lr=0.02), rules=[mo.SelectiveProjection(1.0)])
    optimizer.record(every=3)
    recorded = []
    for t in range(8):
        before = net.weight.detach().clone()
        optimizer.zero_grad()
        (net(torch.randn(5, 6)) - 1).square().sum().backward()
        optimizer.step()
        recorded.append(optimizer.recorded)
        if optimizer.recorded:
            found = optimizer.telemetry()
            assert found["model/step/number"] == t + 1
            assert found["group0/step/norm"] == pytest.approx(norm([before - net.weight.detach()]), rel=1e-6)
    assert recorded == [t % 3 == 0 for t in range(8)]
    assert optimizer.telemetry()["model/step/number"] == 7

    z = torch.nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
    still = torch.nn.Parameter(torch.ones(2))
    optimizer = mo.AdamW(
        [{"params": [z], "name": "the spectrum"}, {"params": [still], "lr": 0.0, "name": "model"}], lr=0.1
    )
    optimizer.record(drift=True)
    z.grad, still.grad = torch.randn_like(z), torch.ones_like(still)
    before = z.detach().clone()
    optimizer.step()
    found = optimizer.telemetry(per_tensor=True)
    assert found["the_spectrum/step/norm"] == pytest.approx(float((before - z.detach()).norm()), rel=1e-6)
    assert found["the_spectrum/step/moved/tensor0"] == 1.0
    assert found["model_1/step/norm"] == found["model_1/step/effective"] == found["model_1/drift/distance"] == 0.0


def test_a_zero_tensor_has_no_direction() -> None:
    p = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = mo.SGDSPD([p], lr=0.1)
    optimizer.record()
    p.grad = torch.ones_like(p)
    optimizer.step()
    found = optimizer.telemetry()
    assert not {"model/step/effective", "model/weights/cosine", "model/drift/relative"} & set(found)
    assert all(math.isfinite(v) and type(v) is float for v in found.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_told(bad: float) -> None:
    p, q = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    rules = [mo.RadialProjection(), mo.StableDecay(0.1, toward="anchor"), mo.SelectiveProjection()]
    optimizer = mo.Adam([p, q], lr=0.1, rules=rules)
    optimizer.record()
    p.grad, q.grad = torch.ones_like(p), torch.randn_like(q)
    p.grad[1, 1] = bad
    optimizer.step()
    found = optimizer.telemetry(per_tensor=True)
    assert not math.isfinite(found["model/gradient/norm"])
    assert math.isfinite(found["group0/gradient/norm/tensor1"])
    assert "group0/step/effective/tensor0" not in found


def test_recording_belongs_to_the_object() -> None:
    """It survives loading a checkpoint, is in none, and copies begin without it."""
    net = make_net()
    optimizer = mo.AdamS(net.parameters(), lr=1e-2, weight_decay=20.0)
    keys = [set(group) for group in optimizer.param_groups]
    optimizer.record(1)
    backward(net, 1)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    assert [set(group) for group in optimizer.param_groups] == keys
    optimizer.load_state_dict(saved)
    backward(net, 2)
    optimizer.step()
    assert optimizer.recorded and optimizer.telemetry()["model/step/number"] == 2
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert not other.recorded
        with pytest.raises(RuntimeError, match="record"):
            other.telemetry()
    optimizer.record(None)
    assert set(optimizer.telemetry()) == {"model/stable_decay/capped_steps"}  # counted without recording
    with pytest.raises(RuntimeError, match=r"record\(every=10\)"):
        mo.AdamW(net.parameters()).telemetry()
    for bad in (0, -1, 2.5, True, "2"):
        with pytest.raises(ValueError, match="every must be a whole number above 0"):
            optimizer.record(bad)


class Alignment(Rule):
    """A rule with inner products of its own in its report."""

    scope = "pointwise"

    def inspects(self) -> set[str]:
        return {"us", "gu"}

    def report(self, x: Any, totals: list[Tensor]) -> dict[str, Tensor]:
        return {"us": x.total("s", "u"), "per_lr": x.total("u", "s") / x.option("lr"), "gu": x.total("g", "u")}


def test_a_new_rule_reports_in_a_few_lines() -> None:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(2)]
    optimizer = mo.SGD(params, lr=0.25, momentum=0.5, rules=[mo.RadialProjection(delta=100.0), Alignment()])
    optimizer.record(1)
    buffer = [torch.zeros(4, 3, dtype=torch.float64) for _ in params]
    for _ in range(2):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        buffer = [0.5 * b + p.grad for b, p in zip(buffer, params)]
    found = optimizer.telemetry(per_tensor=True)
    for i, (u, p, was) in enumerate(zip(buffer, params, before)):
        expected = float((u * (was - p.detach())).sum())
        assert found[f"group0/alignment/us/tensor{i}"] == pytest.approx(expected, rel=1e-12)
        assert found[f"group0/alignment/per_lr/tensor{i}"] == pytest.approx(expected / 0.25, rel=1e-12)
        assert found[f"group0/alignment/gu/tensor{i}"] == pytest.approx(float((u * p.grad).sum()), rel=1e-12)
