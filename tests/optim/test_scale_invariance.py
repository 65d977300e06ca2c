"""What is found scale invariant, checked against gradients; and that what is declared is projected, nothing else."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import mooring as mo

EPS = 1e-12  # where a gradient is to show the invariance to rounding, the norm's own eps must not show in it


class RMSNorm(nn.Module):  # as transformers writes it: a cast to float32 and an eps of another name
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = EPS

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32) if x.dtype != torch.float64 else x.to(torch.float64)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


class Conv1D(nn.Module):  # GPT-2's linear layer: (inputs, outputs)
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Attention(nn.Module):
    """Two heads; with ``qk_norm`` queries and keys are normalized within each head."""

    def __init__(self, width: int, qk_norm: bool) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=not qk_norm)
        self.v = nn.Linear(width, width)
        self.qk_norm = nn.RMSNorm(width // 2, eps=EPS) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(self.qk_norm(q), self.qk_norm(k), v)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Tied(nn.Module):
    """One matrix used twice, each time before a norm, or (``free``) the second time without."""

    def __init__(self, free: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.norm, self.last = nn.LayerNorm(6, eps=EPS), nn.Identity() if free else nn.LayerNorm(6, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.tanh(self.norm(self.first(x)))))


class LoRA(nn.Module):
    """A frozen map plus B A, B zero at the start, so that A has no influence yet."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6, bias=False).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(self.base(x) + self.lora_B(self.lora_A(x)), (6,), eps=EPS)


def linear(width: int = 6, bias: bool = False, zero: bool = False, frozen: bool = False) -> nn.Linear:
    layer = nn.Linear(6, width, bias=bias)
    if zero:
        nn.init.zeros_(layer.bias)
    if frozen:
        layer.bias.requires_grad_(False)
    return layer


