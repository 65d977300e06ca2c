"""What is measured: the keys of a trial's numbers, what they are called, and how they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MINUS = "−"
Unit = Literal["percent", "number", "nats", "seconds", "bytes", "count"]


@dataclass(frozen=True)
class Metric:
    """One number of a trial.

    Attributes:
        key: its key in ``final.json`` and column in ``results.csv``.
        title: what a sentence calls it.
        short: what a table's head calls it.
        unit: how it is written.
        better: which direction is better; None where neither is (drift is a description, not a merit).
    """

    key: str
    title: str
    short: str
    unit: Unit = "percent"
    better: Literal["higher", "lower"] | None = "higher"

    @property
    def is_cost(self) -> bool:
        """Whether it is what a method took, not what it reached: shown as a ratio to the baseline and not tested."""
        return self.unit in ("seconds", "count", "bytes")

    @property
    def name(self) -> str:
        """The title at the beginning of a sentence or a column."""
        return self.title[0].upper() + self.title[1:]

    @property
    def head(self) -> str:
        """The short title at the head of a column."""
        return self.short[0].upper() + self.short[1:]

    def show(self, value: float) -> str:
        """A value as printed in every table."""
        if not math.isfinite(value):
            return "–"
        if self.unit == "percent":
            return f"{100 * value:.1f}"
        if self.unit == "seconds":
            return f"{_three_digits(1000 * value)} ms" if value < 1 else f"{_three_digits(value)} s"
        if self.unit == "bytes":
            return _bytes(value)
        if self.unit == "nats":
            return f"{value:.4f}"  # a perplexity of 23.26 in place of 23.38 is 0.0051 nats
        return f"{value:.0f}" if self.unit == "count" else _number(value)

    def show_difference(self, value: float) -> str:
        """A signed difference; percentages differ by points."""
        text = self.show(abs(value))
        if not re.search(r"[1-9]", text):
            return text  # a difference that rounds to nothing has no sign
        return ("+" if value > 0 else MINUS) + text


ID = Metric("id/accuracy", "ID accuracy", "ID")
OOD = Metric("ood/accuracy", "OOD accuracy", "OOD")
ID_LOSS = Metric("id/nll", "ID loss in nats per token", "ID loss", unit="nats", better="lower")
OOD_LOSS = Metric("ood/nll", "OOD loss in nats per token", "OOD loss", unit="nats", better="lower")
RETENTION = Metric("retention/accuracy", "retention", "retention")
DRIFT = Metric("drift/l2", "drift", "drift", unit="number", better=None)
STEP = Metric("time/step_s", "time per step", "time/step", unit="seconds", better=None)
UPDATE = Metric("time/step_update_s", "optimizer's part of a step", "update", unit="seconds", better=None)
TRAIN_SECONDS = Metric("time/train_s", "training time", "training", unit="seconds", better=None)
STATE = Metric("memory/optimizer_state_bytes", "optimizer state", "optimizer state", unit="bytes", better=None)
PEAK = Metric("memory/peak_bytes", "peak memory", "peak memory", unit="bytes", better=None)
GRADIENTS = Metric("cost/gradient_evaluations", "gradient evaluations", "gradients", unit="count", better=None)

STEPS = Metric("steps", "steps taken", "steps", unit="count", better=None)


def shift_kinds(keys: Iterable[str]) -> list[str]:
    """The OOD kinds among the keys of a trial's numbers, in the order of the keys."""
    found = (re.fullmatch(r"ood\.([^./]+)/accuracy", key) for key in keys)
    return list(dict.fromkeys(match[1] for match in found if match))


def severities(kind: str, keys: Iterable[str]) -> list[str]:
    """The severities of one OOD kind among the keys."""
    found = (re.fullmatch(rf"ood\.{re.escape(kind)}\.([^./]+)/accuracy", key) for key in keys)
    return list(dict.fromkeys(match[1] for match in found if match))


def shift(kind: str, severity: str = "") -> Metric:
    """The accuracy under one OOD kind, over its severities or under one of them."""
    words = kind.replace("_", " ")
    if severity:
        return Metric(f"ood.{kind}.{severity}/accuracy", f"accuracy under {words} {severity}", f"{words} {severity}")
    return Metric(f"ood.{kind}/accuracy", f"accuracy on {words}", words)


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
