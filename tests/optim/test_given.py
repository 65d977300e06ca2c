"""What hosts hand over in place of whole parameters is noticed, and refused where the recipe needs the whole.

DeepSpeed and Megatron are not installed here. Their optimizers are simulated by what they do to the groups of the
optimizer that they are given: the names below say which.
"""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward

import mooring as mo
from tests.optim.table import ROWS, OptimizerRow

SHAPES = [(4, 3), (3,), (2, 5), (5,)]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
POINTWISE = [row for row in ROWS if row.scope == "pointwise"]
READING = [row for row in ROWS if row.scope != "pointwise"]


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]


def two_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[0::2]}, {"params": params[1::2]}]


def flat(params: list[nn.Parameter], rank: int, ranks: int, align: int = 2) -> torch.Tensor:
    """One process's part of all parameters end to end, padded to a multiple of ``align * ranks``; a plain leaf."""
    whole = torch.cat([p.detach().reshape(-1) for p in params])
    whole = torch.cat([whole, whole.new_zeros(-len(whole) % (align * ranks))])
    return whole.chunk(ranks)[rank].clone().requires_grad_()


def zero_one_and_two(optimizer: Any, rank: int) -> None:
    """DeepSpeed's ZeRO 1 and 2 (and its bf16 optimizer): each group's list is replaced by one of one flat partition."""
    for group in optimizer.param_groups:
        group["params"] = [flat(group["params"], rank, 2)]
        group["params"][0].grad = torch.ones_like(group["params"][0])


def zero_three(optimizer: Any, rank: int) -> None:
    """ZeRO 3: all lists are emptied, and one flat tensor stands in one of them during each of its steps."""
    pieces = [flat(group["params"], rank, 2) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"] = []
    optimizer.param_groups[1]["params"] = [pieces[1]]
    pieces[1].grad = torch.ones_like(pieces[1])


def megatron(optimizer: Any, rank: int) -> None:
    """Megatron's distributed optimizer: flat slices of the parameters that overlap with this process's range of the
    buffer, so fewer than were given and cut anywhere; then the optimizer loads its own state.
    """
    first, second = optimizer.param_groups[0]["params"], optimizer.param_groups[1]["params"]
    mine = [first[0].detach().view(-1)[:7], second[0].detach().view(-1)[:]] if rank == 0 else [
        first[0].detach().view(-1)[7:], first[1].detach().view(-1)[:]
    ]  # fmt: skip
    mine = [piece.clone().requires_grad_() for piece in mine]
    optimizer.param_groups[0]["params"], optimizer.param_groups[1]["params"] = mine[:1], mine[1:]
    for piece in mine:
        piece.grad = torch.ones_like(piece)
    optimizer.load_state_dict(optimizer.state_dict())


HOSTS = [zero_one_and_two, zero_three, megatron]
every_host = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.__name__)


@every_host
@pytest.mark.parametrize("row", READING, ids=lambda row: row.name)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_partition_is_refused_before_anything_changes(row: OptimizerRow, host: Any, rank: int) -> None:
    optimizer = row.build(two_groups(parameters()))
    with pytest.raises(ValueError, match=r"group \d now holds a flat tensor of \d+ elements.*fully_shard") as caught:
        host(optimizer, rank)
        before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        optimizer.step()
    stages = ("projection(", "over the model", "selective projection(")
    assert any(stage in str(caught.value) for stage in stages)
    assert not optimizer.state
    if host is not megatron:
        now = [p for group in optimizer.param_groups for p in group["params"]]
        assert all(torch.equal(p, b) for p, b in zip(now, before))


