"""What docs/migrating.md says about other implementations, against those implementations where they are installed.

pip install --no-deps adamp==0.3.0 pytorch_optimizer==4.1.0 timm==1.0.31
pytest tests/docs/test_migrating.py

None of them is a dependency of anything here: what is not installed in that version is skipped, except for torch.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import mooring as mo

PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"
VERSIONS = {"adamp": "0.3.0", "pytorch_optimizer": "4.1.0", "timm": "1.0.31"}
SHAPES = ((6, 5), (7,), (4, 3, 3, 3))
PROJECTED = {"lr": 1e-2, "weight_decay": 0.1, "delta": 0.5}

Make = Callable[[Sequence[torch.nn.Parameter]], torch.optim.Optimizer]


def other(name: str) -> Any:
    """Another package in the version that the page names, or a skipped test."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name}=={VERSIONS[name]} is not installed")
    if version != VERSIONS[name]:
        pytest.skip(f"{name} is {version}, the page is about {VERSIONS[name]}")
    if name != "timm":
        return importlib.import_module(name)
    # Its package imports torchvision; the one file does not.
    found = importlib.util.find_spec("timm")
    assert found is not None and found.origin is not None
    spec = importlib.util.spec_from_file_location("timm_adamp", Path(found.origin).parent / "optim" / "adamp.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def travelled(make: Make, *, zero: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Where 40 steps along made-up gradients lead, and where they began."""
    generator = torch.Generator().manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]
    start = [p.detach().clone() for p in params]
    optimizer = make(params)
    for _ in range(40):
        for p in params:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.grad = torch.zeros_like(p) if zero else noise
        optimizer.step()
    return [p.detach() for p in params], start


def difference(theirs: Make, ours: Make) -> float:
    """The largest difference of a tensor's displacement, relative to it."""
    (there, start), (here, _) = travelled(theirs), travelled(ours)
    return max(float((p - q).norm() / (q - s).norm()) for p, q, s in zip(there, here, start))


def test_the_page_names_the_versions_that_are_checked() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, version in VERSIONS.items():
        assert f"{name}=={version}" in text and f"{name} {version}" in text


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("package", ["adamp", "timm"])
def test_adamp_is_theirs(package: str, nesterov: bool) -> None:
    theirs, options = other(package).AdamP, {**PROJECTED, "nesterov": nesterov}
    assert difference(lambda p: theirs(p, **options), lambda p: mo.AdamP(p, **options)) < 1e-12


def test_adamp_takes_the_same_arguments_in_the_same_order() -> None:
    package = other("adamp")
    for theirs, ours in ((package.AdamP, mo.AdamP), (package.SGDP, mo.SGDP)):
        names = list(inspect.signature(theirs).parameters)
        mine = inspect.signature(ours).parameters
        assert list(mine)[: len(names)] == names
        for name, parameter in inspect.signature(theirs).parameters.items():
            if name not in ("params", "lr"):
                assert mine[name].default == parameter.default


def test_sgdp_of_adamp_projects_the_buffer_and_that_of_pytorch_optimizer_does_not() -> None:
    options = {**PROJECTED, "momentum": 0.9}
    released = other("adamp").SGDP
    assert difference(lambda p: released(p, **options), lambda p: mo.SGDP(p, project_buffer=True, **options)) < 1e-12
    assert difference(lambda p: released(p, **options), lambda p: mo.SGDP(p, **options)) > 0.1
    library = other("pytorch_optimizer").SGDP
    assert difference(lambda p: library(p, **options), lambda p: mo.SGDP(p, **options)) < 1e-12


def test_a_zero_gradient_cuts_the_decay_of_adamp_to_a_tenth() -> None:
    there, start = travelled(lambda p: other("adamp").AdamP(p, lr=1e-2, weight_decay=0.1), zero=True)
    here, _ = travelled(lambda p: mo.AdamP(p, lr=1e-2, weight_decay=0.1), zero=True)
    matrix = 0
    torch.testing.assert_close(there[matrix], start[matrix] * (1 - 1e-2 * 0.1 * 0.1) ** 40)
    torch.testing.assert_close(here[matrix], start[matrix] * (1 - 1e-2 * 0.1) ** 40)


@pytest.mark.parametrize("package", ["adamp", "pytorch_optimizer"])
def test_channels_last_weights_are_refused_there_and_taken_here(package: str) -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    weight.grad = torch.randn_like(weight)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        other(package).AdamP([weight], lr=1e-3).step()
    mo.AdamP([weight], lr=1e-3).step()