def conv(bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(2, 4, 3, bias=bias)


def layer_norm() -> nn.LayerNorm:
    return nn.LayerNorm(6, eps=EPS)


def batch_norm(frozen: bool = False) -> nn.Module:
    layer = nn.BatchNorm2d(4, eps=EPS)
    return layer.eval() if frozen else layer


VECTORS, IMAGES, WORDS = "vectors", "images", "words"


@dataclass(frozen=True)
class Case:
    """A net, the kind of its input, and what should be found."""

    name: str
    make: Callable[[], nn.Module]
    batch: str
    row: str = ""
    tensor: str = ""
    unused: str = ""


def chain(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


def head() -> nn.Module:
    return nn.Sequential(nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


CASES = [
    Case("conv, batch norm", chain(conv, batch_norm, head), IMAGES, row="0.weight", unused="0.bias"),
    Case("frozen batch norm", chain(conv, lambda: batch_norm(True), head), IMAGES),
    Case("relu between", chain(lambda: conv(False), nn.ReLU, batch_norm, head), IMAGES, row="0.weight"),
    Case("gelu between", chain(lambda: conv(False), nn.GELU, batch_norm, head), IMAGES),
    Case("relu and bias between", chain(conv, nn.ReLU, batch_norm, head), IMAGES),
    Case(
        "group norm by channel",
        chain(lambda: conv(False), lambda: nn.GroupNorm(4, 4, EPS), head),
        IMAGES,
        row="0.weight",
    ),
    Case("group norm by two", chain(conv, lambda: nn.GroupNorm(2, 4, EPS), head), IMAGES),
    Case(
        "group norm by two, no bias",
        chain(lambda: conv(False), lambda: nn.GroupNorm(2, 4, EPS), head),
        IMAGES,
        tensor="0.weight",
    ),
    Case(
        "instance norm", chain(conv, lambda: nn.InstanceNorm2d(4, EPS), head), IMAGES, row="0.weight", unused="0.bias"
    ),
    Case(
        "transposed conv",
        chain(lambda: nn.ConvTranspose2d(2, 4, 3, bias=False), batch_norm, head),
        IMAGES,
        row="0.weight",
    ),
    Case("linear, layer norm", chain(linear, layer_norm, head), VECTORS, tensor="0.weight"),
    Case("bias that starts at zero", chain(lambda: linear(bias=True, zero=True), layer_norm, head), VECTORS),
    Case(
        "bias frozen at zero",
        chain(lambda: linear(bias=True, zero=True, frozen=True), layer_norm, head),
        VECTORS,
        tensor="0.weight",
    ),
    Case(
        "linear, batch norm",
        chain(lambda: linear(bias=True), lambda: nn.BatchNorm1d(6, EPS), head),
        VECTORS,
        row="0.weight",
        unused="0.bias",
    ),
    Case(
        "Conv1D by columns",
        chain(lambda: Conv1D(6, 4), lambda: nn.BatchNorm1d(4, EPS), head),
        VECTORS,
        row="0.weight",
    ),
    Case("rms norm", chain(linear, lambda: RMSNorm(6), head), VECTORS, tensor="0.weight"),
    Case("bias before rms norm", chain(lambda: linear(bias=True), lambda: RMSNorm(6), head), VECTORS),
    Case(
        "gain before a norm",
        chain(lambda: RMSNorm(6), linear, layer_norm, head),
        VECTORS,
        tensor="0.weight 1.weight",
    ),
    Case("residual", chain(lambda: Residual(linear()), layer_norm, head), VECTORS),
    Case(
        "weight norm",
        chain(lambda: weight_norm(linear(bias=True)), nn.Tanh, linear),
        VECTORS,
        row="0.parametrizations.weight.original1",
    ),
    Case(
        "weight norm, layer norm",
        chain(lambda: weight_norm(linear()), layer_norm, head),
        VECTORS,
        row="0.parametrizations.weight.original1",
        tensor="0.parametrizations.weight.original0",
    ),
    Case(
        "weight norm of a transposed conv",
        chain(lambda: weight_norm(nn.ConvTranspose2d(2, 4, 3), dim=1), nn.Tanh),
        IMAGES,
        row="0.parametrizations.weight.original1",
    ),
    Case("softmax", chain(lambda: linear(bias=True), lambda: nn.Softmax(-1)), VECTORS),
    Case("tied", lambda: Tied(False), VECTORS, tensor="first.weight"),
    Case("tied, one use free", lambda: Tied(True), VECTORS),
    Case("LoRA", chain(LoRA, head), VECTORS),
    Case("embedding", chain(lambda: nn.Embedding(9, 6), layer_norm, head), WORDS, row="0.weight"),
    Case(
        "dropout",
        chain(linear, nn.Dropout, layer_norm, lambda: nn.Dropout(0.9), head),
        VECTORS,
        tensor="0.weight",
    ),
    Case(
        "attention",
        chain(lambda: nn.Embedding(9, 6), lambda: Attention(6, False), head),
        WORDS,
        unused="1.k.bias",  # adds the same to every score of a query, and softmax does not see it
    ),
    Case(
        "attention with qk-norm",
        chain(lambda: nn.Embedding(9, 4), lambda: Attention(4, True), head),
        WORDS,
        tensor="1.q.weight 1.k.weight",
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def batch_of(kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == WORDS:
        return torch.randint(0, 9, (3, 4), generator=generator)
    return torch.randn((5, 6) if kind == VECTORS else (3, 2, 5, 5), generator=generator, dtype=torch.float64)


def build(case: Case) -> nn.Module:
    torch.manual_seed(1)
    model = case.make().double()
    model(batch_of(case.batch, 0))  # gives lazy layers their shape
    with torch.no_grad():
        for p in model.parameters():
            if p.any() and p.requires_grad:  # zeros stay zeros: they are what the trial must see through
                p.mul_(1 + 0.2 * torch.randn_like(p))
    return model


def radial(g: Tensor, p: Tensor) -> float:
    """<g, p> beside the size it would have by chance."""
    return float((g * p).sum().abs() / (g * p).norm())


@every_case
def test_finds_what_is_scale_invariant(case: Case) -> None:
    found = mo.scale_invariant_parameters(build(case), batch_of(case.batch, 0))
    expected = {**dict.fromkeys(case.row.split(), "row"), **dict.fromkeys(case.tensor.split(), "tensor")}
    assert dict(found) == expected
    assert found.unused == tuple(case.unused.split())


@every_case
def test_gradients_agree_on_another_batch(case: Case) -> None:
    """Euler: invariant under scaling exactly where gradients have no radial part, here at other weights too."""
    model = build(case)
    found = mo.scale_invariant_parameters(model, batch_of(case.batch, 0))
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    out = model(batch_of(case.batch, 7))
    (out * torch.randn_like(out)).sum().backward()
    dims = {name: 1 if isinstance(m, (nn.ConvTranspose2d, Conv1D)) else 0 for name, m in model.named_modules()}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        g = p.grad
        assert g is not None
        if name in found.unused:
            assert g.norm() <= 1e-12 * sum(float(q.grad.norm()) for q in model.parameters() if q.grad is not None)
            continue
        dim = dims[re.split(r"\.parametrizations\.|\.(?=\w+$)", name)[0]]
        pairs = list(zip(g.movedim(dim, 0), p.detach().movedim(dim, 0))) if p.dim() >= 2 else []
        by_row = max((radial(*pair) for pair in pairs if pair[0].any()), default=1.0)
        if name in found:
            assert radial(g, p.detach()) < 1e-8, name
            assert (by_row < 1e-8) == (found[name] == "row"), name
        else:
            assert radial(g, p.detach()) > 1e-4, name


def test_an_eps_that_is_written_into_a_call_does_not_hide_the_invariance() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third, self.last = linear(), linear(), linear(), linear()
            self.norm = RMSNorm(6)
            self.norm.variance_epsilon = 0.05

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(torch.layer_norm(self.first(x), (6,), None, None, 0.05))
            x = torch.tanh(self.norm(self.third(x)))
            x = torch.tanh(F.layer_norm(self.second(x).float(), (6,), eps=0.05))
            return F.batch_norm(self.last(x).to(torch.bfloat16), None, None, training=True, eps=0.05).to(torch.float32)

    found = mo.scale_invariant_parameters(Net(), torch.randn(5, 6))
    assert found == {
        "first.weight": "tensor",
        "second.weight": "tensor",
        "third.weight": "tensor",
        "last.weight": "row",
    }


def test_dropout_is_off() -> None:
    """What a drawn mask leaves nothing of would count as unused."""
    model = nn.Sequential(linear(), nn.Dropout(1.0), layer_norm(), nn.Dropout(1.0), linear(3))
    assert mo.scale_invariant_parameters(model, torch.randn(5, 6)) == {"0.weight": "tensor"}


def test_a_dead_branch_is_not_invariant() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.dead, self.off, self.never = linear(), linear(), linear(), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            # A branch that is multiplied by zero, and one that the input switches off.
            x = x.abs()
            return self.used(x) + 0 * self.dead(x) + torch.relu(self.off(-x) - 1e6)

    found = mo.scale_invariant_parameters(Net(), torch.randn(5, 6))
    assert not found
    assert set(found.unused) == {"dead.weight", "off.weight", "never"}


def test_constant_inputs_give_no_nan() -> None:
    """Channels without variance, where eps = 0 would divide by zero; a row with one live element is but a sign."""
    norm = nn.BatchNorm1d(3, affine=False)
    model = nn.Sequential(norm, nn.Conv1d(3, 3, 1, bias=False), nn.BatchNorm1d(3), nn.Tanh())
    x = torch.zeros(4, 3, 5)
    assert mo.scale_invariant_parameters(model, x).unused == ("1.weight", "2.weight")
    x[:, 0] = torch.randn(4, 5)
    assert mo.scale_invariant_parameters(model, x).unused == ("1.weight",)
    x[:, 1] = torch.randn(4, 5)
    assert mo.scale_invariant_parameters(model, x) == {"1.weight": "row"}


class Noisy(nn.Module):
    """Draws from two generators, counts its calls, and may break off."""

    def __init__(self, fail_at: int = 10**9) -> None:
        super().__init__()
        self.linear, self.norm = linear(), nn.BatchNorm1d(6)
        self.register_buffer("seen", torch.zeros(()))
        self.fail_at, self.constant = fail_at, torch.ones(6)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        if self.seen > self.fail_at:
            raise RuntimeError("broke off")
        return self.norm(self.linear(x)) * self.constant + random.random() * torch.rand(6)


@pytest.mark.parametrize("fail_at", [10**9, 3])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_process_are_left_as_they_were(fail_at: int, training: bool) -> None:
    model = Noisy(fail_at).train(training)
    model.norm.eval()
    x = torch.randn(4, 6)
    model.linear(x).sum().backward()
    model.norm.num_batches_tracked.fill_(3)
    state = copy.deepcopy(model.state_dict())
    gradient, eps, pointers = model.linear.weight.grad, model.norm.eps, [p.data_ptr() for p in model.parameters()]
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    if fail_at == 3:
        with pytest.raises(RuntimeError, match="broke off"):
            mo.scale_invariant_parameters(model, x)
    else:
        found = mo.scale_invariant_parameters(model, x)
        assert found == ({} if training else {"linear.weight": "row"})
    assert all(torch.equal(v, state[k]) and v.dtype == state[k].dtype for k, v in model.state_dict().items())
    assert model.linear.weight.grad is gradient and model.norm.weight.grad is None
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert (model.training, model.norm.training, model.norm.eps) == (training, False, eps)
    assert model.constant.dtype == torch.float32 == torch.get_default_dtype()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert torch.is_grad_enabled() and F.layer_norm(torch.zeros(1, 2), (2,)).dtype == torch.float32


@dataclass
class Output:
    logits: Tensor
    labels: Tensor | None = None


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda y: {"labels": y.argmax(-1), "logits": y},
    "tuple": lambda y: (y.argmax(-1), [y], None, "text"),
    "dataclass": lambda y: Output(y),
    "complex": lambda y: torch.fft.fft(y),
    "masked": lambda y: y.masked_fill(torch.eye(5, 6, dtype=torch.bool), -torch.inf),
    "one of two": lambda y: (y.detach() * 0 + 1e9, y),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_every_kind(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = linear(), layer_norm(), linear()

        def forward(self, x: Tensor) -> Any:
            return OUTPUTS[kind](self.last(self.norm(self.first(x))))

    assert mo.scale_invariant_parameters(Net(), torch.randn(5, 6)) == {"first.weight": "tensor"}


@pytest.mark.parametrize("kind", ["tuple", "dict", "forward"])
def test_batches_of_every_kind(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = linear()

        def forward(self, x: Tensor, scale: Tensor, index: Tensor) -> Tensor:
            return F.layer_norm(self.first(x)[index] * scale, (6,))

    parts = {"x": torch.randn(5, 6), "scale": torch.tensor(2.0), "index": torch.tensor([0, 2])}
    forward = None
    batch: Any = parts
    if kind == "tuple":
        batch = tuple(parts.values())
    elif kind == "forward":
        batch = [parts, "target"]
        forward = lambda model, b: model(**b[0])  # noqa: E731
    assert mo.scale_invariant_parameters(Net(), batch, forward) == {"first.weight": "tensor"}


def test_bfloat16_models_are_tried_in_float64() -> None:
    model = nn.Sequential(linear(), nn.RMSNorm(6), linear()).bfloat16()
    assert mo.scale_invariant_parameters(model, torch.randn(5, 6).bfloat16()) == {"0.weight": "tensor"}


def test_prints_a_table() -> None:
    model = nn.Sequential(conv(), batch_norm(), nn.Flatten())
    found = mo.scale_invariant_parameters(model, torch.randn(2, 2, 5, 5))
    assert repr(found).splitlines() == [
        "parameter  shape    scale invariant by",
        "0.weight   4x2x3x3  row",
        "2 others are not",
        "without influence on this batch: 0.bias",
    ]


def test_errors_name_what_is_wrong() -> None:
    x = torch.randn(5, 6)
    net = nn.Sequential(linear())
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        mo.scale_invariant_parameters(copy.deepcopy(net).requires_grad_(False), x)
    with pytest.raises(TypeError, match="no floating-point tensor"):
        mo.scale_invariant_parameters(net, x, lambda model, b: model(b).argmax(-1))
    with pytest.raises(ValueError, match="does forward call the model it is given"):
        outer = copy.deepcopy(net).double()
        mo.scale_invariant_parameters(net, x, lambda model, b: outer(b))
    with pytest.raises(ValueError, match="output is NaN"):
        mo.scale_invariant_parameters(net, x * torch.nan)
    with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device"):
        mo.scale_invariant_parameters(copy.deepcopy(net).to("meta"), x)
    flat = copy.deepcopy(net)
    flat[0].weight._fsdp_flattened = True
    with pytest.raises(ValueError, match=r"'0\.weight' is sharded; find the parameters before fully_shard"):
        mo.scale_invariant_parameters(flat, x)
    net.tensor = net[0].weight * 2
    with pytest.raises(ValueError, match="cannot be copied"):
        mo.scale_invariant_parameters(net, x)


# Its use.


def test_groups_declare_what_was_found_and_nothing_else() -> None:
    model = build(CASES[0])
    found = mo.scale_invariant_parameters(model, batch_of(IMAGES, 0))
    groups = mo.param_groups(model, 0.1, scale_invariant=found)
    declared = {name: group["scale_invariant"] for group in groups for name, _ in group["params"]}
    assert declared == {name: found.get(name, "none") for name, _ in model.named_parameters()}
    assert "scale invariant by row" in repr(groups)
    assert "scale_invariant" not in mo.param_groups(model)[0]
    assert "radial projection(scale invariant by row, wd_ratio=0.1)" in repr(mo.AdamP(groups))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"1.weights": "row"}, r"scale_invariant\['1.weights'\] names no parameter"),
        ({"1.weight": "rows"}, r"scale_invariant\['1.weight'\] must be 'row', 'tensor' or 'none', got 'rows'"),
    ],
)
def test_wrong_declarations_are_errors(given: dict[str, str], message: str) -> None:
    model = nn.Sequential(nn.Tanh(), linear())
    with pytest.raises(ValueError, match=message):
        mo.param_groups(model, scale_invariant=given)
    with pytest.raises(ValueError, match=r"scale_invariant must be 'test'.*got 'rows'"):
        mo.AdamP(model.parameters(), scale_invariant="rows")


@pytest.mark.parametrize("scope", ["row", "tensor"])
@pytest.mark.parametrize("silent", [False, True], ids=["gradients along the weights", "zero gradients"])
def test_what_is_declared_is_projected_at_every_step(scope: str, silent: bool) -> None:
    """Also for gradients along the weights, where the cosine test fails, and for zero ones; others step as AdamW."""
    torch.manual_seed(0)
    start = [torch.randn(4, 6), torch.randn(3, 5), torch.randn(6)]
    ours, plain = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    # delta 0 is what param_groups gives to embeddings; a declaration overrules it.
    groups = [
        {"params": [ours[0]], "scale_invariant": scope, "delta": 0.0},
        {"params": ours[1:], "scale_invariant": "none"},
    ]
    optimizers = [
        mo.AdamP(groups, lr=0.1, weight_decay=1.0, delta=0.5),
        mo.AdamW(plain, lr=0.1, weight_decay=1.0),
    ]
    for t in range(4):
        before = ours[0].detach().clone()
        for p, q in zip(ours, plain):
            p.grad = torch.zeros_like(p) if silent and t == 3 else p.detach() + 0.1 * torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        # Without its radial part a step and the decayed weights are the legs of a right triangle.
        step = before - ours[0].detach() - 0.1 * 1.0 * 0.1 * before
        inner = (step * before).sum(1) if scope == "row" else (step * before).sum()
        assert step.norm() > 0.1
        assert bool((inner.abs() <= 1e-6 * step.norm() * before.norm()).all())
    assert all(torch.equal(p, q) for p, q in zip(ours[1:], plain[1:]))


def test_rows_are_those_of_matrices_and_tensors_may_be_vectors() -> None:
    for scope, moved in (("row", True), ("tensor", False)):
        p = nn.Parameter(torch.ones(5, dtype=torch.float64))
        optimizer = mo.SGDP([p], lr=0.1, scale_invariant=scope, eps=0.0)
        p.grad = 3 * p.detach()
        optimizer.step()
        assert torch.equal(p.detach(), torch.ones_like(p)) != moved


def test_telemetry_tells_what_was_declared() -> None:
    weights = [nn.Parameter(torch.randn(3, 4)) for _ in range(3)]
    groups = [{"params": [p], "scale_invariant": scope} for p, scope in zip(weights, ("row", "tensor", "none"))]
    optimizer = mo.AdamP(groups, lr=0.1)
    optimizer.record(every=1)
    for p in weights:
        p.grad = p.detach().clone()
    optimizer.step()
    seen = optimizer.telemetry()
    shares = {i: seen.get(f"group{i}/radial_projection/by_row") for i in range(3)}
    assert shares == {0: 1.0, 1: 0.0, 2: None}
    assert seen["group1/radial_projection/by_tensor"] == 1.0
    assert not any("rows_below" in name for name in seen)


def test_a_declaration_reads_two_inner_products() -> None:
    rule = mo.RadialProjection()
    assert rule.reads_for("u", {"scale_invariant": "row"}) == {"pp", "pu"}
    assert rule.reads_for("u", {"scale_invariant": "test"}) == rule.reads("u") == {"gg", "gp", "pp", "pu"}


def test_rules_on_another_optimizer_take_declarations() -> None:
    model = nn.Sequential(linear(), layer_norm(), linear())
    found = mo.scale_invariant_parameters(model, torch.randn(5, 6))
    base = torch.optim.SGD(mo.param_groups(model, scale_invariant=found), lr=0.1)
    optimizer = mo.wrap(base, rules=[mo.RadialProjection(eps=0.0)])
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = p.detach() + 1
    optimizer.step()
    first, last = model[0].weight, model[2].weight
    step = before[0] - first.detach()
    assert (step * before[0]).sum().abs() < 1e-5 * step.norm() * before[0].norm()
    torch.testing.assert_close(last.detach(), before[-1] - 0.1 * (before[-1] + 1))
