"""The compiled kernels take eager's step: every row and variant, every type and shape, whichever path and thread."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mooring as mo
from mooring.kernels import choice
from mooring.kernels.cpu import schedule, tables, threads
from mooring.step import compiled
from mooring.step.tape import NotTaped
from tests.optim.problems import backward, make_net
from tests.optim.table import ROWS, OptimizerRow

CASES = [pytest.param(row, variant, id=f"{row.name}, {variant}") for row in ROWS for variant in row.variants]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)

SHAPES = [(7, 5), (3, 2, 3, 3), (40,), (1,), (), (0, 3), (5, 1000), (2, 70000), (300, 9), (1, 1), (600,)]


def parameters(dtype: torch.dtype, seed: int = 0, shapes: list[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [nn.Parameter((w + w.sign()).to(dtype)) for w in weights]


def feed(params: list[nn.Parameter], t: int) -> None:
    generator = torch.Generator().manual_seed(1000 + t)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = None if (t + i) % 6 == 0 else g.to(p.dtype)  # each skips a step now and then


def train(
    make: Callable[[list[nn.Parameter]], Any], backend: str, dtype: torch.dtype, steps: int = 8, **more: Any
) -> tuple[list[nn.Parameter], Any]:
    params = parameters(dtype, **more)
    with choice.use(backend):
        optimizer = make(params)
        for t in range(1, steps + 1):
            feed(params, t)
            optimizer.step()
    return params, optimizer


def served(optimizer: Any) -> bool:
    return all(batch.compiled is not None for batch in optimizer._plan.batches)


def distance(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> float:
    """The largest difference in units of the tensor's largest element."""
    return max(
        float((p.double() - q.double()).abs().max() / q.double().abs().max()) for p, q in zip(ours, theirs) if p.numel()
    )


@pytest.mark.parametrize(("row", "variant"), CASES)
def test_every_row_takes_the_step_of_eager(row: OptimizerRow, variant: str) -> None:
    """In float64 only the order of sums differs: some units in the last place after eight steps."""
    (ours, compiled_), (theirs, _) = (
        train(lambda ps: row.build(ps, variant), backend, torch.float64) for backend in ("numba", "eager")
    )
    assert served(compiled_)
    assert distance(ours, theirs) <= 1e-12


@every_row
def test_in_float32_within_the_rounding_of_each_step(row: OptimizerRow) -> None:
    """A step rounds its displacement some ten times, and the weight once; once more where a contraction follows."""
    (ours, optimizer), (theirs, _) = (train(row.build, b, torch.float32) for b in ("numba", "eager"))
    assert served(optimizer)
    assert distance(ours, theirs) <= 8 * 4 * torch.finfo(torch.float32).eps


ROUNDINGS: list[dict[str, str]] = [{}, {"rounding": "stochastic"}, {"rounding": "kahan"}, {"state_dtype": "bfloat16"}]


