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


# --- finite differences --------------------------------------------------------------------------------------------


class OnceOnly(torch.autograd.Function):
    """tanh whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


class Once(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return OnceOnly.apply(x)


@pytest.mark.parametrize("name", ["mlp", "batch norm and dropout", "attention"])
def test_differences_of_gradients_are_the_products(name: str) -> None:
    """In float64 rounding over the step leaves 1e-9, in float32 3e-4, times derivatives of order one."""
    net, batches = case(name)
    exact = Hessian(net, squared, batches, sizes=[5, 3]).dense()
    differences = Hessian(net, squared, batches, sizes=[5, 3], method="finite_difference")
    assert float((differences.dense() - exact).norm() / exact.norm()) < 1e-8
    narrow = [(x.float(), y.float()) for x, y in batches]
    single = Hessian(net.float(), squared, narrow, [5, 3], method=differences.method)
    assert float((single.dense() - exact).norm() / exact.norm()) < 2e-3


def test_a_step_is_one_that_narrow_weights_can_take() -> None:
    """In bfloat16, of eight bits, a step of float32 would leave most weights where they are."""
    net, batches = case("mlp")
    exact = Hessian(net, squared, batches, sizes=[5, 3]).dense()
    narrow = [(x.bfloat16(), y.bfloat16()) for x, y in batches]
    hessian = Hessian(net.bfloat16(), squared, narrow, [5, 3], method="finite_difference")
    assert hessian.step == pytest.approx(0.0884, rel=1e-2)
    assert float((hessian.dense() - exact).norm() / exact.norm()) < 0.3


def test_the_error_of_differences_falls_with_the_square_of_the_step() -> None:
    net, batches = case("mlp")
    exact = Hessian(net, squared, batches).dense()
    errors = [
        float((Hessian(net, squared, batches, method="finite_difference", step=h).dense() - exact).norm())
        for h in (2e-2, 1e-2)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)


def test_where_there_is_no_second_derivative_differences_are_taken() -> None:
    net, batches = case("mlp")
    exact = Hessian(net, squared, batches).dense()
    net[1] = Once()  # type: ignore[index]
    hessian = Hessian(net, squared, batches)
    assert hessian.method == "auto"
    assert float((hessian.dense() - exact).norm() / exact.norm()) < 1e-8
    assert hessian.method == "finite_difference"
    assert hessian.block(list(net.parameters())[:1]).method == "finite_difference"
    with pytest.raises(RuntimeError, match="once_differentiable"):
        Hessian(net, squared, batches, method="double_backward").trace(1)


class Silent(torch.autograd.Function):
    """tanh whose backward pass leaves autograd, as a kernel of one's own does: its gradient passes for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (g * (1 - x.tanh() ** 2)).detach()


def test_a_second_derivative_that_is_lost_in_silence_can_be_found_out() -> None:
    net, batches = case("mlp")
    assert Hessian(net, squared, batches).agreement() < 1e-8
    module = nn.Module()
    module.forward = Silent.apply  # type: ignore[method-assign]
    net[1] = module  # type: ignore[index]
    assert Hessian(net, squared, batches).agreement() > 0.1


@pytest.mark.parametrize("method", ["double_backward", "finite_difference"])
@pytest.mark.parametrize("raises", [False, True])
def test_nothing_is_left_behind(method: str, raises: bool) -> None:
    """Weights to the bit, gradients, modes, buffers that the loss itself moves, random numbers; also after a raise."""
    net, batches = case("batch norm and dropout")
    net.train()
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    calls = 0

    def loss(model: Any, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        model[1].running_mean.add_(torch.rand(()))
        if raises and calls == 3:
            raise ZeroDivisionError
        return squared(model, batch)

    before = copy.deepcopy(net.state_dict())
    gradients = [p.grad for p in net.parameters()]
    kept = [g.clone() for g in gradients if g is not None]
    state = torch.get_rng_state()
    hessian = Hessian(net, loss, batches, method=method)
    try:
        hessian.trace(2)
        assert not raises
    except ZeroDivisionError:
        assert raises
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is g and torch.equal(g, k) for p, g, k in zip(net.parameters(), gradients, kept))
    assert net.training and net[1].training  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_random_loss_is_the_same_function_at_every_evaluation() -> None:
    """Dropout that a loss insists on has one mask, so differences are those of one function."""
    net, batches = case("mlp")

    def loss(model: Any, batch: Any) -> Tensor:
        x, y = batch
        return (nn.functional.dropout(model(x), 0.5, training=True) - y).square().mean()

    state = torch.get_rng_state()
    exact = Hessian(net, loss, batches, method="double_backward").dense()
    differences = Hessian(net, loss, batches, method="finite_difference").dense()
    assert float((differences - exact).norm() / exact.norm()) < 1e-8
    assert torch.equal(torch.get_rng_state(), state)