@every_host
@pytest.mark.parametrize("row", POINTWISE, ids=lambda row: row.name)
def test_a_partition_takes_the_step_of_the_whole_where_elements_do_not_meet(row: OptimizerRow, host: Any) -> None:
    """Each element moves as it does in one process that has the whole parameters."""
    whole = parameters()
    reference = row.build(two_groups(whole))
    for p in whole:
        p.grad = torch.ones_like(p)
    reference.step()
    before, ends = (torch.cat([p.detach().flatten() for p in params]).tolist() for params in (parameters(), whole))
    by_start = dict(zip(before, ends))
    for rank in (0, 1):
        optimizer = row.build(two_groups(parameters()))
        host(optimizer, rank)
        pieces = [p for group in optimizer.param_groups for p in group["params"]]
        starts = [p.detach().clone() for p in pieces]
        optimizer.step()
        for start, piece in zip(starts, pieces):
            for x, y in zip(start.tolist(), piece.tolist()):
                if x != 0:  # padding
                    assert y == pytest.approx(by_start[x], rel=1e-15, abs=1e-15)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: mo.AdamSPD(p, lr=0.1, anchor=None),
        lambda p: mo.AdamSPD(p, lr=0.1, strength=0.0),
        lambda p: mo.AdamP(p, lr=0.1, delta=0.0),
        lambda p: mo.Adam(p, lr=0.1, rules=[mo.DecoupledDecay(0.1, toward="anchor")]),
        lambda p: mo.wrap(torch.optim.Rprop(p, lr=0.1), [mo.DecoupledDecay(0.1)]),
    ],
    ids=["no anchor", "strength 0", "delta 0", "decay to the anchor", "wrapped"],
)
def test_what_is_switched_off_reads_nothing(make: Any) -> None:
    optimizer = make(two_groups(parameters()))
    zero_one_and_two(optimizer, 0)
    optimizer.step()
    assert optimizer.state
    for group in optimizer.param_groups:
        group["strength"], group["delta"] = 1.0, 0.1
    if isinstance(optimizer, (mo.AdamP, mo.AdamSPD)) and optimizer.param_groups[0].get("anchor", "") is not None:
        with pytest.raises(ValueError, match="flat tensor"):  # switched on, it is refused again
            optimizer.step()


@pytest.mark.parametrize("options", [{"max_grad_norm": 1.0}, {"non_finite": "skip"}], ids=str)
def test_a_norm_of_the_model_is_no_norm_of_a_piece(options: dict[str, Any]) -> None:
    optimizer = mo.AdamW(two_groups(parameters()), **options)
    zero_one_and_two(optimizer, 0)
    with pytest.raises(ValueError, match=r"flat tensor of 12 elements.*(clip|skip).*the host's own clipping"):
        optimizer.step()


def test_rules_around_another_optimizer_are_refused_too() -> None:
    optimizer = mo.wrap(torch.optim.Adam(two_groups(parameters()), lr=0.1), [mo.SelectiveProjection()])
    zero_one_and_two(optimizer, 0)
    with pytest.raises(ValueError, match=r"flat tensor of 12 elements.*selective projection"):
        optimizer.step()
    assert not optimizer.state


def test_an_anchor_in_a_file_is_found_by_shape(tmp_path: Any) -> None:
    decay = [mo.DecoupledDecay(0.1, toward="anchor")]
    file = str(tmp_path / "anchor.safetensors")
    named = [(f"w{i}", p) for i, p in enumerate(parameters())]
    optimizer = mo.Adam(named, lr=0.1, rules=decay, anchor_store="mmap", anchor_file=file)
    zero_one_and_two(optimizer, 0)
    with pytest.raises(ValueError, match=r"flat tensor.*an anchor in a file \(.*anchor.safetensors\)"):
        optimizer.step()
    assert not list(tmp_path.iterdir())


@every_row
def test_swaps_that_keep_shapes_and_new_layers_are_no_pieces(row: OptimizerRow) -> None:
    """Float32 masters, another layer in the place of one, fewer parameters: copies and pickles know what they hold."""
    params = parameters()
    optimizer = row.build(two_groups(params))
    masters = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer.param_groups[0]["params"], optimizer.param_groups[1]["params"] = masters[0::2], masters[1::2]
    optimizer.param_groups[0]["params"][1] = nn.Parameter(torch.ones(7, 5, dtype=torch.float64))
    optimizer.param_groups[1]["params"][1] = nn.Parameter(torch.ones(7, dtype=torch.float64))
    for again in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for group in again.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        again.step()
    vectors = row.build(two_groups(params))
    vectors.param_groups[0]["params"] = []  # what is frozen is left out; the vectors are those that were given
    for p in params[1::2]:
        p.grad = torch.ones_like(p)
    vectors.step()


