"""Which group a parameter belongs to: by what its module is, never by how it happens to be called alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mooring as mo


class RMSNorm(nn.Module):  # not torch's: the class of some model's own code
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, width))


class Conv1D(nn.Module):  # GPT-2's linear layer, which stores (inputs, outputs)
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 12))
        self.bias = nn.Parameter(torch.zeros(12))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln = RMSNorm(4)
        self.attn = Conv1D()
        self.up = nn.ConvTranspose1d(4, 6, 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(10, 4)
        self.h = nn.ModuleList(Block() for _ in range(3))
        self.ln_f = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 10, bias=False)
        self.classifier = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


def table(groups: list) -> dict[str, tuple]:
    """name -> the options of its group."""
    return {
        name: tuple(group.get(key) for key in ("weight_decay", "delta", "row_dim", "anchor"))
        for group in groups
        for name, _ in group["params"]
    }


def test_every_parameter_gets_what_its_module_asks_for() -> None:
    found = table(mo.param_groups(Net(), 0.1, head="classifier"))
    assert found["wte.weight"] == (0.1, 0.0, 0, "capture")
    for i in range(3):
        assert found[f"h.{i}.ln.scale"] == (0.0, None, 0, "capture")  # two dimensions, and still a norm's
        assert found[f"h.{i}.attn.weight"] == (0.1, None, 1, "capture")
        assert found[f"h.{i}.attn.bias"] == (0.0, None, 0, "capture")
        assert found[f"h.{i}.up.weight"] == (0.1, None, 1, "capture")
    assert found["ln_f.weight"] == (0.0, None, 0, "capture")
    assert found["lm_head.weight"] == (0.1, None, 0, "capture")
    assert found["classifier.weight"] == (0.1, None, 0, None)
    assert found["classifier.bias"] == (0.0, None, 0, None)
    assert "frozen" not in found
    assert len(found) == sum(p.requires_grad for p in Net().parameters())


def test_equal_groups_are_merged_and_none_is_empty() -> None:
    groups = mo.param_groups(Net(), 0.1)
    assert len(groups) == 4  # embeddings, weights, transposed weights, norms and biases
    assert all(group["params"] for group in groups)


def test_tied_parameters_appear_once() -> None:
    net = Net()
    net.lm_head.weight = net.wte.weight
    found = table(mo.param_groups(net))
    assert "wte.weight" in found and "lm_head.weight" not in found
    mo.AdamP(mo.param_groups(net))  # torch refuses a parameter in two groups


def test_layer_decay() -> None:
    groups = mo.param_groups(Net(), lr=1.0, layer_decay=0.5, head="classifier")
    rates = {name: group["lr"] for group in groups for name, _ in group["params"]}
    assert rates["wte.weight"] == 0.5**4
    assert [rates[f"h.{i}.attn.weight"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert rates["ln_f.weight"] == rates["lm_head.weight"] == rates["classifier.bias"] == 1.0


def test_lora_factors_are_anchored_at_zero() -> None:
    net = nn.Module()
    net.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
    net.base = nn.Linear(4, 4)
    found = table(mo.param_groups(net))
    assert found["lora_A.default.weight"][3] == "zero"
    assert found["base.weight"][3] == "capture"
    assert table(mo.param_groups(net, anchor=None))["lora_A.default.weight"][3] is None


def test_projection_by_columns_where_the_module_stores_them_there() -> None:
    """The same weights, transposed, with row_dim 1 take the same step."""
    straight, turned = nn.Parameter(torch.randn(6, 4).double()), None
    turned = nn.Parameter(straight.detach().T.contiguous())
    a = mo.AdamP([straight], lr=0.1, delta=10.0)
    b = mo.AdamP([{"params": [turned], "row_dim": 1}], lr=0.1, delta=10.0)
    for _ in range(5):
        straight.grad = torch.randn(6, 4).double()
        turned.grad = straight.grad.T.contiguous()
        a.step()
        b.step()
    torch.testing.assert_close(straight.detach(), turned.detach().T, rtol=1e-13, atol=1e-14)


def test_groups_print_as_a_table() -> None:
    text = repr(mo.param_groups(Net(), 0.1, head="classifier"))
    assert text.splitlines()[0].split()[:3] == ["group", "tensors", "elements"]
    assert any(line.startswith("weights, transposed") and " 6 " in line for line in text.splitlines())
    assert any(line.startswith("weights, free") for line in text.splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "classifer"}, "head='classifer' names no trainable parameter; the model has classifier, h, lm_head"),
        ({"layer_decay": 0.9}, "lr must be given with layer_decay"),
        ({"layer_decay": 1.5, "lr": 1.0}, r"layer_decay must be in \(0, 1\], got 1.5"),
    ],
)
def test_errors_name_the_argument(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mo.param_groups(Net(), **options)


def test_a_frozen_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        mo.param_groups(Net().requires_grad_(False))


@pytest.mark.parametrize("name", ["AdamW", "AdamP", "AdamS", "AdamSPD"])
def test_groups_serve_every_optimizer(name: str) -> None:
    net = Net()
    optimizer = getattr(mo, name)(mo.param_groups(net, 0.0, head="classifier"), lr=1e-2)
    for p in net.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    assert all(torch.equal(p, q) != p.requires_grad for p, q in zip(net.parameters(), before))