# --- data ----------------------------------------------------------------------------------------------------------


class Streamed:
    """Batches that are made one at a time and counted while they are alive."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.read = batches, 0

    def __iter__(self) -> Any:
        for batch in self.batches:
            self.read += 1
            yield batch


def test_batches_are_read_anew_and_need_not_be_held() -> None:
    net, batches = case("mlp")
    wanted = Hessian(net, squared, batches, sizes=[5, 3]).dense()
    streamed = Streamed(batches)
    hessian = Hessian(net, squared, streamed, sizes=[5, 3])
    assert torch.equal(hessian.dense(), wanted)
    assert streamed.read == 2 * (1 + hessian.size)
    assert torch.equal(Hessian(net, squared, iter(batches), sizes=[5, 3]).dense(), wanted)
    data = torch.utils.data.TensorDataset(torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches]))
    state = torch.get_rng_state()
    loaded = Hessian(net, squared, torch.utils.data.DataLoader(data, batch_size=5), sizes=[5, 3])
    torch.testing.assert_close(loaded.dense(), wanted)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_product_and_a_loss_must_be() -> None:
    net, batches = case("mlp")
    hessian = Hessian(net, squared, batches)
    with pytest.raises(ValueError, match=r"vector must have the shapes of the trainable parameters"):
        hessian.product([torch.ones(3)])
    with pytest.raises(ValueError, match=r"loss must return a tensor of one element .* shape \(5, 2\)"):
        Hessian(net, lambda m, b: m(b[0]), batches).trace(1)
    with pytest.raises(ValueError, match="method must be one of 'auto'"):
        Hessian(net, squared, batches, method="exact")
    with pytest.raises(ValueError, match="step must be a finite number > 0, got 0"):
        Hessian(net, squared, batches, step=0)
    with pytest.raises(ValueError, match="which must be one of 'largest'"):
        hessian.top(1, which="biggest")  # type: ignore[arg-type]


# --- spectrum and blocks -------------------------------------------------------------------------------------------


def test_eigenpairs_and_both_ends_of_the_spectrum() -> None:
    net, batches = case("mlp")
    hessian = Hessian(net, squared, batches, sizes=[5, 3])
    matrix = hessian.dense()
    values = torch.linalg.eigvalsh(matrix)
    torch.testing.assert_close(torch.tensor(hessian.top(2, 1e-10)), values[-2:].flip(0).float())
    torch.testing.assert_close(torch.tensor(hessian.top(2, 1e-10, which="smallest")), values[:2].float())
    largest = values[values.abs().argsort(descending=True)][:3]
    torch.testing.assert_close(torch.tensor(hessian.top(3, 1e-10, which="magnitude")), largest.float())
    for value, vector in hessian.eigenpairs(2, 1e-10):
        flat = torch.cat([x.reshape(-1) for x in vector])
        assert flat.norm() == pytest.approx(1)
        torch.testing.assert_close(matrix @ flat, value * flat, atol=1e-8, rtol=0)


@pytest.mark.parametrize("method", ["double_backward", "finite_difference"])
def test_the_density_has_the_moments_of_the_matrix_seen_by_its_probes(method: str) -> None:
    """m steps are exact up to the power 2m - 1; as many as there are weights, for every function."""
    net, batches = case("mlp")
    hessian = Hessian(net, squared, batches, sizes=[5, 3], method=method)
    matrix = Hessian(net, squared, batches, sizes=[5, 3]).dense()
    generator = torch.Generator().manual_seed(4)
    probes = torch.stack([torch.cat([v.reshape(-1) for v in hessian._signs(generator)]) for _ in range(3)])
    density = hessian.density(steps=5, probes=3, seed=4)
    for power in range(10):
        wanted = torch.einsum("pi,ij,pj->p", probes, torch.linalg.matrix_power(matrix, power), probes)
        got = density.trace_of(lambda x, power=power: x**power)
        assert got.value == pytest.approx(float(wanted.mean()), rel=1e-6)
        assert got.error == pytest.approx(float(wanted.std()) / 3**0.5, rel=1e-4, abs=1e-9)
    whole = hessian.density(steps=100, probes=3, seed=4)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    shares = (probes @ vectors).square()
    wanted = (shares * values.exp()).sum(1).mean()
    assert whole.trace_of(torch.exp).value == pytest.approx(float(wanted), rel=1e-6)
    trace = hessian.trace(3, seed=4)
    assert density.trace_of(lambda x: x).value == pytest.approx(trace.value, rel=1e-6)
    assert density.trace_of(lambda x: x).error == pytest.approx(trace.error, rel=1e-4)


def quadratic(curvatures: Tensor) -> tuple[nn.Module, Any, list[Tensor]]:
    model = nn.Module()
    model.register_parameter("p", nn.Parameter(torch.linspace(-1, 1, len(curvatures), dtype=torch.float64)))
    return model, lambda m, c: (c * m.p.square()).sum() / 2, [curvatures.double()]


def test_the_density_of_a_diagonal_hessian_is_exact() -> None:
    """Signs weigh all eigenvalues of a diagonal matrix alike: no error over probes, bells at the eigenvalues."""
    curvatures = torch.tensor([1.0] * 70 + [4.0] * 20 + [-2.0] * 10)
    model, loss, batches = quadratic(curvatures)
    density = Hessian(model, loss, batches).density(steps=20, probes=2, width=0.05)
    for nodes, weights in zip(density.nodes, density.weights):
        torch.testing.assert_close(nodes, torch.tensor([-2.0, 1.0, 4.0]).double())  # ended after three steps
        torch.testing.assert_close(weights, torch.tensor([0.1, 0.7, 0.2]).double())
    assert torch.trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-3)
    assert float(density.error.max()) < 1e-9
    middle = torch.trapezoid(density.density[density.grid > 2.5], density.grid[density.grid > 2.5])
    assert middle == pytest.approx(0.2, abs=1e-3)
    assert density.trace_of(lambda x: x.clamp(min=0)).value == pytest.approx(150)


def test_blocks_add_up_and_have_the_eigenvalues_of_the_matrixs_blocks() -> None:
    net, batches = case("mlp")
    hessian = Hessian(net, squared, batches, sizes=[5, 3])
    matrix = hessian.dense()
    blocks = hessian.blocks(probes=200, top=True, tolerance=1e-8)
    assert [b.name for b in blocks] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert sum(b.trace.value for b in blocks) == pytest.approx(hessian.trace(200).value)
    start = 0
    for block in blocks:
        part = matrix[start : start + block.size, start : start + block.size]
        across = matrix[start : start + block.size].square().sum() - part.square().sum()
        within = part.square().sum() - part.diagonal().square().sum()
        error = float((2 * within + across) / 200) ** 0.5
        assert abs(block.trace.value - float(part.trace())) < 4 * error
        assert 0.7 < block.trace.error / error < 1.4
        assert block.top == pytest.approx(float(torch.linalg.eigvalsh(part)[-1]), rel=1e-6)
        start += block.size
    modules = hessian.blocks(probes=3, by="module", top=True, tolerance=1e-8)
    assert [(b.name, b.size) for b in modules] == [("0", 16), ("2", 10)]
    assert modules[0].top == pytest.approx(float(torch.linalg.eigvalsh(matrix[:16, :16])[-1]), rel=1e-6)
    assert all(b.top is None for b in hessian.blocks(1))


def test_a_sketch_takes_large_eigenvalues_out_of_the_error() -> None:
    """Exact where its rank suffices; else unbiased, with the error of what is left."""
    torch.manual_seed(0)
    few = torch.randn(40, 3).double()
    model = nn.Linear(40, 1, bias=False).double()
    spikes = Hessian(model, lambda m, x: m(x).square().sum() / 2, [few.T])
    exact = float(few.square().sum())
    found = spikes.trace(2, sketch=4)
    assert found.value == pytest.approx(exact, rel=1e-10) and found.error < 1e-8 < spikes.trace(10).error
    x = torch.cat([few.T, 0.3 * torch.randn(60, 40).double()])
    both = Hessian(model, lambda m, x: m(x).square().sum() / 2, [x])
    plain, sketched = both.trace(200), both.trace(190, sketch=5)
    assert abs(sketched.value - float(x.square().sum())) < 4 * sketched.error
    assert 2 * sketched.error < plain.error
    with pytest.raises(ValueError, match="sketch must be between 0 and 39, got 40"):
        both.trace(3, sketch=40)


def test_progress_counts_products() -> None:
    net, batches = case("mlp")
    hessian = Hessian(net, squared, batches)
    for measure, wanted in (
        (lambda tell: hessian.trace(3, progress=tell), [(1, 3), (2, 3), (3, 3)]),
        (lambda tell: hessian.trace(2, progress=tell, sketch=1), [(1, 4), (2, 4), (3, 4), (4, 4)]),
        (lambda tell: hessian.density(2, 2, progress=tell), [(1, 4), (2, 4), (3, 4), (4, 4)]),
        (lambda tell: hessian.blocks(2, progress=tell), [(1, 2), (2, 2)]),
    ):
        told: list[tuple[int, int | None]] = []
        measure(lambda done, total, told=told: told.append((done, total)))
        assert told == wanted
    told = []
    hessian.top(progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, None) for i in range(len(told))] and len(told) > 3