@pytest.mark.parametrize("name", ["AdamP", "AdamS", "AdamSPD"])
def test_empty_weights_of_zero_three_are_refused_where_they_are_given(name: str) -> None:
    """Inside zero.Init weights are empty and carry ``ds_id``; the optimizer is made of these."""
    params = [nn.Parameter(torch.empty(0)) for _ in range(2)]
    for i, p in enumerate(params):
        p.ds_id, p.ds_shape = i, torch.Size((4, 3))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"parameter 0 of its group is a flat piece of ZeRO stage 3.*fully_shard"):
        getattr(mo, name)(params, lr=0.1)
    optimizer = mo.AdamW(params, lr=0.1)
    piece = torch.ones(6, requires_grad=True)
    piece.grad = torch.ones(6)
    optimizer.param_groups[0]["params"] = [piece]
    optimizer.step()
    assert piece[0].item() == pytest.approx(1 - 0.1 * 0.01 - 0.1)


@pytest.mark.parametrize("method", ["NSO", "SAM", "ASAM", "RSAM"])
def test_noise_and_ascents_are_refused_on_pieces(method: str) -> None:
    """The model does not even see what moves in a float32 partition."""
    optimizer = getattr(mo, method)(torch.optim.SGD([("w0.weight", p) for p in parameters()[:1]], lr=0.1))
    optimizer.add_param_group({"params": [("w1.weight", parameters()[2])]})
    zero_one_and_two(optimizer, 0)
    with pytest.raises(ValueError, match=rf"flat tensor.*{method}.*or the base optimizer alone"):
        optimizer.passes()


# One optimizer for each parameter.


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def losses(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    out: torch.Tensor = net(x).square().mean()
    return out


@pytest.mark.filterwarnings("ignore:.*pulls the weights to zero")
@every_row
def test_torch_s_optimizer_in_backward_takes_the_same_steps_or_is_refused(row: OptimizerRow) -> None:
    """Rows and norms of whole tensors are right there; a mean over the model is not."""
    net = network()
    options = row.hyper()
    if row.scope == "model":
        with pytest.raises(ValueError, match="one optimizer over all parameters"):
            _apply_optimizer_in_backward(row.make or row.cls, net.parameters(), options)
        return
    whole = network()
    optimizer = row.build(whole.parameters())
    _apply_optimizer_in_backward(row.make or row.cls, net.parameters(), options)
    for step in range(5):
        losses(net, step).backward()
        optimizer.zero_grad()
        losses(whole, step).backward()
        optimizer.step()
    for p, q in zip(net.parameters(), whole.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["AdamS", "AdamSPD"])
def test_one_optimizer_for_each_layer_steps_too_early(method: str) -> None:
    """With more than one parameter nothing shows at construction that a host steps inside the backward pass."""
    net = network()
    for layer in (net[0], net[2]):  # type: ignore[index]
        optimizer = getattr(mo, method)(layer.parameters(), lr=0.01)
        layer.bias.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    if method == "AdamS":
        with pytest.raises(RuntimeError, match=r"AdamS.step\(\) was called inside the backward pass.*over the model"):
            losses(net, 0).backward()
    else:
        losses(net, 0).backward()


def test_optimizers_in_a_dict_by_parameter_are_refused() -> None:
    """As torchtune, Transformers' layer-wise optimizers and torchao's offloading make them."""
    with pytest.raises(ValueError, match=r"AdamW got one parameter, and clip\(max_grad_norm=1\) reads the whole model"):
        {p: mo.AdamW([{"params": [p]}], max_grad_norm=1.0) for p in network().parameters()}
    assert len({p: mo.AdamSPD([p]) for p in network().parameters()}) == 4


def test_a_model_of_one_parameter_says_so() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = mo.AdamS([weight], lr=0.1, one_parameter=True)
    assert "one_parameter" not in optimizer.param_groups[0]
    for again in (optimizer, pickle.loads(pickle.dumps(optimizer))):
        [p] = again.param_groups[0]["params"]
        p.sum().backward()
        again.step()


@every_row
def test_parameters_may_be_swapped_as_torch_moves_sharded_modules(row: OptimizerRow) -> None:
    """torch swaps no tensor that has a weak reference; ``to_empty`` of a sharded module swaps all of them."""
    params = parameters()
    optimizer = row.build(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not any(weakref.getweakrefcount(p) for p in params)
