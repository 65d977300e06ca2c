"""Seconds of two things in turn, and the bandwidth of a copy and of reading."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Act = Callable[[], object]
_SAMPLE = 2e-3
"""Seconds that one sample lasts at least, so that the clock's own do not count."""
_MOST = 1000


@dataclass(frozen=True)
class Pairs:
    """Seconds per call of a candidate and of the baseline that ran beside it."""

    candidate: tuple[float, ...]
    baseline: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Candidate over baseline, pair by pair."""
        return [a / b for a, b in zip(self.candidate, self.baseline, strict=True)]


class Clock:
    """Times calls on a device, waiting for it before and after."""

    def __init__(self, device: torch.device) -> None:
        self.wait: Act = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)

    def seconds(self, act: Act, calls: int = 1, before: Act | None = None) -> float:
        """Of one call, over so many; ``before`` runs before each and is not counted."""
        if before is not None:
            spent = 0.0
            for _ in range(calls):
                before()
                spent += self.seconds(act)
            return spent / calls
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            act()
        self.wait()
        return (time.perf_counter() - start) / calls

    def calls(self, act: Act) -> int:
        """How many calls make a sample that is long enough; warms up."""
        act()
        once = min(self.seconds(act) for _ in range(2))
        return max(1, min(_MOST, round(_SAMPLE / max(once, 1e-9) + 0.5)))

    def pairs(
        self,
        candidate: Act,
        baseline: Act,
        count: int,
        *,
        seed: int,
        tell: Callable[[int], None],
        before: tuple[Act | None, Act | None] = (None, None),
    ) -> Pairs:
        """Time both ``count`` times, one right after the other, half of the pairs in either order, at random.

        What drifts (frequency, neighbours) then strikes both alike, and a ratio is of two moments that are close.
        ``before`` is what runs, uncounted, before each call of either.
        """
        acts = (candidate, baseline)
        calls = [self.calls(act) for act in acts]
        orders = [(0, 1) if i % 2 else (1, 0) for i in range(count)]
        random.Random(seed).shuffle(orders)
        found: list[tuple[float, float]] = []
        for done, order in enumerate(orders):
            spent = [0.0, 0.0]
            for which in order:
                spent[which] = self.seconds(acts[which], calls[which], before[which])
            found.append((spent[0], spent[1]))
            tell(done + 1)
        return Pairs(tuple(a for a, _ in found), tuple(b for _, b in found))

    def copy_bandwidth(self, device: torch.device, size: int, repeats: int = 11) -> float:
        """Bytes per second, read and written, of torch's copy of a buffer of ``size`` bytes; the median."""
        source = torch.ones(size // 4, device=device)
        target = torch.empty_like(source)
        target.copy_(source)
        seconds = [self.seconds(lambda: target.copy_(source)) for _ in range(repeats)]
        return 2 * 4 * source.numel() / statistics.median(seconds)

    def read_bandwidth(self, device: torch.device, size: int, repeats: int = 11) -> float:
        """Bytes per second that torch's sum of a buffer of ``size`` bytes reads; the median."""
        source = torch.ones(size // 4, device=device)
        source.sum()
        seconds = [self.seconds(lambda: source.sum()) for _ in range(repeats)]
        return 4 * source.numel() / statistics.median(seconds)
