"""Anchors from a folder of torch.distributed.checkpoint: the same anchors, and nothing that its pickle says is run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_state_dict

import mooring as mo
from mooring.anchors.sources import Source
from tests.optim.problems import TinyNet, make_net
from tests.optim.test_anchors import follows_reference, one_file, pretrained, same, train

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def saved(anchors: dict[str, Tensor], folder: Path, nested: bool = True) -> str:
    """As a trainer leaves it: weights beside an optimizer's state, numbers and objects."""
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters())
    state: dict[str, Any] = {"epoch": 3, "path": folder, "shapes": [torch.Size((2, 3)), {"a": torch.ones(2)}]}
    state["optimizer"] = get_state_dict(net, optimizer)[1]
    dcp.save({"model": anchors, **state} if nested else {**anchors, **state}, checkpoint_id=folder / "saved")
    return str(folder / "saved")


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("store", ["device", "cpu"])
def test_it_follows_the_reference_and_the_same_file(store: str, nested: bool, tmp_path: Path) -> None:
    anchors = pretrained(make_net())
    source, file = saved(anchors, tmp_path, nested), one_file(anchors, tmp_path)

    def build(net: TinyNet, source: str = source) -> torch.optim.Optimizer:
        return mo.AdamSPD(net.named_parameters(), lr=1e-2, anchor=source, anchor_store=store)

    follows_reference(anchors, build)
    nets = make_net(), make_net()
    assert same(train(nets[0], build(nets[0]), 0, 6), train(nets[1], build(nets[1], file), 0, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_parts_are_those_of_the_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a": torch.randn(7, 5).to(dtype), "b": torch.randn(3, 4, 2).transpose(0, 1).to(dtype)}
    tensors |= {"scalar": torch.tensor(3.0, dtype=dtype), "none": torch.empty(0, 4, dtype=dtype)}
    dcp.save(tensors, checkpoint_id=tmp_path / "saved")
    source = Source(str(tmp_path / "saved"))
    for name, tensor in tensors.items():
        assert source.shape(name) == tensor.shape
        assert torch.equal(source.read(name), tensor)
        assert name in ("none",) or source.read(name).dtype == dtype
    assert torch.equal(source.read("a", (slice(2, 5), slice(1, 4))), tensors["a"][2:5, 1:4])
    assert torch.equal(source.read("b", (slice(0, 4), slice(2, 3), slice(0, 2))), tensors["b"][:, 2:3])
    assert source.read("a", (slice(7, 7), slice(0, 5))).shape == (0, 5)


def test_new_heads_are_free_and_names_are_matched(tmp_path: Path) -> None:
    body, head = nn.Linear(8, 16), nn.Linear(16, 2)
    dcp.save({"model": {"0.weight": body.weight, "0.bias": body.bias}}, checkpoint_id=tmp_path / "saved")
    groups = mo.param_groups(nn.Sequential(body, nn.ReLU(), head), anchor=str(tmp_path / "saved"))
    free = {p for group in groups if group["anchor"] is None for _, p in group["params"]}
    assert free == {head.weight, head.bias}


def test_a_change_is_noticed_and_a_moved_folder_is_not(tmp_path: Path) -> None:
    anchors = pretrained(make_net())
    source = saved(anchors, tmp_path)
    net = make_net()
    optimizer = mo.AdamSPD(net.named_parameters(), lr=1e-2, anchor=source)
    train(net, optimizer, 0, 2)
    state = optimizer.state_dict()
    moved = tmp_path / "moved"
    Path(source).rename(moved)
    other = make_net()
    resumed = mo.AdamSPD(other.named_parameters(), lr=1e-2, anchor=str(moved))
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["anchor"] == str(moved)
    data = next(moved.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="has changed: its sha256 is"):
        resumed.load_state_dict(state)


class Runs:
    """Whoever unpickles this touches a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_nothing_that_the_metadata_names_is_looked_up_or_run(tmp_path: Path) -> None:
    """Where an object is of no matter to the tensors it is passed over; where it is, the file is refused."""
    anchors = pretrained(make_net())
    folder = Path(saved(anchors, tmp_path))
    touched = tmp_path / "touched"
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in ("planner_data", "storage_meta"):
        setattr(metadata, place, Runs(touched))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    source = Source(str(folder))
    assert {f"model.{name}" for name in anchors} <= set(source.keys)
    assert not touched.exists()
    for written in (Runs(touched), {"state_dict_metadata": Runs(touched)}):
        (folder / ".metadata").write_bytes(pickle.dumps(written))
        with pytest.raises(ValueError, match="is not to be read as metadata of torch"):
            Source(str(folder))
    # State that goes into a class changes it for everyone: that class is not there either.
    changes = b"\x80\x04\x8c\x07pathlib\x8c\x08PurePath\x93N}\x8c\x06hidden\x8c\x01xs\x86b."
    (folder / ".metadata").write_bytes(changes)
    with pytest.raises(ValueError, match="is not to be read"):
        Source(str(folder))
    assert not touched.exists()
    assert not hasattr(PurePath, "hidden")
    pickle.loads(pickle.dumps(Runs(touched)))  # what would have happened
    pickle.loads(changes)
    assert touched.exists()
    assert PurePath.hidden == "x"  # type: ignore[attr-defined]
    del PurePath.hidden  # type: ignore[attr-defined]


def change(folder: Path, how: Callable[[Metadata], None]) -> None:
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    how(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def each(field: str, value: Any) -> Callable[[Path], None]:
    def how(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            setattr(info, field, value)

    return lambda folder: change(folder, how)


def without_a_piece(folder: Path) -> None:
    change(folder, lambda metadata: metadata.storage_data.pop(next(i for i in metadata.storage_data if i.fqn == "a")))


def shortened(name: str) -> Callable[[Path], None]:
    def how(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])

    return how


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / ".metadata").write_bytes(b"{}"), "is not to be read as metadata"),
        (shortened(".metadata"), "is not to be read as metadata"),
        (lambda folder: (folder / "__0_0.distcp").unlink(), ".metadata names __0_0.distcp, which is missing"),
        (shortened("__0_0.distcp"), "the piece of 'a' in .*__0_0.distcp is damaged"),
        (each("offset", 1), "the piece of 'a' in .*__0_0.distcp is damaged"),
        (each("relative_path", "../elsewhere.distcp"), r"names '\.\./elsewhere\.distcp', which is not in this folder"),
        (each("transform_descriptors", ["zstd"]), r"'a' was transformed when it was saved \(\['zstd'\]\)"),
        (without_a_piece, "does not hold all pieces of 'a'"),
    ],
)
def test_damage_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    dcp.save({"a": torch.ones(3, 2)}, checkpoint_id=folder)
    damage(folder)
    p = nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones(3, 2)
    before = p.detach().clone()
    with pytest.raises(ValueError, match=message):
        mo.AdamSPD([("a", p)], anchor=str(folder)).step()
    assert torch.equal(p.detach(), before)


def test_mapping_needs_safetensors(tmp_path: Path) -> None:
    source = saved(pretrained(make_net()), tmp_path)
    with pytest.raises(
        ValueError, match=r"anchor_store='mmap' maps safetensors files.*use 'device', 'bfloat16' or 'cpu'"
    ):
        mo.AdamSPD(make_net().named_parameters(), anchor=source, anchor_store="mmap")
