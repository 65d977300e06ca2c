"""What ``mooring bench`` was asked for, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mooring.compare.environment import usable_cores
from mooring.finetune.errors import SpecError

PAIRS, QUICK_PAIRS = 31, 7
FEWEST = 6
GIB = 1 << 30


@dataclass(frozen=True)
class Request:
    """The options of the command.

    Attributes:
        methods: as typed; None for all.
        shapes: as typed; None for the four models.
        backend: as typed; None for the one that serves when nobody chooses.
        pairs: of interleaved samples per row.
        threads: torch's; None leaves them.
        memory: gibibytes that may be taken; None for 7, or four fifths of what is free where that is less.
        device: where it runs.
        growth: also curves over size, rows, tensors and threads.
        quick: a small net, few rows and pairs.
        seed: of the order of the pairs.
        output_dir: where to write.
        page: a Markdown file whose part between the marks is replaced by the results.
    """

    methods: str | None = None
    shapes: str | None = None
    backend: str | None = None
    pairs: int | None = None
    threads: int | None = None
    memory: float | None = None
    device: str = "cpu"
    growth: bool = False
    quick: bool = False
    seed: int = 0
    output_dir: Path | None = None
    page: Path | None = None

    def __post_init__(self) -> None:
        if self.pairs is not None and self.pairs < FEWEST:
            raise SpecError(f"--pairs must be at least {FEWEST}, the fewest that have an interval, got {self.pairs}")
        if self.threads is not None and not 1 <= self.threads <= usable_cores():
            raise SpecError(f"--threads must be from 1 to {usable_cores()}, the usable cores, got {self.threads}")
        if self.memory is not None and not 0 < self.memory < float("inf"):
            raise SpecError(f"--memory must be a number of gibibytes > 0, got {self.memory!r}")
        if self.page is not None and not self.page.is_file():
            raise SpecError(f"--page must name a file that is there, got {str(self.page)!r}")

    @property
    def count(self) -> int:
        """Pairs per row."""
        return self.pairs or (QUICK_PAIRS if self.quick else PAIRS)
