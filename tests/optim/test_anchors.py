"""Anchors: every source and every store is the same anchor, and no resume, copy or host may lose or replace it."""

from __future__ import annotations

import copy
import gc
import hashlib
import io
import json
import logging
import multiprocessing
import pickle
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import mooring as mo
from mooring.anchors.names import match
from mooring.anchors.sources import write
from tests.optim.problems import TinyNet, backward, make_net, train_elsewhere
from tests.optim.test_host_contract import Syncs
from tests.reference import spd

STORES = ("device", "cpu", "mmap")


def pretrained(net: nn.Module, seed: int = 5, scale: float = 0.1) -> dict[str, Tensor]:
    """Weights near the net's own, but not equal to them: d is not zero at the first step."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: p.detach() + scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for name, p in net.named_parameters()
    }


def train(net: TinyNet, optimizer: torch.optim.Optimizer, start: int, stop: int) -> list[Tensor]:
    for t in range(start, stop):
        backward(net, t)
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def same(xs: list[Tensor], ys: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def scrambled(net: TinyNet) -> TinyNet:
    """The same parameters with other weights' storage, as a resumed run has them; values are the trained ones."""
    return copy.deepcopy(net)


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def follows_reference(anchors: dict[str, Tensor], optimizer_of: Callable[[TinyNet], torch.optim.Optimizer]) -> None:
    """50 steps against the naive float64 reference that is told the anchors."""
    net, twin = make_net(), make_net()
    optimizer = optimizer_of(net)
    reference = spd.AdamSPD([{"lr": 1e-2, "params": list(twin.parameters())}])
    for state, name in zip(reference.states[0], dict(net.named_parameters())):
        state["anchor"] = anchors[name].double()
    for t in range(50):
        backward(net, t)
        optimizer.step()
        backward(twin, t)
        reference.step([[p.grad for p in twin.parameters()]])
        with torch.no_grad():
            for p, value in zip(twin.parameters(), reference.groups[0]["params"]):
                p.copy_(value)
    assert reference.branches["contracted"] > 10
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-11)


