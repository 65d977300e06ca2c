"""Every printed number of the tables of results, computed again from ``results.csv`` with scipy and nothing of ours."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import median

import numpy as np
from scipy import stats

from .page import PrintedCell

COLUMNS = {
    "ID %": "id/accuracy",
    "OOD %": "ood/accuracy",
    "Retention %": "retention/accuracy",
    "Drift": "drift/l2",
    "Time/step": "time/step_s",
}


def key_of(head: str) -> str:
    """The column of results.csv behind a table's head."""
    return COLUMNS.get(head) or f"ood.{head.removesuffix(' %').lower().replace(' ', '_')}/accuracy"


def read_results(path: Path) -> dict[str, dict[int, dict[str, str]]]:
    """Method → seed → row."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["method"], {})[int(row["seed"])] = row
    return found


def printed(value: float, key: str, *, signed: bool = False) -> str:
    """A number as the report prints it."""
    text = f"{100 * abs(value):.1f}" if key.endswith("accuracy") else f"{abs(value):.2f}"
    if not signed or not re.search("[1-9]", text):
        return text if value >= 0 or not re.search("[1-9]", text) else "-" + text
    return ("+" if value > 0 else "−") + text


def milliseconds(value: float) -> str:
    ms = 1000 * value
    return f"{ms:.{2 if ms < 10 else 1 if ms < 100 else 0}f} ms"


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """By its definition: reject in order as long as p <= alpha / (m - rank); the adjusted p is where it stops."""
    found = {}
    for name, p in p_values.items():
        smaller = [q for q in p_values.values() if q <= p]
        found[name] = max(
            min(1.0, (len(p_values) - sum(r < q for r in p_values.values())) * q) for q in smaller
        )  # fmt: skip
    return found


def check_table(table: dict[str, dict[str, PrintedCell]], results: Path, baseline: str) -> int:
    """Compare every cell with what results.csv says; the number of numbers compared."""
    rows = read_results(results)
    methods = [method for method in rows if method != "zero-shot"]
    assert set(table) == set(rows)
    compared = 0
    for head in next(iter(table.values())):
        key = key_of(head)
        values = {
            method: {seed: float(row[key]) for seed, row in by_seed.items() if row.get(key)}
            for method, by_seed in rows.items()
        }
        if key == "time/step_s":
            for method in methods:
                cell = table[method][head]
                middle = median(values[method].values())
                assert cell.mean == milliseconds(middle)
                assert cell.difference == f"×{middle / median(values[baseline].values()):.2f}"
                compared += 2
            continue
        resolved = check_differences(table, head, key, values, methods, baseline)
        for method, by_seed in values.items():
            cell = table[method][head]
            assert cell.mean == printed(float(np.mean(list(by_seed.values()))), key), (method, head)
            expected = resolved.get(method, "")
            assert cell.tone == expected and cell.arrow == ({"": ""}.get(expected) or _arrow(cell)), (method, head)
            compared += 1 + 3 * bool(cell.difference)
    return compared


def _arrow(cell: PrintedCell) -> str:
    if not cell.tone:
        return ""
    return {"+": "▲", "−": "▼"}.get(cell.difference[0], "")


def check_differences(
    table: dict[str, dict[str, PrintedCell]],
    head: str,
    key: str,
    values: dict[str, dict[int, float]],
    methods: list[str],
    baseline: str,
) -> dict[str, str]:
    """Check differences and intervals; return what each resolved difference must be marked as."""
    p_values, tones = {}, {}
    for method in methods:
        cell = table[method][head]
        seeds = sorted(set(values[method]) & set(values[baseline]))
        if method == baseline or not seeds:
            assert cell.difference == cell.interval == ""
            continue
        ours = np.array([values[method][seed] for seed in seeds])
        theirs = np.array([values[baseline][seed] for seed in seeds])
        difference = ours - theirs
        assert cell.difference == printed(float(difference.mean()), key, signed=True), (method, head)
        low = high = float(difference.mean())
        if len(seeds) > 1 and difference.std() > 0:
            assert len(seeds) < 20, "intervals from 20 seeds on are bootstrapped"
            interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
            low, high = float(interval.low), float(interval.high)
        if len(seeds) > 1:
            assert cell.interval == f"[{printed(low, key, signed=True)}, {printed(high, key, signed=True)}]"
        if len(seeds) > 1 and difference.any():
            p_values[method] = float(
                stats.permutation_test(
                    (ours, theirs),
                    lambda x, y, axis: np.mean(x - y, axis=axis),
                    permutation_type="samples",
                    vectorized=True,
                    n_resamples=np.inf,
                ).pvalue
            )
        else:
            p_values[method] = 1.0
        tones[method] = "" if low <= 0 <= high else _tone(float(difference.mean()), key)
    adjusted = holm(p_values)
    return {method: tone if adjusted[method] <= 0.05 else "" for method, tone in tones.items()}


def _tone(difference: float, key: str) -> str:
    if key == "drift/l2":
        return "different"
    return "better" if difference > 0 else "worse"
