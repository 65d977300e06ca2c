"""Anchors from files under real hosts: the Hugging Face cache, and Accelerate's saving, loading and preparing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

import mooring as mo

pytestmark = pytest.mark.hosts


def test_a_hub_id_is_read_from_the_real_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--net"
    snapshot = repository / "snapshots" / commit
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    model = torch.nn.Linear(4, 2)
    save_file({name: p.detach() + 1 for name, p in model.named_parameters()}, snapshot / "model.safetensors")
    for anchor in ("someone/net", f"someone/net@{commit}"):
        optimizer = mo.AdamSPD(model.named_parameters(), anchor=anchor, strength=0.0, weight_decay=0.0)
        rules = [mo.DecoupledDecay(1.0, toward="anchor")]
        pulled = mo.SGD(model.named_parameters(), lr=1.0, rules=rules, anchor=anchor)
        start = model.weight.detach().clone()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        pulled.step()  # a shrink of one: the weights are at the anchor
        assert optimizer.param_groups[0]["anchor"] == anchor
        if anchor == "someone/net":
            torch.testing.assert_close(model.weight.detach(), start + 1)
    for wrong in ("someone/other", "net", "no such id", f"someone/net@{commit[::-1]}"):
        with pytest.raises(ValueError, match=r"no such model is in the local Hugging Face cache"):
            mo.AdamSPD(model.named_parameters(), anchor=wrong)


@pytest.mark.parametrize("way", ["source mmap", "source bfloat16", "capture cpu", "given"])
def test_accelerate_stops_and_resumes_bitwise(
    way: str, rows: Any, token_net: Any, snapshot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    torch.manual_seed(0)
    model = token_net(dropout=0.0).bfloat16().float()  # so that a bfloat16 anchor is exact
    pretrained = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_file(pretrained, tmp_path / "pretrained.safetensors")
    kind, _, store = way.partition(" ")
    options: dict[str, Any] = {"anchor_store": store or "device"}
    if kind == "source":
        options["anchor"] = str(tmp_path / "pretrained.safetensors")
    elif kind == "capture":
        options["anchor_file"] = str(tmp_path / "captured.safetensors")

    def prepared(net: torch.nn.Module) -> Any:
        accelerator = Accelerator(cpu=True)
        optimizer = mo.AdamSPD(net.named_parameters(), lr=1e-2, **options)
        if kind == "given":
            optimizer.anchor_to(pretrained)
        return (accelerator, *accelerator.prepare(net, optimizer))

    def train(net: Any, optimizer: Any, accelerator: Any, start: int, stop: int) -> None:
        for i in range(start, stop):
            batch = rows[8 * i : 8 * i + 8]
            accelerator.backward(cross_entropy(net(batch["input_ids"]), batch["labels"]))
            optimizer.step()
            optimizer.zero_grad()

    accelerator, whole, optimizer = prepared(model)
    train(whole, optimizer, accelerator, 0, 4)
    accelerator.save_state(str(tmp_path / "state"))
    train(whole, optimizer, accelerator, 4, 8)

    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)  # a new capture would be seen
    accelerator, resumed, optimizer = prepared(other)
    accelerator.load_state(str(tmp_path / "state"))
    train(resumed, optimizer, accelerator, 4, 8)
    snapshot(other).assert_equal(snapshot(model))
    assert any("anchor" in s for s in optimizer.optimizer.state.values()) == (kind == "given")