def one_file(anchors: dict[str, Tensor], folder: Path) -> str:
    save_file(anchors, folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def hub_folder(anchors: dict[str, Tensor], folder: Path) -> str:
    save_file(anchors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def sharded_folder(anchors: dict[str, Tensor], folder: Path) -> str:
    names = list(anchors)
    parts = {"model-1.safetensors": names[:4], "model-2.safetensors": names[4:]}
    for file, members in parts.items():
        save_file({name: anchors[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def cached_hub_model(anchors: dict[str, Tensor], folder: Path) -> str:
    """The layout of the Hugging Face cache, written by hand."""
    repository = folder / "models--someone--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    (repository / "snapshots" / "c0ffee").mkdir(parents=True)
    hub_folder(anchors, repository / "snapshots" / "c0ffee")
    return "someone/net"


def is_mapped(x: Tensor, file: Path) -> bool:
    """Whether the tensor's memory is the file's pages, by what Linux says of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            if start <= x.data_ptr() < end:
                return True
    return False


# --- Sources and stores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "store"),
    [*((one_file, store) for store in STORES), (hub_folder, "device"), (sharded_folder, "mmap")],
)
def test_every_source_and_store_follows_the_reference(write: Any, store: str, tmp_path: Path) -> None:
    anchors = pretrained(make_net())
    source = write(anchors, tmp_path)

    def build(net: TinyNet) -> torch.optim.Optimizer:
        return mo.AdamSPD(net.named_parameters(), lr=1e-2, anchor=source, anchor_store=store)

    follows_reference(anchors, build)


def test_a_given_state_dict_follows_the_reference() -> None:
    anchors = pretrained(make_net())

    def build(net: TinyNet) -> torch.optim.Optimizer:
        optimizer = mo.AdamSPD(net.named_parameters(), lr=1e-2)
        optimizer.anchor_to(anchors)
        return optimizer

    follows_reference(anchors, build)


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the interface that huggingface_hub documents; tests/hosts uses the package itself."""
    anchors = pretrained(make_net())
    assert cached_hub_model(anchors, tmp_path) == "someone/net"

    def try_to_load_from_cache(repo_id: str, filename: str, revision: str | None = None) -> str | None:
        file = tmp_path / f"models--{repo_id.replace('/', '--')}" / "snapshots" / (revision or "c0ffee") / filename
        return str(file) if file.exists() else None

    hub = types.SimpleNamespace(try_to_load_from_cache=try_to_load_from_cache)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    net = make_net()
    for anchor in ("someone/net", "someone/net@c0ffee"):
        optimizer = mo.AdamSPD(net.named_parameters(), lr=1e-2, anchor=anchor)
        train(net, optimizer, 1, 2)
        file = tmp_path / "models--someone--net/snapshots/c0ffee/model.safetensors"
        assert optimizer.param_groups[0]["anchor"] == anchor
        assert optimizer.param_groups[0]["anchor_hash"] == hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"no such model is in the local .* cache .*hf download someone/else"):
        mo.AdamSPD(net.named_parameters(), anchor="someone/else")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="hub ids need the package huggingface_hub"):
        mo.AdamSPD(net.named_parameters(), anchor="someone/net")


def test_narrow_weights_start_at_their_wide_anchor(tmp_path: Path) -> None:
    """bfloat16 weights loaded from a float32 file are at their anchor, not half a unit in the last place beside it."""
    net = make_net(dtype=torch.float32)
    source = one_file({name: p.detach().clone() for name, p in net.named_parameters()}, tmp_path)
    for store in ("device", "mmap", "bfloat16"):
        narrow, plain = (copy.deepcopy(net).bfloat16() for _ in range(2))
        held = mo.AdamSPD(narrow.named_parameters(), lr=1e-2, anchor=source, anchor_store=store)
        assert same(train(narrow, held, 1, 2), train(plain, mo.Adam(plain.parameters(), lr=1e-2), 1, 2))


@pytest.mark.parametrize("store", ["cpu", "mmap"])
@pytest.mark.parametrize("names", [True, False])
def test_an_anchor_captured_into_a_file_is_the_captured_anchor(store: str, names: bool, tmp_path: Path) -> None:
    nets = [make_net(), make_net()]
    start = {name: p.detach().clone() for name, p in nets[0].named_parameters()}
    file = tmp_path / "run" / "anchor.safetensors"
    params = [net.named_parameters() if names else net.parameters() for net in nets]
    filed = mo.AdamSPD(params[0], lr=0.0, anchor_store=store, anchor_file=str(file))
    train(nets[0], filed, 1, 2)
    assert not file.exists(), "nothing is captured at learning rate 0"
    device = mo.AdamSPD(params[1], lr=0.0)
    train(nets[1], device, 1, 2)
    for optimizer in (filed, device):
        optimizer.param_groups[0]["lr"] = 1e-2
    assert same(train(nets[0], filed, 2, 40), train(nets[1], device, 2, 40))
    assert filed.param_groups[0]["anchor_hash"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert not any("anchor" in state for state in filed.state.values())
    written = load_file(file)
    keys = start if names else [f"0.{i}" for i in range(len(start))]
    assert set(written) == set(keys)
    assert all(torch.equal(written[key], value) for key, value in zip(keys, start.values()))
    assert sorted(path.name for path in file.parent.iterdir()) == ["anchor.safetensors"]


def test_the_mapped_file_is_aligned_and_not_copied(tmp_path: Path) -> None:
    wide, narrow = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(7).bfloat16())
    optimizer = mo.AdamSPD([("b", narrow), ("a", wide)], anchor_store="mmap", anchor_file=str(tmp_path / "a"))
    wide.grad, narrow.grad = torch.ones_like(wide), torch.ones_like(narrow)
    optimizer.step()
    held = [t for batch in optimizer._plan.batches for t in batch.held or []]  # type: ignore[union-attr]
    assert [t.data_ptr() % t.element_size() for t in held] == [0, 0]
    assert all(is_mapped(t, tmp_path / "a") for t in held)
    with safe_open(tmp_path / "a", "pt") as file:
        assert set(file.keys()) == {"a", "b"}


@pytest.mark.parametrize("how", ["capture", "source", "given"])
def test_a_bfloat16_anchor_is_the_rounded_anchor_and_says_so(how: str, tmp_path: Path) -> None:
    anchors = pretrained(make_net()) if how != "capture" else dict(make_net().named_parameters())
    rounded = {name: value.detach().bfloat16().double() for name, value in anchors.items()}
    error = torch.cat([(a.detach() - rounded[n]).flatten() for n, a in anchors.items()]).norm()
    size = torch.cat([a.detach().flatten() for a in anchors.values()]).norm()

    def build(net: TinyNet) -> torch.optim.Optimizer:
        source = one_file(anchors, tmp_path) if how == "source" else "capture"
        optimizer = mo.AdamSPD(net.named_parameters(), lr=1e-2, anchor=source, anchor_store="bfloat16")
        if how == "given":
            optimizer.anchor_to(anchors)
        return optimizer

    if how == "capture":  # parameters without a gradient are captured later: count those of the first step
        net = make_net()
        backward(net, 1)
        first = [n for n, p in net.named_parameters() if p.grad is not None]
        error = torch.cat([(anchors[n].detach() - rounded[n]).flatten() for n in first]).norm()
        size = torch.cat([anchors[n].detach().flatten() for n in first]).norm()
        with pytest.warns(UserWarning, match=f"moves the anchor by {error / size:.1e} of its norm"):
            build(net).step()
    with pytest.warns(UserWarning, match="anchor_store='bfloat16' moves the anchor by") as caught:
        follows_reference(rounded, build)
    if how == "given":
        assert f"{error / size:.1e}" in str(caught[0].message)


def test_a_bfloat16_anchor_of_bfloat16_weights_is_exact_and_silent() -> None:
    """Weights from a bfloat16 checkpoint trained in float32: no bit is lost, and step 1 is inactive as it should be."""
    nets = [make_net(dtype=torch.bfloat16).float() for _ in range(3)]
    halved = mo.AdamSPD(nets[0].parameters(), lr=1e-2, anchor_store="bfloat16")
    full = mo.AdamSPD(nets[1].parameters(), lr=1e-2)
    free = mo.Adam(nets[2].parameters(), lr=1e-2)
    assert same(train(nets[0], halved, 1, 2), train(nets[2], free, 1, 2))
    train(nets[1], full, 1, 2)
    assert same(train(nets[0], halved, 2, 30), train(nets[1], full, 2, 30))
    anchors = [state["anchor"] for state in halved.state.values()]
    assert {a.dtype for a in anchors} == {torch.bfloat16}


@pytest.mark.parametrize(("store", "held"), [("device", 4), ("bfloat16", 2), ("cpu", 4), ("mmap", 0)])
def test_bytes_of_a_source(store: str, held: int, tmp_path: Path) -> None:
    """The table of docs/anchors.md: bytes per float32 parameter, none of them in the optimizer's state."""
    p = nn.Parameter(torch.ones(100, 10))
    source = one_file({"p": torch.ones(100, 10)}, tmp_path)
    optimizer = mo.SGDSPD([("p", p)], lr=0.1, anchor=source, anchor_store=store)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert sum(v.nbytes for v in optimizer.state[p].values() if v.ndim) == 0
    assert mo.cost(optimizer)[0].state_bytes == (held if store != "cpu" else 0)
    [value] = optimizer._plan.batches[0].held  # type: ignore[union-attr, misc]
    assert (0 if is_mapped(value, Path(source)) else value.nbytes) == 1000 * held


@pytest.mark.parametrize(("store", "expected"), [("device", 4), ("bfloat16", 2), ("mmap", 0)])
def test_bytes_of_a_captured_anchor(store: str, expected: int, tmp_path: Path) -> None:
    p = nn.Parameter(torch.ones(100, 10))
    optimizer = mo.SGDSPD([("p", p)], lr=0.1, anchor_store=store, anchor_file=str(tmp_path / "a"))
    assert mo.cost(optimizer)[0].state_bytes == expected
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert mo.cost(optimizer)[0].state_bytes == expected
    assert sum(v.nbytes for v in optimizer.state[p].values() if v.ndim) == 1000 * expected


@pytest.mark.parametrize("store", ["device", "bfloat16", "cpu", "mmap"])
def test_a_step_never_waits_for_the_device(store: str, tmp_path: Path) -> None:
    net = make_net(dtype=torch.bfloat16).float()
    source = one_file(pretrained(make_net(dtype=torch.bfloat16)), tmp_path)
    optimizer = mo.AdamSPD(net.named_parameters(), lr=1e-2, anchor=source, anchor_store=store)
    train(net, optimizer, 1, 3)
    backward(net, 3)
    with Syncs([s["step"] for s in optimizer.state.values()]) as watch:
        optimizer.step()
    assert watch.found == []


def test_optimizers_without_an_anchor_keep_none() -> None:
    """Groups made for every optimizer carry the option; AdamW must not pay for it, nor look for a file."""
    net = make_net()
    groups = mo.param_groups(net)
    for group in groups:
        group["anchor"] = "no/such/file" if group["anchor"] == "capture" else group["anchor"]
    optimizer = mo.AdamW(groups)
    train(net, optimizer, 1, 2)
    assert not any("anchor" in state for state in optimizer.state.values())


# --- Checkpoints, copies, hosts ----------------------------------------------------------------------------------


WAYS = ("source device", "source bfloat16", "source cpu", "source mmap", "capture bfloat16", "capture cpu", "given")


def make(way: str, net: TinyNet, folder: Path, wrapped: bool = False) -> Any:
    """An optimizer of the net whose anchors come and are kept in one of the ways; float32, with exact bfloat16."""
    source, _, store = way.partition(" ")
    options: dict[str, Any] = {"anchor_store": store or "device"}
    file = folder / "pretrained.safetensors"
    anchors = pretrained(make_net(seed=9, dtype=torch.bfloat16), scale=0.5)
    if source == "source":
        if not file.exists():
            save_file(anchors, file)
        options["anchor"] = str(file)
    elif store == "cpu":
        options["anchor_file"] = str(folder / "captured.safetensors")
    if wrapped:
        base = torch.optim.Adam(net.named_parameters(), lr=1e-2)
        return mo.wrap(base, [mo.SelectiveProjection()], **options)
    return mo.AdamSPD(net.named_parameters(), lr=1e-2, **options)


def begin(way: str, folder: Path, wrapped: bool = False, dtype: torch.dtype = torch.float32) -> tuple[TinyNet, Any]:
    net = make_net(dtype=torch.bfloat16).to(dtype)
    optimizer = make(way, net, folder, wrapped)
    if way == "given":
        optimizer.anchor_to({k: v.float() for k, v in pretrained(make_net(seed=9, dtype=torch.bfloat16)).items()})
    return net, optimizer


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_resume_is_bitwise_and_saves_no_source(way: str, wrapped: bool, tmp_path: Path) -> None:
    net, optimizer = begin(way, tmp_path, wrapped)
    for stop in (1, 9):
        train(net, optimizer, 1 if stop == 1 else 0, stop)
        saved = through_file(optimizer.state_dict())
        kept = any("anchor" in state for state in saved["state"].values())
        assert kept == (way in ("capture bfloat16", "given") and bool(saved["state"]))
        assert all(isinstance(g["anchor_hash"], str) != kept for g in saved["param_groups"]) or stop == 1
        other = copy.deepcopy(net)
        resumed = make(way, other, tmp_path, wrapped)
        if way == "given" and not kept:
            continue  # before the first step the wrapped optimizer's state cannot hold them
        resumed.load_state_dict(saved)
        here = copy.deepcopy(net), optimizer
        assert same(train(other, resumed, 9, 16), train(here[0], moved(optimizer, net, here[0]), 9, 16))
        if way == "capture bfloat16" and kept:
            assert {s["anchor"].dtype for s in resumed.state.values()} == {torch.bfloat16}


def moved(optimizer: Any, old: nn.Module, new: nn.Module) -> Any:
    """A deep copy of the optimizer that owns the parameters of another module."""
    memo = {id(p): q for p, q in zip(old.parameters(), new.parameters())}
    return copy.deepcopy(optimizer, memo)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_anchor_of_a_parameter_can_be_asked_for(way: str, wrapped: bool, tmp_path: Path) -> None:
    net, optimizer = begin(way, tmp_path, wrapped)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    if way.startswith("capture"):
        assert all(optimizer.anchor_of(p) is None for p in net.parameters())
    train(net, optimizer, 1, 4)
    expected = start if way.startswith("capture") else pretrained(make_net(seed=9, dtype=torch.bfloat16), scale=0.5)
    if way == "given":
        expected = pretrained(make_net(seed=9, dtype=torch.bfloat16))
    for name, p in net.named_parameters():
        if p.grad is not None:
            anchor = optimizer.anchor_of(p)
            assert anchor.dtype == p.dtype and torch.equal(anchor, expected[name].float()), name
    if way != "capture bfloat16":  # there, what never had a gradient has no anchor yet
        assert torch.equal(mo.interpolate(net, optimizer, 0.0)["conv.weight"], expected["conv.weight"].float())
    with pytest.raises(ValueError, match="is no parameter of this optimizer"):
        optimizer.anchor_of(torch.ones(3))


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("way", ["source mmap", "capture cpu", "capture bfloat16", "given"])
def test_distributed_checkpoints_resume_bitwise(way: str, flat: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    net, optimizer = begin(way, tmp_path)
    net.unused.grad = torch.zeros_like(net.unused)
    get_optimizer_state_dict(net, optimizer, options=options)  # the dry run of a fresh optimizer
    for t in range(8):
        backward(net, t)
        net.unused.grad = torch.full_like(net.unused, 0.1)
        optimizer.step()
    net.zero_grad()
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=options))
    other = copy.deepcopy(net)
    resumed = make(way, other, tmp_path)
    set_optimizer_state_dict(other, resumed, saved, options=options)
    assert same(train(other, resumed, 8, 14), train(net, optimizer, 8, 14))


@pytest.mark.parametrize("way", WAYS)
def test_copies_and_pickles_continue_bitwise(way: str, tmp_path: Path) -> None:
    net, optimizer = begin(way, tmp_path)
    train(net, optimizer, 0, 4)
    for twin_net, twin in (copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))):
        again = copy.deepcopy((net, optimizer))
        assert same(train(twin_net, twin, 4, 9), train(*again, 4, 9))


