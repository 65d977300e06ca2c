"""Momentum inflates the norm of a scale-invariant weight and slows it down; projection prevents it.

f(w) = (1 - cos(w, w*))² with w* = (0, -1), from nearly the opposite direction, learning rate 0.01, 499 updates, no
decay. A larger weight turns by a smaller angle, so momentum, which is meant to be faster, ends at a higher loss from a
certain size on. The published figures are printed with two and four digits, and nothing here is random: they are met
where ours round to them.
"""

from typing import Any

import torch
from torch import nn

import mooring as mo
from mooring.reproduce import Check, Outcome, Run
from mooring.reproduce.picture import COLOURS, panels

STEPS, LR = 499, 0.01
PUBLISHED = {  # optimizer, momentum → loss, norm
    ("SGD", 0.0): (0.0086, 1.02),
    ("SGD", 0.9): (0.0018, 2.93),
    ("SGD", 0.95): (0.0043, 5.67),
    ("SGD", 0.99): (0.0153, 27.87),
    ("SGDP", 0.9): (0.0, 1.12),
    ("SGDP", 0.95): (0.0, 1.14),
    ("SGDP", 0.99): (0.0, 1.15),
}


def path(optimizer: str, momentum: float) -> list[dict[str, Any]]:
    """Loss, norm and position after every update."""
    target = torch.tensor([[0.0, -1.0]], dtype=torch.float64)
    start = torch.tensor([[1e-3, 1.0]], dtype=torch.float64)
    w = nn.Parameter(start / start.norm())
    # A 1 x 2 tensor: one row, the shape that projection looks at.
    descent = getattr(mo, optimizer)([w], lr=LR, momentum=momentum)
    rows = []
    for step in range(STEPS + 1):
        loss = (1 - torch.cosine_similarity(w, target).sum()) ** 2
        x, y = w.detach()[0].tolist()
        rows.append({"optimizer": optimizer, "momentum": momentum, "step": step, "x": x, "y": y,
                     "loss": loss.item(), "norm": w.detach().norm().item()})  # fmt: skip
        descent.zero_grad()
        loss.backward()
        descent.step()
    return rows


def run(run: Run) -> Outcome:
    """All seven paths of the paper's figure."""
    paths = {key: path(*key) for key in run.track(PUBLISHED, "descending")}
    checks = []
    for (optimizer, momentum), (loss, norm) in PUBLISHED.items():
        last = paths[optimizer, momentum][-1]
        checks += [
            Check.rounded(f"{optimizer}, momentum {momentum}: final loss", last["loss"], loss, digits=4),
            Check.rounded(f"{optimizer}, momentum {momentum}: final norm", last["norm"], norm, digits=2),
        ]
    picture, (plane, norms, losses) = panels(3)
    for colour, ((optimizer, momentum), rows) in zip(COLOURS, paths.items()):
        look: dict[str, Any] = {"color": colour, "linestyle": "-" if optimizer == "SGD" else "--"}
        label = f"{optimizer} {momentum:g}"
        plane.plot([r["x"] for r in rows], [r["y"] for r in rows], label=label, **look)
        norms.plot([r["step"] for r in rows], [r["norm"] for r in rows], label=label, **look)
        losses.plot([r["step"] for r in rows], [max(r["loss"], 1e-9) for r in rows], **look)
    plane.set(title="the path of w", xlabel="w₁", ylabel="w₂", xlim=(-0.2, 3), ylim=(-1.6, 1.3))
    norms.set(title="‖w‖", xlabel="update", yscale="log")
    losses.set(title="loss", xlabel="update", yscale="log", ylim=(1e-7, 6))
    picture.legend(*norms.get_legend_handles_labels(), loc="outside right center", frameon=False, title="momentum")
    return Outcome(checks, {"paths": [row for rows in paths.values() for row in rows[::10] + rows[-1:]]}, picture)
