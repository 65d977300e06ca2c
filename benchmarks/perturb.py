"""What NSO costs beside its passes: verify, then measure, in one run and as ratios.

    python benchmarks/perturb.py

First on a small batch in float64: the gradient is that of two plain loops at W + U and W - U, the weights come back to
the bit, and the running statistics are those of one clean forward pass. Then, on a ResNet-18 in train mode,
everything `for pass_ in nso.passes(): with pass_: ...` and `nso.step()` do beside forward, backward and the base's own
step, as a share of forward and backward. Medians over the steps. `mooring bench` times the same without a model,
against a step and against torch's own sampling.

On a busy machine waiting would be counted as work: `--cpu-time` takes one thread and its processor time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mooring as mo
from mooring.kernels import random
from mooring.perturb.frame import Pass
from mooring.perturb.noise import draw
from mooring.perturb.weights import Member

SIGMA = 0.01


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != out:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Sequential):
    """He et al., CVPR 2016: 11 689 512 parameters in 62 tensors."""

    def __init__(self, classes: int = 1000) -> None:
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        widths = [64, 128, 256, 512]
        blocks = [
            Block(a if i == 0 else b, b, 2 if i == 0 and a != b else 1)
            for a, b in zip([64, *widths], widths)
            for i in range(2)
        ]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def verify() -> None:
    """Raise AssertionError where what is to be measured is not what it should be."""
    assert sum(p.numel() for p in ResNet18().parameters()) == 11_689_512
    assert len(list(ResNet18().parameters())) == 62
    torch.manual_seed(0)
    net = ResNet18(10).double()
    x, y = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.arange(4)
    nso = mo.NSO(torch.optim.SGD(net.parameters(), lr=0.0), sigma=SIGMA, model=net)
    weights = [p.detach().clone() for p in net.parameters()]
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    for pass_ in nso.passes():
        with pass_:
            pass_.backward(F.cross_entropy(net(x), y))
    assert all(torch.equal(p.detach(), w) for p, w in zip(net.parameters(), weights))
    after = {name: b.clone() for name, b in net.named_buffers()}
    net.load_state_dict(buffers, strict=False)
    with torch.no_grad():
        net(x)
    assert all(torch.equal(b, after[name]) for name, b in net.named_buffers())

    mean = [torch.zeros_like(w) for w in weights]
    for sign in (1, -1):
        moved = {}
        for i, ((name, p), w) in enumerate(zip(net.named_parameters(), weights)):
            u = draw(Member(p, {}, str(i)), "normal", random.key("nso", 0, 0, 0, 0, str(i)))
            moved[name] = (w + sign * SIGMA * u).requires_grad_()
        moved |= {name: b.clone() for name, b in buffers.items()}
        loss = F.cross_entropy(torch.func.functional_call(net, moved, x), y)
        for m, g in zip(mean, torch.autograd.grad(loss, [v for v in moved.values() if v.requires_grad])):
            m += g / 2
    for p, m in zip(net.parameters(), mean):
        torch.testing.assert_close(p.grad, m, rtol=1e-9, atol=1e-12)


clock = time.perf_counter


def seconds(what: Callable[[], object]) -> float:
    start = clock()
    what()
    return clock() - start


def measure_frame(size: int, batch: int, steps: int) -> None:
    net = ResNet18()
    x, y = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    base = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    nso = mo.NSO(base, sigma=SIGMA, model=net)
    inside, bases = 0.0, 0.0

    def forward_backward(pass_: Pass) -> None:
        pass_.backward(F.cross_entropy(net(x), y))

    base_step = base.step

    def timed_base_step() -> None:
        nonlocal bases
        bases += seconds(base_step)

    base.step = timed_base_step  # type: ignore[method-assign]

    def step() -> None:
        nonlocal inside
        nso.zero_grad()
        for pass_ in nso.passes():
            with pass_:
                inside += seconds(lambda pass_=pass_: forward_backward(pass_))
        nso.step()

    step()
    frames, passes = [], []
    for _ in range(steps):
        inside = bases = 0.0
        total = seconds(step)
        frames.append(total - inside - bases)
        passes.append(inside)
    frame, model = statistics.median(frames), statistics.median(passes)
    print(
        f"frame    {size} x {size}, batch {batch}: {frame * 1e3:.1f} ms beside {model * 1e3:.0f} ms of passes: "
        f"{frame / model:.2%} (from {min(frames) / model:.2%} to {max(frames) / model:.2%} over {steps} steps)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--size", type=int, nargs="+", default=[224, 64], help="sides of the images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the process, one thread: for a busy machine"
    )
    arguments = parser.parse_args()
    if arguments.cpu_time:
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    verify()
    print("verified: gradient, weights and running statistics")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load before {os.getloadavg()[0]:.2f}")
    torch.manual_seed(0)
    for size in arguments.size:
        measure_frame(size, arguments.batch, arguments.steps)


if __name__ == "__main__":
    main()