@pytest.mark.parametrize("options", ROUNDINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_row
def test_narrow_weights(row: OptimizerRow, dtype: torch.dtype, options: dict[str, str]) -> None:
    """One step from the same numbers lands on the same narrow number, or its neighbour where it is a close call."""
    (ours, optimizer), (theirs, _) = (
        train(lambda ps: row.build(ps, **options), b, dtype, steps=1) for b in ("numba", "eager")
    )
    assert served(optimizer)
    assert_neighbours([(p.detach(), q.detach()) for p, q in zip(ours, theirs)])


@pytest.mark.parametrize(("row", "variant"), CASES)
def test_narrow_moments(row: OptimizerRow, variant: str) -> None:
    """All that is kept in bfloat16 is rounded with the same random bits."""
    (_, optimizer), (_, reference) = (
        train(lambda ps: row.build(ps, variant, state_dtype="bfloat16"), b, torch.float32, steps=1)
        for b in ("numba", "eager")
    )
    states = zip(optimizer.state.values(), reference.state.values())
    assert_neighbours([(a[k], b[k]) for a, b in states for k in a if a[k].dtype == torch.bfloat16])


def assert_neighbours(pairs: list[tuple[Tensor, Tensor]]) -> None:
    apart = 0
    for p, q in pairs:
        gap = (p.view(torch.int16).int() - q.view(torch.int16).int()).abs()
        assert not gap.numel() or int(gap.max()) <= 1
        apart += int(gap.count_nonzero())
    assert apart <= 0.002 * sum(p.numel() for p, _ in pairs)


# Paths: whichever is taken, the bits are the same.


def bits(params: list[nn.Parameter]) -> list[bytes]:
    return [p.detach().reshape(-1).view(torch.uint8).numpy().tobytes() if p.numel() else b"" for p in params]


def variants() -> Iterator[Any]:
    for row in ROWS:
        yield pytest.param(row, {}, id=row.name)
    yield pytest.param(next(r for r in ROWS if r.name == "AdamP"), {"delta": 0.5}, id="AdamP, delta .5")
    for rounding in ("stochastic", "kahan"):
        yield pytest.param(next(r for r in ROWS if r.name == "AdamW"), {"rounding": rounding}, id=f"AdamW, {rounding}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("row", "options"), list(variants()))
def test_the_path_changes_no_bit(
    row: OptimizerRow, options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one thread a tensor, in stages and waves, with rules in torch, recorded, by three threads, torch's or ours."""

    def run(recorded: bool = False) -> list[bytes]:
        def make(params: list[nn.Parameter]) -> Any:
            optimizer = row.build(params, **options)
            if recorded:
                optimizer.record(every=1)  # type: ignore[attr-defined]
            return optimizer

        params, optimizer = train(make, "numba", dtype)
        assert served(optimizer)
        return bits(params)

    once = run()
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "WHOLE", 0)
        assert run() == once
        patch.setattr(schedule, "WAVE", 1000)
        patch.setattr(schedule, "CHUNK", 64)
        assert run() == once
    with monkeypatch.context() as patch:

        def refuse(*_: Any) -> None:
            raise NotTaped("not this time")

        patch.setattr(compiled, "tape_rules", refuse)
        assert run() == once
    assert run(recorded=True) == once
    torch.set_num_threads(3)
    assert run() == once
    monkeypatch.setattr(threads, "_parallel", lambda: None)
    assert run() == once


@pytest.mark.parametrize("make", [mo.AdamP, partial(mo.SGDP, momentum=0.9)], ids=["AdamP", "SGDP"])
def test_what_is_needed_of_the_direction_follows_from_the_gradient(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of <p,u> where no projection follows, each row's own where rows are projected, all where tensors are.

    A large tensor that needed all of it in the step before is observed while it is looked at, and needs the move.
    """
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(40, 50, generator=generator) for _ in range(3)]
    noise = torch.randn(40, 50, generator=generator)
    along, away = (
        weights[0] + noise,
        noise - weights[1] * (weights[1] * noise).sum(1, keepdim=True) / (weights[1].square().sum(1, keepdim=True)),
    )
    lean = weights[2] * torch.tensor([1.0, -1.0]).repeat(20).unsqueeze(1)
    whole = noise + 3 * lean
    whole -= weights[2] * (weights[2] * whole).sum() / weights[2].square().sum()
    needed = [tables.NOTHING, tables.OWN_ROW, tables.EVERYTHING]

    def run(backend: str, thirds: list[int]) -> list[nn.Parameter]:
        params = [nn.Parameter(w.clone()) for w in weights]
        for p, g in zip(params, (along, away, whole)):
            p.grad = g.clone()
        with choice.use(backend):
            optimizer = make(params, lr=1e-4, weight_decay=0.1)
            for third in thirds:
                optimizer.step()
                if backend == "numba":
                    [batch] = optimizer._plan.batches
                    assert batch.compiled._needs.tolist() == [*needed[:2], third]
        return params

    small = run("numba", [tables.EVERYTHING] * 3)
    assert distance(small, run("eager", [tables.EVERYTHING] * 3)) <= 2e-6
    monkeypatch.setattr(schedule, "WHOLE", 0)
    assert bits(run("numba", [tables.EVERYTHING, tables.THE_MOVE, tables.THE_MOVE])) == bits(small)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=4).map(tuple), min_size=1, max_size=5),
    row=st.sampled_from(ROWS),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    last=st.booleans(),
)
def test_any_shape(shapes: list[tuple[int, ...]], row: OptimizerRow, dtype: torch.dtype, last: bool) -> None:
    def run(backend: str) -> list[nn.Parameter]:
        params = parameters(dtype, shapes=shapes)
        if last:
            for p in params:
                if p.ndim == 4:
                    p.data = p.data.contiguous(memory_format=torch.channels_last)
        with choice.use(backend):
            optimizer = row.build(params)
            for t in range(1, 5):
                feed(params, t)
                optimizer.step()
        return params

    assert distance([*run("numba"), nn.Parameter(torch.ones(1))], [*run("eager"), nn.Parameter(torch.ones(1))]) <= (
        1e-12 if dtype == torch.float64 else 2e-6
    )


@every_row
def test_what_is_not_a_number(row: OptimizerRow) -> None:
    """NaN, infinity and denormal gradients leave NaN and infinity where eager leaves them."""
    ends = []
    for backend in ("numba", "eager"):
        params = parameters(torch.float32)
        with choice.use(backend):
            optimizer = row.build(params)
            for t in range(1, 4):
                feed(params, t)
                for p, bad in zip(params, (float("nan"), float("inf"), 1e-42, -float("inf"))):
                    if p.grad is not None:
                        p.grad.view(-1)[0] = bad
                optimizer.step()
        ends.append(params)
    for p, q in zip(*ends):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_rows_beside_channels_last_gradients_of_another_layout() -> None:
    ends = []
    for backend in ("numba", "eager"):
        like_images = torch.zeros(6, 4, 3, 3, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        weight = nn.Parameter(like_images)
        torch.manual_seed(1)
        with torch.no_grad():
            weight.copy_(torch.randn(6, 4, 3, 3, dtype=torch.float64))
        with choice.use(backend):
            optimizer = mo.AdamP([weight], delta=0.5)
            for t in range(4):
                torch.manual_seed(t)
                weight.grad = torch.randn(6, 4, 3, 3, dtype=torch.float64)
                optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_narrow_weights_that_do_not_lie_row_by_row(rounding: str) -> None:
    ends = []
    for backend in ("numba", "eager"):
        torch.manual_seed(1)
        weight = nn.Parameter(torch.randn(6, 40, 5, 5).bfloat16().contiguous(memory_format=torch.channels_last))
        weight.grad = torch.randn(6, 40, 5, 5).bfloat16()
        with choice.use(backend):
            optimizer = mo.AdamW([weight], rounding=rounding)
            optimizer.step()
            assert (optimizer._plan.batches[0].compiled is not None) == (backend == "numba")
        ends.append(weight.detach())
    assert_neighbours([(ends[0], ends[1])])


@every_row
def test_a_run_goes_on_with_the_other_backend(row: OptimizerRow) -> None:
    nets = [make_net(), make_net()]
    optimizers = [row.build(net.parameters(), row.remembering) for net in nets]
    for t in range(1, 21):
        for net, optimizer, backend in zip(nets, optimizers, ("eager", "numba" if 5 < t <= 12 else "eager")):
            backward(net, t)
            with choice.use(backend):
                optimizer.step()
    for p, q in zip(*(net.parameters() for net in nets)):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-11)


def test_a_checkpoint_does_not_choose_the_backend() -> None:
    one, other = (mo.AdamW(parameters(torch.float32), backend=b) for b in ("eager", None))  # type: ignore[arg-type]
    other.load_state_dict(one.state_dict())
    assert other.param_groups[0]["backend"] is None


# What a process may do beside it.


def test_two_threads_step_two_optimizers() -> None:
    def run(params: list[nn.Parameter]) -> None:
        with choice.use("numba"):
            optimizer = mo.AdamP(params, delta=0.5)
        for t in range(1, 8):
            feed(params, t)
            optimizer.step()

    torch.set_num_threads(2)
    alone, *together = (parameters(torch.float32) for _ in range(3))
    run(alone)
    workers = [threading.Thread(target=run, args=(params,)) for params in together]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert bits(together[0]) == bits(alone) and bits(together[1]) == bits(alone)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_steps_with_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    expected, _ = train(mo.AdamP, "numba", torch.float32)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            assert threads._pool is None
            torch.set_num_threads(1)  # torch's own threads did not survive
            params, _ = train(mo.AdamP, "numba", torch.float32, steps=8)
            os.write(writer, b"same" if bits(params) == bits(expected) else b"different")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"same"
    os.waitpid(child, 0)


def test_workers_that_load_data_leave_the_kernels_alone() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(64.0).view(32, 2))
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = mo.AdamW([weight], backend="numba")
    for method in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context=method)
        for (x,) in loader:
            optimizer.zero_grad()
            (x @ weight).square().mean().backward()
            optimizer.step()
    assert weight.isfinite().all()


def test_matrix_products_between_steps_keep_their_bits() -> None:
    torch.set_num_threads(2)
    a = torch.randn(300, 300)
    expected = a @ a
    params = parameters(torch.float32)
    optimizer = mo.AdamW(params, backend="numba")
    for t in range(1, 6):
        feed(params, t)
        optimizer.step()
        assert torch.equal(a @ a, expected)


# The choice.


def test_a_backend_that_cannot_serve_says_why() -> None:
    weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
    weight.grad = torch.randn_like(weight)
    with pytest.raises(RuntimeError, match=r"backend='numba' cannot serve: the kernels take no complex numbers"):
        mo.AdamW([weight], backend="numba").step()
    mo.AdamW([weight]).step()
    with pytest.raises(ValueError, match="backend must be one of None, 'eager', 'numba', got 'fast'"):
        mo.AdamW([weight], backend="fast")  # type: ignore[arg-type]


def test_without_numba_eager_serves_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "numba_installed", lambda: False)
    monkeypatch.setattr(choice, "_said", [])
    monkeypatch.delenv("MOORING_BACKEND", raising=False)
    params = parameters(torch.float32)
    feed(params, 1)
    with pytest.warns(UserWarning, match=r"pip install 'mooring\[fast\]'"):
        mo.AdamW(params).step()
    mo.SGD(params, lr=0.1).step()  # a second warning would be an error
    with pytest.raises(RuntimeError, match=r"needs the extra fast"):
        mo.AdamW(params, backend="numba").step()


def test_rows_along_another_dimension_are_eagers() -> None:
    weight = nn.Parameter(torch.randn(4, 3))
    weight.grad = torch.randn_like(weight)
    optimizer = mo.AdamP([{"params": [weight], "row_dim": 1}])
    optimizer.step()
    assert not served(optimizer)


def test_a_host_that_moves_weights_is_followed() -> None:
    """Weights and state that lie elsewhere at the next step, as hosts swap them in and out."""
    (a, ours), (b, theirs) = ((ps := parameters(torch.float64), mo.AdamSPD(ps)) for _ in range(2))
    for t in range(1, 6):
        for params, optimizer, backend in ((a, ours, "numba"), (b, theirs, "eager")):
            feed(params, t)
            with choice.use(backend):
                optimizer.step()
        for p in a:
            p.data = p.data.clone()
            for state in ours.state[p].values():
                if state.ndim:
                    state.data = state.data.clone()
    assert distance(a, b) <= 1e-12


@pytest.mark.parametrize("cls", [mo.AdamW, mo.AdamS, mo.SGD, mo.AdamSPD])
def test_state_that_is_replaced_between_steps_is_found(cls: Any) -> None:
    """New objects, new memory in old objects, counts of another type, numbers of the scan, other strides."""

    def run(backend: str) -> list[Tensor]:
        params = parameters(torch.float64, shapes=[(5, 4), (3,)])
        with choice.use(backend):
            optimizer = cls(params, lr=0.01, **({"momentum": 0.9} if cls is mo.SGD else {}))
            for t in range(8):
                feed(params, t)
                state, other = (optimizer.state[p] for p in params)
                name = "momentum_buffer" if cls is mo.SGD else "exp_avg"
                if t == 2:
                    state[name] = 2 * state[name]
                elif t == 3:
                    other[name].data = other[name].data + 1
                elif t == 4:
                    state["step"], other["step"] = torch.tensor(3.0), torch.tensor(9.0, dtype=torch.float64)
                elif t == 5:
                    params[0].data = params[0].data.t().contiguous().t()
                    state.update({k: 3 * v for k, v in state.items() if k == "exp_avg_sq_sum"})
                elif t == 6:
                    other["step"] = torch.tensor(2.0)
                optimizer.step()
        return [p.detach() for p in params]

    for ours, theirs in zip(run("numba"), run("eager")):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", [mo.AdamW, mo.AdamS, mo.AdamP])
def test_no_gradient_is_held_after_the_step(cls: Any) -> None:
    """So that ``zero_grad`` frees its memory before the next backward pass needs it."""
    params = parameters(torch.float32, shapes=[(5, 4), (3,)])
    optimizer = cls(params)
    feed(params, 1)
    optimizer.step()
    assert served(optimizer)
    held = [weakref.ref(p.grad) for p in params]
    optimizer.zero_grad()
    assert all(gradient() is None for gradient in held)


def test_the_tape_knows_every_rule_of_the_library() -> None:
    """Nothing falls back to rules in torch without anyone noticing."""
    for row in ROWS:
        for variant in row.variants:
            _, optimizer = train(lambda ps, r=row, v=variant: r.build(ps, v), "numba", torch.float64, steps=1)
            assert all(b.compiled.runs_through for b in optimizer._plan.batches), (row.name, variant)  # type: ignore[union-attr]


def total(x: Tensor) -> float:
    return float(x.double().square().sum())


def test_sums_of_a_long_row_keep_their_digits() -> None:
    """float32 blocks and float64 across them: no lane adds more than 4096 / 16 numbers before it is widened."""
    weight = nn.Parameter(torch.full((1, 1 << 20), 0.1))
    weight.grad = torch.full_like(weight, 0.3)
    with choice.use("numba"):
        optimizer = mo.AdamW([weight], max_grad_norm=1.0, one_parameter=True)
        optimizer.step()
    assert float(optimizer.grad_norm) == pytest.approx(total(weight.grad) ** 0.5, rel=256 * 2**-24)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_norm_is_asked_for_before_the_first_step_and_uphill(dtype: torch.dtype) -> None:
    ends = []
    for backend in ("numba", "eager"):
        params = parameters(dtype)
        feed(params, 1)
        with choice.use(backend):
            optimizer = mo.AdamW(params, max_grad_norm=0.5, maximize=True)
            optimizer.step()
        ends.append((params, float(optimizer.grad_norm)))  # type: ignore[arg-type]
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-6)
    assert distance(ends[0][0], ends[1][0]) <= (2**-8 if dtype == torch.bfloat16 else 1e-6)
