"""Memory layout is not mathematics: every layout takes the same step as a contiguous tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.optim.table import OptimizerRow, every_row


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def transposed(x: Tensor) -> Tensor:
    """Same values, strides of another order of dimensions."""
    order = list(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def strided(x: Tensor) -> Tensor:
    """Every second element of a larger storage."""
    room = torch.zeros(*x.shape, 2, dtype=x.dtype)
    room[..., 0] = x
    return room[..., 0]


def expanded(x: Tensor) -> Tensor:
    """As `.sum()` makes gradients: one number seen everywhere."""
    return x.flatten()[:1].clone().view((1,) * x.dim()).expand(x.shape)


def spread(x: Tensor) -> Tensor:
    """What `expanded` shows, in a storage of its own."""
    return expanded(x).contiguous()


LAYOUTS = [contiguous, channels_last, transposed, strided]


def run(row: OptimizerRow, variant: str, of_weight: Callable[[Tensor], Tensor], of_grad: Callable[[Tensor], Tensor],
        dtype: torch.dtype) -> Tensor:  # fmt: skip
    generator = torch.Generator().manual_seed(8)
    start = torch.randn(6, 4, 3, 5, generator=generator, dtype=torch.float64).to(dtype)
    p = nn.Parameter(of_weight(start))
    optimizer = row.build([p], variant)
    strides = p.stride()
    for _ in range(6):
        g = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(dtype)
        p.grad = of_grad(g)
        optimizer.step()
    assert p.stride() == strides
    return p.detach().contiguous()


# Every pair of layouts in float64; in the narrower types, which take other paths through the casts, one gradient each.
@pytest.mark.parametrize(
    ("of_weight", "of_grad", "dtype"),
    [
        *[(w, g, torch.float64) for w in LAYOUTS for g in [*LAYOUTS, expanded]],
        *[(w, w, dtype) for w in LAYOUTS for dtype in (torch.float32, torch.bfloat16)],
    ],
)
@every_row
def test_layouts_agree(
    row: OptimizerRow,
    of_weight: Callable[[Tensor], Tensor],
    of_grad: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    variant = "delta .5" if "delta .5" in row.variants else "default"
    plain_grad = spread if of_grad is expanded else contiguous
    expected = run(row, variant, contiguous, plain_grad, dtype)
    got = run(row, variant, of_weight, of_grad, dtype)
    # The order in which a row is summed may differ; nothing else may.
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@every_row
def test_the_net_may_turn_channels_last_in_mid_training(row: OptimizerRow) -> None:
    def trained(turn: bool) -> Tensor:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)).double()
        optimizer = row.build(net.parameters())
        x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
        for t in range(6):
            if turn and t == 3:
                net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                x = x.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        return torch.cat([p.detach().contiguous().flatten() for p in net.parameters()])

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (1, 1), (1, 7), (7, 1), (2, 0, 3)], ids=str)
@every_row
def test_every_shape_takes_its_steps(row: OptimizerRow, shape: tuple[int, ...]) -> None:
    p = nn.Parameter(torch.full(shape, 0.5))
    other = nn.Parameter(torch.ones(3, 3))
    optimizer = row.build([p, other])
    reference = row.reference([{**row.hyper(), "params": [p, other]}])
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        for q in (p, other):
            q.grad = torch.randn(q.shape, generator=generator)
        optimizer.step()
        reference.step([[p.grad, other.grad]])
    for q, expected in zip((p, other), reference.groups[0]["params"]):
        torch.testing.assert_close(q.detach().double(), expected, rtol=1e-5, atol=1e-6)
