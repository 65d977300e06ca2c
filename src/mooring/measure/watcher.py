"""Telemetry collected over a training."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mooring.measure.loggers import own

# Metrics whose spread over tensors the picture shows.
_SPREAD = ("step/effective",)


class Watch:
    """What :func:`watch` returns.

    Attributes:
        label: the optimizer's name in pictures.
        history: name -> one value per recorded step; NaN where a step had none. ``step`` is the number of the step
            since watching began, ``model/step/effective/low`` and ``/high`` are the 10th and 90th percentile over
            tensors.
    """

    def __init__(self, optimizer: Any, every: int, drift: bool, label: str | None) -> None:
        self._optimizer = own(optimizer)
        base = getattr(self._optimizer, "base", None)
        name = type(self._optimizer).__name__
        self.label = label or (name if base is None else f"{type(base).__name__} with rules")
        self.history: dict[str, list[float]] = {"step": []}
        self._optimizer.record(every, drift=drift)
        self._hook = self._optimizer.register_step_post_hook(self._take)

    def _take(self, *_: Any) -> None:
        if not self._optimizer.recorded:
            return
        values = self._optimizer.telemetry(per_tensor=True)
        rows = {name: v for name, v in values.items() if name.count("/") == 2}
        for metric in _SPREAD:
            each = sorted(v for name, v in values.items() if name.count("/") > 2 and _metric(name) == metric)
            if each:
                rows[f"model/{metric}/low"] = each[round(0.1 * (len(each) - 1))]
                rows[f"model/{metric}/high"] = each[round(0.9 * (len(each) - 1))]
        before = len(self.history["step"])
        rows["step"] = rows.pop("model/step/number")
        for name in {**self.history, **rows}:
            self.history.setdefault(name, [math.nan] * before).append(rows.get(name, math.nan))

    def close(self) -> None:
        """Stop watching and recording; the history stays."""
        self._hook.remove()
        self._optimizer.record(None)

    def to_csv(self, path: str | Path) -> None:
        """Write the history, one line per recorded step; an empty field where a step had no value."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.history)
            for row in zip(*self.history.values()):
                writer.writerow("" if math.isnan(v) else f"{v:.10g}" for v in row)

    def save(self, path: str | Path, others: Sequence[Watch] = (), *, width: float = 8.0) -> None:
        """Draw effective steps, drift, what the rules did, and weight norms over training.

        Args:
            path: a file whose ending matplotlib knows: .png, .pdf, .svg.
            others: more watches for the same axes, such as another optimizer's.
            width: inches; below 6 the four panels stand below each other.

        Raises:
            ModuleNotFoundError: without matplotlib; ``pip install "mooring[plot]"`` brings it.
            ValueError: if nothing was recorded.
        """
        try:
            from mooring.measure.picture import draw
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('Watch.save draws with matplotlib: pip install "mooring[plot]"') from error
        empty = [w.label for w in (self, *others) if not w.history["step"]]
        if empty:
            raise ValueError(f"nothing was recorded of {', '.join(empty)}: call save after steps were taken")
        draw([(w.label, w.history) for w in (self, *others)], Path(path), width)


def watch(optimizer: Any, every: int = 10, *, drift: bool = True, label: str | None = None) -> Watch:
    """Collect an optimizer's telemetry over training, for :meth:`Watch.save`.

    Starts ``optimizer.record(every, drift=drift)`` and fetches each recorded step after it was taken: one transfer from
    the device, which waits for it, per recorded step. In a sharded training every process calls it.

    Args:
        optimizer: of this library, or a trainer's wrapper around one.
        every: distance of recorded steps.
        drift: also measure how far tensors without an anchor move from where they are now; keeps a copy of them.
        label: its name in pictures; None takes the class's.

    Raises:
        TypeError: for an optimizer without telemetry; ``mooring.wrap`` gives any torch optimizer one.
        ValueError: for ``every`` below 1.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.AdamSPD(model.parameters(), lr=1e-2)
        >>> w = mo.watch(opt, every=2)
        >>> for _ in range(5):
        ...     model(torch.ones(3, 4)).sum().backward()
        ...     opt.step()
        >>> w.history["step"]
        [1.0, 3.0, 5.0]
    """
    return Watch(optimizer, every, drift, label)


def _metric(name: str) -> str:
    return "/".join(name.split("/")[1:3])
