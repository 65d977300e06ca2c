"""What each process does in the tests of measures under FSDP2."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mooring.measure import Hessian, drift, loss_along, noise_stability
from tests.sharding.perturbed_workers import EVERYTHING, build, loss_of, mine, shard
from tests.sharding.sides import full

STEPS = (0, 1)  # two batches


def measured(model: nn.Module, which: slice, loss: Any = loss_of) -> dict[str, Any]:
    def of(net: nn.Module, step: int) -> torch.Tensor:
        value: torch.Tensor = loss(net, step, which)
        return value

    hessian = Hessian(model, of, STEPS, method="finite_difference")
    vector = [torch.ones_like(p) for p in hessian.params]
    density = hessian.density(steps=6, probes=2)
    stability = noise_stability(model, of, STEPS, [0.05], draws=3)[0]
    trace = hessian.trace(3)
    return {
        "product": [full(h).tolist() for h in hessian.product(vector)],
        "trace": [trace.value, trace.error, hessian.trace(2, sketch=2).value],
        "top": hessian.top(2, 1e-8),
        "dense": float(hessian.dense().square().sum()),
        "density": [density.trace_of(lambda x, k=k: x**k).value for k in (1, 2, 3)],
        "blocks": [value for b in hessian.blocks(2, top=True, tolerance=1e-8) for value in (b.trace.value, b.top)],
        "stability": [stability.rise.value, stability.rise.error],
        "slices": [loss_along(model, of, STEPS, d, points=3).losses for d in ("random", "filter", "gradient")],
    }


def everything() -> dict[str, Any]:
    """One process with the batch of all, and two that hold half of it each."""
    single, model = build(False), shard(build(False))
    start = {n: p.detach().clone() for n, p in single.named_parameters()}
    anchor = {n: p + 0.1 * torch.arange(p.numel()).reshape(p.shape) for n, p in start.items()}
    one = measured(single, EVERYTHING)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with torch.no_grad():
        value = float(loss_of(model, 0, mine()))
    ours = measured(model, mine())
    kept = all(torch.equal(full(p.detach()), start[n]) for n, p in model.named_parameters())
    kept = kept and all(bool((full(p.grad) == 1).all()) for p in model.parameters())

    def fails(net: nn.Module, step: int, which: slice) -> torch.Tensor:
        fails.calls += 1  # type: ignore[attr-defined]
        if fails.calls == 4:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return loss_of(net, step, which)

    fails.calls = 0  # type: ignore[attr-defined]
    restored = False
    try:
        measured(model, mine(), fails)
    except KeyboardInterrupt:
        restored = all(torch.equal(full(p.detach()), start[n]) for n, p in model.named_parameters())
        with torch.no_grad():
            restored = restored and float(loss_of(model, 0, mine())) == value
    try:
        Hessian(model, lambda m, b: loss_of(m, b, mine()), STEPS, method="double_backward")
        said = ""
    except ValueError as error:
        said = str(error)
    dist.barrier()
    drifts = [
        [[row.distance, row.relative, row.angle] for row in (*found.layers, found.total)]
        for found in (drift(single, anchor), drift(model, anchor))
    ]
    auto = Hessian(model, lambda m, b: loss_of(m, b, mine()), STEPS).method
    return {"one": one, "ours": ours, "kept": kept, "restored": restored, "said": said, "drifts": drifts, "auto": auto}