def test_an_optimizer_goes_to_a_spawned_process(tmp_path: Path) -> None:
    net, optimizer = begin("source mmap", tmp_path)
    train(net, optimizer, 0, 4)
    arguments = pickle.dumps((net, optimizer)), 4, 8, str(tmp_path / "out.pt")
    process = multiprocessing.get_context("spawn").Process(target=train_elsewhere, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    for x, y in zip(torch.load(tmp_path / "out.pt"), train(net, optimizer, 4, 8)):
        torch.testing.assert_close(x, y)  # that process may use other threads, and other sums, in the model


@pytest.mark.parametrize("store", STORES)
def test_a_changed_or_missing_file_is_an_error_and_changes_nothing(store: str, tmp_path: Path) -> None:
    way = f"source {store}"
    net, optimizer = begin(way, tmp_path)
    train(net, optimizer, 0, 5)
    saved = through_file(optimizer.state_dict())
    file = tmp_path / "pretrained.safetensors"
    content = file.read_bytes()

    other = make_net(seed=3, dtype=torch.float32)
    resumed = make(way, other, tmp_path)
    unpickled = copy.deepcopy((net, optimizer))
    before = [p.detach().clone() for p in other.parameters()], copy.deepcopy(resumed.state_dict())
    for damage, message in (
        (lambda: file.write_bytes(content[:-1] + b"\x00"), "has changed: its sha256 is"),
        (file.unlink, "pretrained.safetensors is missing|there is no such file"),
    ):
        damage()
        with pytest.raises(ValueError, match=message):
            resumed.load_state_dict(saved)
        assert same([p.detach() for p in other.parameters()], before[0])
        assert resumed.state_dict() == before[1]
        backward(unpickled[0], 5)
        weights = [p.detach().clone() for p in unpickled[0].parameters()]
        steps = [float(s["step"]) for s in unpickled[1].state.values()]
        with pytest.raises(ValueError, match=message):
            unpickled[1].step()
        assert same([p.detach() for p in unpickled[0].parameters()], weights)
        assert [float(s["step"]) for s in unpickled[1].state.values()] == steps
    # Moved to another place: the path of now is taken, the content is checked.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pretrained.safetensors").write_bytes(content)
    third = copy.deepcopy(net)
    resumed = make(way, third, tmp_path / "elsewhere")
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["anchor"] == str(tmp_path / "elsewhere" / "pretrained.safetensors")
    assert same(train(third, resumed, 5, 9), train(net, optimizer, 5, 9))


def test_a_resumed_capture_needs_its_file(tmp_path: Path) -> None:
    net, optimizer = begin("capture cpu", tmp_path)
    train(net, optimizer, 0, 5)
    saved = through_file(optimizer.state_dict())
    (tmp_path / "captured.safetensors").rename(tmp_path / "moved.safetensors")
    other = copy.deepcopy(net)
    resumed = make("capture cpu", other, tmp_path)
    with pytest.raises(ValueError, match="there is no such file"):
        resumed.load_state_dict(saved)
    for group in saved["param_groups"]:
        group["anchor_hash"] = None  # a checkpoint that does not know its file must not lead to a new capture
    with pytest.raises(ValueError, match="holds no anchor"):
        resumed.load_state_dict(saved)
    assert not (tmp_path / "captured.safetensors").exists()


def test_a_captured_file_is_never_overwritten(tmp_path: Path) -> None:
    net, optimizer = begin("capture cpu", tmp_path)
    start = copy.deepcopy(net)
    train(net, optimizer, 1, 3)
    train(start, make("capture cpu", start, tmp_path), 1, 3)  # the same weights: the same file
    other = make_net(seed=4, dtype=torch.float32)
    before = [p.detach().clone() for p in other.parameters()]
    third = make("capture cpu", other, tmp_path)
    backward(other, 1)
    with pytest.raises(ValueError, match="exists and holds other weights"):
        third.step()
    assert same([p.detach() for p in other.parameters()], before)


def test_a_host_may_swap_the_parameters_before_the_first_step(tmp_path: Path) -> None:
    """Accelerate under FSDP2 puts new parameters into the groups; names stay, identities do not."""
    anchors = pretrained(make_net())
    source = one_file(anchors, tmp_path)
    nets = [make_net(), make_net()]
    plain = mo.AdamSPD(nets[0].named_parameters(), lr=1e-2, anchor=source)
    swapped = mo.AdamSPD(make_net().named_parameters(), lr=1e-2, anchor=source)
    swapped.param_groups[0]["params"] = list(nets[1].parameters())
    assert same(train(nets[0], plain, 1, 12), train(nets[1], swapped, 1, 12))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("kind", ["capture", "file", "checkpoint"])
def test_replaced_parameters_are_not_kept_alive(kind: str, tmp_path: Path) -> None:
    """Between building the optimizer and the first step hosts shard models that fit nowhere twice."""
    anchors = pretrained(make_net())
    folder = tmp_path / "saved"
    if kind == "checkpoint":
        dcp.save(anchors, checkpoint_id=folder)
    anchor = {"capture": "capture", "file": one_file(anchors, tmp_path), "checkpoint": str(folder)}[kind]
    net, other = make_net(), make_net()
    optimizer = mo.AdamSPD(net.named_parameters(), lr=1e-2, anchor=anchor)
    held = [weakref.ref(p) for p in net.parameters()]
    optimizer.param_groups[0]["params"] = list(other.parameters())
    del net
    gc.collect()
    assert not any(p() is not None for p in held)
    train(other, optimizer, 1, 3)
    if kind != "capture":
        assert all(torch.equal(optimizer.anchor_of(p), anchors[name]) for name, p in other.named_parameters())
    # And in the middle of a training: another shape under an old name is as much an error as before the first step.
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    if kind != "capture":
        with pytest.raises(ValueError, match=r"has shape \(2, 2\), its anchor"):
            optimizer.anchor_of(optimizer.param_groups[0]["params"][0])


def test_a_state_dict_is_given_again_after_a_swap() -> None:
    """It was given to the parameters of then: nothing is captured in its place."""
    anchors = pretrained(make_net())
    nets = [make_net(), make_net()]
    plain = mo.AdamSPD(nets[0].named_parameters(), lr=1e-2)
    plain.anchor_to(anchors)
    swapped = mo.AdamSPD(make_net().named_parameters(), lr=1e-2)
    swapped.anchor_to(anchors)
    swapped.param_groups[0]["params"] = list(nets[1].parameters())
    before = [p.detach().clone() for p in nets[1].parameters()]
    with pytest.raises(RuntimeError, match=r"anchor='given': .* call optimizer.anchor_to\(state_dict\)"):
        train(nets[1], swapped, 1, 2)
    assert same([p.detach() for p in nets[1].parameters()], before)
    swapped.anchor_to(anchors)
    assert same(train(nets[0], plain, 1, 12), train(nets[1], swapped, 1, 12))
    assert set(swapped.state) <= set(nets[1].parameters())
    swapped.load_state_dict(swapped.state_dict())


def test_a_host_may_save_and_load_before_the_first_step() -> None:
    """As Accelerate's prepare does; what was given must not be captured again at the first step."""
    anchors = pretrained(make_net())
    for wrapped in (False, True):
        net = make_net()
        base = torch.optim.Adam(net.named_parameters(), lr=1e-2)
        optimizer = mo.wrap(base, [mo.SelectiveProjection()]) if wrapped else mo.AdamSPD(net.named_parameters())
        optimizer.anchor_to(anchors)
        optimizer.load_state_dict(optimizer.state_dict())
        train(net, optimizer, 1, 4)
        assert all(
            torch.equal(optimizer.state[p]["anchor"], anchors[name])
            for name, p in net.named_parameters()
            if p.grad is not None
        )


def test_options_of_the_anchor_may_change_between_steps(tmp_path: Path) -> None:
    p = nn.Parameter(torch.zeros(4))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = one_file({"p": torch.full((4,), 1.0)}, tmp_path / "a")
    second = one_file({"p": torch.full((4,), 2.0)}, tmp_path / "b")
    optimizer = mo.SGD([("p", p)], lr=1.0, rules=[mo.DecoupledDecay(1.0, toward="anchor")], anchor=first)
    p.grad = torch.zeros(4)
    optimizer.step()
    assert p.tolist() == [1.0] * 4
    optimizer.param_groups[0]["anchor"] = second
    with pytest.raises(ValueError, match="set the group's anchor_hash to None"):
        optimizer.step()
    assert p.tolist() == [1.0] * 4
    optimizer.param_groups[0].update(anchor_hash=None, anchor_store="mmap")
    optimizer.step()
    assert p.tolist() == [2.0] * 4
    assert is_mapped(optimizer._plan.batches[0].held[0], Path(second))  # type: ignore[union-attr, index]
    optimizer.param_groups[0]["anchor"] = "zero"
    optimizer.step()
    assert p.tolist() == [0.0] * 4


def test_a_failed_capture_leaves_nothing_and_takes_part_in_every_collective(tmp_path: Path) -> None:
    asked: list[int] = []

    def whole(t: Tensor) -> Tensor:
        asked.append(t.numel())
        return t

    (tmp_path / "file").write_text("")
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    with pytest.raises(OSError):
        write(tmp_path / "file" / "below a file", tensors, whole, keep=True)
    write(tmp_path / "other", tensors, whole, keep=False)
    assert asked == [2, 3, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ValueError, match=r"'c' is torch.complex64; files hold real floating point"):
        write(tmp_path / "other", {"c": torch.ones(1, dtype=torch.complex64)}, whole, keep=True)


def test_an_adamw_checkpoint_continues_with_a_source(tmp_path: Path) -> None:
    """The anchor is not in a foreign checkpoint, and with a source it need not be."""
    net = make_net()
    source = one_file({name: p.detach().clone() for name, p in net.named_parameters()}, tmp_path)
    theirs = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0)
    train(net, theirs, 0, 5)
    groups = [{"params": list(net.named_parameters()), "anchor": source}]
    ours = mo.AdamSPD(groups)
    ours.load_state_dict(through_file(theirs.state_dict()))
    assert ours.param_groups[0]["anchor"] == source
    train(net, ours, 5, 8)
    with pytest.raises(ValueError, match="holds no anchor"):
        mo.AdamSPD(net.parameters()).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("way", WAYS)
