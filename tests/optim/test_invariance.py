"""What must not matter: threads, the order of parameters, how they are split into groups, the number of batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.optim.table import ROWS, OptimizerRow, every_row

SHAPES = [(300, 1000), (64, 3, 7, 7), (4096,), (5000, 7), (), (1, 4097), (33, 129)]


def run(
    row: OptimizerRow,
    order: list[int],
    cuts: list[int],
    dtype: torch.dtype = torch.float32,
    steps: int = 4,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
) -> list[Tensor]:
    """The weights after a few steps, in the order of the shapes; `order` and `cuts` say how they are handed over."""
    generator = torch.Generator().manual_seed(12)

    def draw() -> list[Tensor]:
        return [torch.randn(s, generator=generator, dtype=torch.float32).to(dtype) for s in shapes]

    params = [nn.Parameter(x) for x in draw()]
    handed = [params[i] for i in order]
    edges = [0, *cuts, len(handed)]
    variant = "momentum" if not row.adaptive else "default"
    optimizer = row.build([{"params": handed[i:j]} for i, j in pairwise(edges)], variant)
    for _ in range(steps):
        for p, g in zip(params, draw()):
            # A little of the weight itself, so that selective methods have something to select.
            p.grad = g + 0.01 * p.detach()
        optimizer.step()
    return [p.detach() for p in params]


IN_ORDER = list(range(len(SHAPES)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@every_row
def test_the_number_of_threads_changes_no_bit(row: OptimizerRow, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    one = run(row, IN_ORDER, [], dtype)
    torch.set_num_threads(4)
    four = run(row, IN_ORDER, [], dtype)
    assert all(torch.equal(x, y) for x, y in zip(one, four))


@every_row
def test_the_order_of_parameters_and_their_groups_changes_nothing(row: OptimizerRow) -> None:
    expected = run(row, IN_ORDER, [])
    for order, cuts in (
        (IN_ORDER[::-1], []),
        ([3, 0, 6, 1, 5, 2, 4], []),
        (IN_ORDER, [1, 2, 5]),
        (IN_ORDER, list(range(1, len(SHAPES)))),
        (IN_ORDER[::-1], [3]),
    ):
        for x, y in zip(run(row, order, cuts), expected):
            if row.scope == "model":
                torch.testing.assert_close(x, y, rtol=3e-7, atol=1e-7)
            else:
                assert torch.equal(x, y), (order, cuts)


@pytest.mark.parametrize("row", [r for r in ROWS if r.scope != "model"], ids=lambda r: r.name)
def test_a_parameter_alone_moves_as_it_does_in_company(row: OptimizerRow) -> None:
    """One optimizer per parameter (as in-backward trainers build) takes the same steps, bit by bit."""
    company = [(20, 30), (20, 30), (17,), (4, 3, 3, 3), (20, 30)]
    generator = torch.Generator().manual_seed(3)
    start = [torch.randn(s, generator=generator) for s in company]
    together = [nn.Parameter(x.clone()) for x in start]
    alone = [nn.Parameter(x.clone()) for x in start]
    one, many = row.build(together), [row.build([p]) for p in alone]
    for _ in range(6):
        for p, q in zip(together, alone):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        one.step()
        for optimizer in many:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(together, alone))


@every_row
def test_two_runs_have_the_same_bits(row: OptimizerRow) -> None:
    assert all(torch.equal(x, y) for x, y in zip(run(row, IN_ORDER, []), run(row, IN_ORDER, [])))


@every_row
def test_large_tensors_keep_their_digits(row: OptimizerRow) -> None:
    """3e5 elements in float32 against float64: sums over a tree of blocks must not lose digits with size."""
    shapes = [(300, 1000)]
    low = run(row, [0], [], torch.float32, 3, shapes)[0].double()
    high = run(row, [0], [], torch.float64, 3, shapes)[0]
    start = run(row, [0], [], torch.float64, 0, shapes)[0]
    assert (low - high).norm() <= 2e-5 * (high - start).norm()