def test_eps_of_pytorch_optimizer_stands_elsewhere() -> None:
    package = other("pytorch_optimizer")
    apart = [
        difference(
            lambda p, eps=eps: package.AdamP(p, eps=eps, **PROJECTED),  # type: ignore[misc]
            lambda p, eps=eps: mo.AdamP(p, eps=eps, **PROJECTED),  # type: ignore[misc]
        )
        for eps in (1e-8, 1e-4)
    ]
    assert 1e-9 < apart[0] < 1e-6 and apart[1] > 1e-4
    stable = {"lr": 1e-2, "weight_decay": 0.1}
    assert 1e-10 < difference(lambda p: package.AdamS(p, **stable), lambda p: mo.AdamS(p, **stable)) < 1e-6
    bare = {"lr": 1e-2, "weight_decay": 0.0}
    assert difference(lambda p: package.AdamS(p, **bare), lambda p: mo.AdamS(p, **bare)) < 1e-12


def test_adai_of_pytorch_optimizer_and_its_stable_decay() -> None:
    package, options = other("pytorch_optimizer"), {"lr": 1e-2, "weight_decay": 0.1}
    stable = {**options, "stable_weight_decay": True, "weight_decouple": True}
    assert difference(lambda p: package.Adai(p, **options), lambda p: mo.Adai(p, **options)) < 1e-12
    assert difference(lambda p: package.Adai(p, **stable), lambda p: mo.AdaiS(p, **options)) < 1e-12


def test_positions_differ_in_pytorch_optimizer() -> None:
    names = list(inspect.signature(other("pytorch_optimizer").AdamP).parameters)
    assert names[:4] == ["params", "lr", "betas", "weight_decay"]
    assert list(inspect.signature(mo.AdamP).parameters)[:4] == ["params", "lr", "betas", "eps"]


def test_a_checkpoint_of_adamp_resumes() -> None:
    package = other("adamp")
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
    theirs = package.AdamP([weight], **PROJECTED)
    grads = [torch.randn_like(weight) for _ in range(12)]
    for g in grads[:6]:
        weight.grad = g.clone()
        theirs.step()
    resumed = torch.nn.Parameter(weight.detach().clone())
    ours = mo.AdamP([resumed], **PROJECTED)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for g in grads[6:]:
        weight.grad, resumed.grad = g.clone(), g.clone()
        theirs.step()
        ours.step()
    torch.testing.assert_close(resumed, weight, rtol=1e-12, atol=1e-12)


def test_the_buffer_of_adamp_s_sgdp_has_another_name() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    optimizers = (other("adamp").SGDP([weight], lr=0.1, momentum=0.9), mo.SGDP([weight], lr=0.1, momentum=0.9))
    for optimizer in optimizers:
        optimizer.step()
    assert ["momentum" in o.state[weight] for o in optimizers] == [True, False]
    assert "momentum_buffer" in optimizers[1].state[weight]


def test_a_decay_above_the_whole_weight_flips_the_sign_in_torch_and_ends_at_zero_here() -> None:
    def decayed(cls: Any) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.zeros(3)
        cls([weight], lr=1.0, weight_decay=1.5).step()
        return weight.detach()

    assert (decayed(torch.optim.AdamW) < 0).all()
    assert (decayed(mo.AdamW) == 0).all()


TORCH = {
    "AdamW": (torch.optim.AdamW, mo.AdamW),
    "Adam": (torch.optim.Adam, mo.Adam),
    "SGD": (torch.optim.SGD, mo.SGD),
}


@pytest.mark.parametrize("name", TORCH)
def test_the_arguments_of_torch_that_are_not_here_are_those_that_the_page_lists(name: str) -> None:
    theirs, ours = (inspect.signature(cls).parameters for cls in TORCH[name])
    listed = re.search(r"not taken: ((?:`\w+`,? ?)+)", PAGE.read_text(encoding="utf-8"))
    assert listed is not None
    missing = set(theirs) - set(ours)
    assert missing and missing <= set(re.findall(r"`(\w+)`", listed[1]))
    for option in set(theirs) & set(ours):
        assert ours[option].default == theirs[option].default, option


def test_positional_arguments_of_torch_mean_the_same_here() -> None:
    for theirs, ours in TORCH.values():
        named = [
            [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
            for cls in (theirs, ours)
        ]
        shared = min(map(len, named))
        assert named[0][:shared] == named[1][:shared]