def test_wrapped_is_adamspd(way: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ends = []
    for wrapped, folder in ((False, tmp_path / "a"), (True, tmp_path / "b")):
        net, optimizer = begin(way, folder, wrapped, torch.float64)
        ends.append(torch.cat([p.flatten() for p in train(net, optimizer, 1, 30)]))
    start = torch.cat([p.detach().flatten() for p in make_net(dtype=torch.bfloat16).double().parameters()])
    assert (ends[0] - ends[1]).norm() <= 1e-9 * (ends[1] - start).norm()


def test_late_parameters(tmp_path: Path) -> None:
    """Captured at their own first step that can move them; from a source they are read then."""
    early, late = (nn.Parameter(torch.randn(3, 2)) for _ in range(2))
    source = one_file({"early": torch.zeros(3, 2), "late": torch.full((3, 2), 0.5)}, tmp_path)
    first = str(tmp_path / "first")
    for options in ({}, {"anchor": source}, {"anchor_store": "mmap", "anchor_file": first}):
        optimizer = mo.AdamSPD([{"params": [("early", early)], **options}], lr=0.1)
        early.grad = torch.randn(3, 2)
        optimizer.step()
        if "anchor_file" in options:
            with pytest.raises(ValueError, match="give the new group an anchor_file of its own"):
                optimizer.add_param_group({"params": [("late", late)], **options})
            assert len(optimizer.param_groups) == 1
            options["anchor_file"] = str(tmp_path / "second")
        optimizer.add_param_group({"params": [("late", late)], **options, "lr": 0.0})
        late.grad = torch.randn(3, 2)
        optimizer.step()
        with torch.no_grad():
            late.add_(1.0)
        start = late.detach().clone()
        optimizer.param_groups[1]["lr"] = 0.1
        optimizer.step()
        assert not torch.equal(late, start)
        if not options:
            assert torch.equal(optimizer.state[late]["anchor"], start)
        elif "anchor_file" in options:
            assert torch.equal(load_file(tmp_path / "second")["late"], start)
            assert set(load_file(first)) == {"early"}
    with pytest.raises(ValueError, match="has no tensor for other"):
        optimizer.add_param_group({"params": [("other", nn.Parameter(torch.ones(2)))], "anchor": source})


# --- Names, shapes, heads ----------------------------------------------------------------------------------------


BERT = ["embeddings.word.weight", "encoder.layer.0.weight", "encoder.layer.0.bias", "pooler.weight"]


@pytest.mark.parametrize(
    ("names", "keys", "expected"),
    [
        (BERT, [*BERT, "bert.pooler.weight"], BERT),
        ([f"module._orig_mod.{n}" for n in BERT], BERT, BERT),
        ([n.replace("0.", "0._fsdp_wrapped_module._checkpoint_wrapped_module.") for n in BERT], BERT, BERT),
        (BERT, [f"module.{n}" for n in BERT], [f"module.{n}" for n in BERT]),
        ([f"base_model.model.{n.replace('.weight', '.base_layer.weight')}" for n in BERT], BERT, BERT),
        ([f"bert.{n}" for n in BERT], BERT, BERT),
        (BERT, [f"bert.{n}" for n in BERT], [f"bert.{n}" for n in BERT]),
        ([*(f"bert.{n}" for n in BERT), "classifier.weight"], [*BERT, "cls.weight"], BERT),
        # A prefix that only a head would gain from is not looked for: most names are exact.
        ([*BERT, "classifier.weight"], [*BERT, "old.classifier.weight"], BERT),
        (["weight"], ["other"], []),
    ],
)
def test_names_are_matched(names: list[str], keys: list[str], expected: list[str]) -> None:
    found = match(names, keys, "f")
    assert [found[name] for name in names if name in found] == expected


@pytest.mark.parametrize(
    ("names", "keys", "message"),
    [
        (["module.a"], ["_orig_mod.a", "module.module.a"], "parameter 'module.a' could be _orig_mod.a and module"),
        (["weight"], ["0.weight", "1.weight"], "equally well with the prefix '0' and with '1'"),
        (["a.w", "b.w"], ["w"], "equally well without the prefix 'a' and without 'b'"),
    ],
)
def test_ambiguous_names_are_an_error(names: list[str], keys: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match(names, keys, "f")


def anchors_of(groups: Any) -> dict[str, str | None]:
    return {name: group["anchor"] for group in groups for name, _ in group["params"]}


def test_heads_without_a_key_are_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = make_net()
    anchors = {f"base.{n}": a for n, a in pretrained(net).items() if not n.startswith("head")}
    source = one_file(anchors, tmp_path)
    for anchor, kind in ((source, source), (anchors, "given")):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="mooring"):
            groups = mo.param_groups(net, anchor=anchor, head="scale")
        found = anchors_of(groups)
        assert {n for n, a in found.items() if a is None} == {"head.weight", "head.bias", "scale"}
        assert {a for a in found.values() if a is not None} == {kind}
        label = source if anchor is source else "state dict"
        assert caplog.messages == [f"not in {label}, so without an anchor: head.weight, head.bias"]
        optimizer = mo.AdamSPD(groups, lr=1e-2)
        if anchor is anchors:
            backward(net, 1)
            with pytest.raises(RuntimeError, match=r"call optimizer.anchor_to\(state_dict\)"):
                optimizer.step()
            optimizer.anchor_to(anchors)
        train(net, optimizer, 1, 3)


def test_another_model_is_an_error(tmp_path: Path) -> None:
    source = one_file({"encoder.weight": torch.ones(2, 2), "norm.bias": torch.ones(6)}, tmp_path)
    with pytest.raises(ValueError, match=r"more than half of the model: the model has scale, .* the source encoder"):
        mo.param_groups(make_net(), anchor=source)
    with pytest.raises(ValueError, match=r"has no tensor for scale, .* it has encoder.weight, norm.bias"):
        mo.AdamSPD(make_net().named_parameters(), anchor=source)


def test_a_resized_tensor_is_an_error_that_names_both_shapes(tmp_path: Path) -> None:
    net = make_net()
    anchors = {**pretrained(net), "embedding.weight": torch.ones(5, 6)}
    source = one_file(anchors, tmp_path)
    message = r"parameter 'embedding.weight' has shape \(7, 6\), its anchor \(5, 6\).*anchor=None"
    with pytest.raises(ValueError, match=message):
        mo.AdamSPD(net.named_parameters(), anchor=source)
    with pytest.raises(ValueError, match=message):
        mo.param_groups(net, anchor=source)
    optimizer = mo.AdamSPD(net.named_parameters())
    with pytest.raises(ValueError, match=message):
        optimizer.anchor_to(anchors)
    assert optimizer.param_groups[0]["anchor"] == "capture" and not optimizer.state
    train(net, mo.AdamSPD(mo.param_groups(net, anchor=source, head="embedding")), 1, 3)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(6, 4)
        self.lm_head = nn.Linear(4, 6, bias=False)
        self.lm_head.weight = self.wte.weight


@pytest.mark.parametrize("name", ["wte.weight", "lm_head.weight"])
def test_tied_parameters_are_found_under_either_name(name: str, tmp_path: Path) -> None:
    model, value = Tied(), torch.randn(6, 4)
    optimizer = mo.AdamSPD(mo.param_groups(model, anchor=one_file({name: value}, tmp_path)), anchor_store="mmap")
    model.wte.weight.grad = torch.ones(6, 4)
    optimizer.step()
    assert torch.equal(optimizer._plan.batches[0].held[0], value)  # type: ignore[union-attr, index]


def test_tied_parameters_noted_in_the_metadata(tmp_path: Path) -> None:
    """safetensors' save_model keeps one of two tied tensors and notes the other's name."""
    model = Tied()
    save_model(model, str(tmp_path / "m.safetensors"))
    [kept] = load_file(tmp_path / "m.safetensors")
    [other] = {"wte.weight", "lm_head.weight"} - {kept}
    optimizer = mo.AdamSPD([(other, model.wte.weight)], anchor=str(tmp_path / "m.safetensors"))
    model.wte.weight.grad = torch.ones(6, 4)
    optimizer.step()


class LoRA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(4, 4)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
        self.lora_magnitude_vector = nn.ParameterDict({"default": nn.Parameter(torch.ones(4))})


def test_lora_factors_are_anchored_at_zero_or_at_their_start(tmp_path: Path) -> None:
    net = LoRA()
    source = one_file({"weight": torch.randn(4, 4), "bias": torch.randn(4)}, tmp_path)
    for anchor in ("capture", source):
        found = anchors_of(mo.param_groups(net, anchor=anchor))
        assert found["lora_A.default.weight"] == found["lora_B.default.weight"] == "zero"
        assert found["lora_magnitude_vector.default"] == "capture", "DoRA's magnitudes do not belong near zero"
        assert found["base_layer.weight"] == anchor
        found = anchors_of(mo.param_groups(net, anchor=anchor, lora="init"))
        assert found["lora_A.default.weight"] == found["lora_B.default.weight"] == "capture"
    optimizer = mo.AdamSPD(mo.param_groups(net, lora="init"), lr=0.1)
    start = net.lora_A["default"].weight.detach().clone()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(optimizer.state[net.lora_A["default"].weight]["anchor"], start)
    with pytest.raises(ValueError, match="lora must be 'zero' or 'init', got 'one'"):
        mo.param_groups(net, lora="one")


# --- Arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor": "nowhere.safetensors"}, "got 'nowhere.safetensors': there is no such file or folder"),
        ({"anchor": ""}, "anchor must be 'capture'"),
        ({"anchor": {"p": torch.ones(2)}}, r"a state dict goes to optimizer.anchor_to"),
        ({"anchor_store": "disk"}, "anchor_store must be one of 'device', 'bfloat16', 'cpu', 'mmap', got 'disk'"),
        ({"anchor_store": "cpu"}, "anchor_file must be given with anchor_store='cpu'"),
        ({"anchor_store": "cpu", "anchor_file": Path("a")}, "anchor_file must be the path .* got PosixPath"),
        ({"anchor": "given", "anchor_store": "cpu"}, "anchor_store='cpu' reads a file: save the state dict"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    for build in (
        lambda p: mo.AdamSPD([("p", p)], **options),
        lambda p: mo.SGD([("p", p)], rules=[mo.SelectiveProjection()], **options),
        lambda p: mo.wrap(torch.optim.SGD([("p", p)]), [mo.SelectiveProjection()], **options),
    ):
        with pytest.raises(ValueError, match=message):
            build(nn.Parameter(torch.ones(2)))
    optimizer = mo.AdamSPD([("q", nn.Parameter(torch.ones(2)))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [("p", nn.Parameter(torch.ones(2)))], **options})


def test_a_source_needs_names(tmp_path: Path) -> None:
    source = one_file({"p": torch.ones(2)}, tmp_path)
    with pytest.raises(ValueError, match=r"read by name, and these parameters have none.*named_parameters"):
        mo.AdamSPD([nn.Parameter(torch.ones(2))], anchor=source)
    with pytest.raises(ValueError, match=r"read by name, and these parameters have none.*named_parameters"):
        mo.AdamSPD([nn.Parameter(torch.ones(2))]).anchor_to({"p": torch.ones(2)})
    with pytest.raises(ValueError, match="AdamW has no rule that reads an anchor"):
        mo.AdamW([nn.Parameter(torch.ones(2))]).anchor_to({"p": torch.ones(2)})
    with pytest.raises(ValueError, match="the state dict has no p; it has q"):
        mo.AdamSPD([("p", nn.Parameter(torch.ones(2)))]).anchor_to({"q": torch.ones(2)})


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not tensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "parts").mkdir()
    sharded_folder({n: torch.ones(1) for n in "abcdefgh"}, tmp_path / "parts")
    (tmp_path / "parts" / "model-2.safetensors").unlink()
    for name, message in (
        ("text", "is not a safetensors file"),
        ("folder", r"must hold model.safetensors or model.safetensors.index.json"),
        ("parts", r"index.json names model-2.safetensors, which is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            mo.AdamSPD([("a", nn.Parameter(torch.ones(1)))], anchor=str(tmp_path / name))


def test_without_safetensors_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = one_file({"p": torch.ones(2)}, tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "mooring\[anchors\]"'):
        mo.AdamSPD([("p", nn.Parameter(torch.ones(2)))], anchor=source)
    optimizer = mo.AdamSPD([("q", nn.Parameter(torch.ones(2)))])
    with pytest.raises(ImportError, match=r'pip install "mooring\[anchors\]"'):
        optimizer.add_param_group({"params": [("p", nn.Parameter(torch.ones(2)))], "anchor": source})
    assert len(optimizer.param_groups) == 1
