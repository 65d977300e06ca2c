"""The tables of a run as text, for the terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mooring.bench.results import CURVES, Results, Row
from mooring.bench.statistics import Interval

MARKS = {"yes": "✓", "no": "✗", "undecided": "?", None: ""}
GROWTH = {
    "size": "one matrix with rows of 256, of so many elements",
    "rows": "as many elements, in so many rows",
    "tensors": "as many elements, in so many tensors",
    "threads": "64 matrices, on so many threads",
}


@dataclass(frozen=True)
class Table:
    """Text in columns.

    Attributes:
        title: what it is of.
        heads: of the columns.
        rows: of cells.
        words: how many columns from the left hold words; the others hold numbers.
    """

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int = 1


def tables(results: Results) -> list[Table]:
    """All tables of a run that have rows."""
    found = [*_steps(results), _launches(results), _between(results), _perturbations(results), *_growth(results)]
    return [table for table in found if table.rows]


def markdown(table: Table) -> str:
    """A table under its title."""
    lines = [
        f"| {' | '.join(table.heads)} |",
        f"|{'|'.join('---' if i < table.words else '---:' for i in range(len(table.heads)))}|",
    ]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table.rows]
    return f"**{table.title}**\n\n" + "\n".join(lines)


def about(results: Results) -> list[str]:
    """Lines on what it ran on and what was left out."""
    a = results.about
    packages = a["packages"]
    theirs = "".join(f", {name} {number}" for name, number in a["implementations"].items())
    lines = [
        f"{a['processor']}, {a['cores']} cores, {a['vector']}; {a['device']}, {a['threads']} threads; "
        f"mooring {a['mooring']}, torch {packages['torch']}{theirs}; {a['date']}.",
        f"{a['pairs']} pairs per row; a copy moves {a['copy_bytes_per_second'] / 1e9:.1f} GB/s, read and written, and "
        f"a sum reads {a['read_bytes_per_second'] / 1e9:.1f} GB/s.",
    ]
    if a["quick"]:
        lines.append("A quick look: too few pairs and too small a net to judge by.")
    if results.interrupted:
        lines.append("Interrupted: what follows is what was finished.")
    return lines + [f"Left out: {what}." for what in results.left_out]


def _steps(results: Results) -> Iterator[Table]:
    heads = (
        "method", "served by", "× fused AdamW", "target", "met", "ms", "bytes/element", "of copy", "extra/element",
    )  # fmt: skip
    for name, size in results.models.items():
        rows = [_step(row, size.elements) for row in results.rows if row.shapes == name]
        yield Table(str(size), heads, rows, words=2)


def _step(row: Row, elements: int) -> tuple[str, ...]:
    by = row.backend or row.package
    if row.status != "timed":
        return (row.method, by, f"{row.status}: {row.why}", *[""] * 6)
    return (
        row.method,
        by,
        str(row.ratio),
        _number(row.target),
        MARKS[row.met],
        _number(None if row.seconds is None else 1e3 * row.seconds),
        _number(row.declared),
        "" if row.bandwidth is None else f"{row.bandwidth:.0%}",
        "" if row.temporaries is None else f"{row.temporaries / elements:.2f}",
    )


def _launches(results: Results) -> Table:
    heads = ("method", "served by", "µs per step", "× fused AdamW", "ns per tensor", "× fused AdamW")
    rows: list[tuple[str, ...]] = [
        (
            found.method,
            found.backend or found.method.split(".")[0],
            _number(1e6 * found.step),
            str(found.step_ratio),
            _number(1e9 * found.per_tensor),
            str(found.tensor_ratio),
        )
        for found in results.launches
    ]
    many = f"{results.about['launch_tensors']:,}"
    return Table(f"Launch: a step of one element, and of {many} tensors of one element", heads, rows, words=2)


def _between(results: Results) -> Table:
    heads = ("method", "served by", "× fused AdamW there", "× itself alone", "ms")
    rows: list[tuple[str, ...]] = [
        (
            found.method,
            found.backend or found.method.split(".")[0],
            str(found.ratio),
            str(found.alone),
            _number(1e3 * found.seconds),
        )
        for found in results.between
    ]
    title = results.models[results.between[0].shapes].title if rows else ""
    return Table(f"A step right after a matrix product, {title}", heads, rows, words=2)


def _perturbations(results: Results) -> Table:
    heads = ("what", "against", "served by", "times", "ms")
    rows: list[tuple[str, ...]] = [
        (
            found.what,
            found.against,
            found.backend,
            f"failed: {found.why}" if found.ratio is None else str(found.ratio),
            _number(None if found.seconds is None else 1e3 * found.seconds),
        )
        for found in results.perturbations
    ]
    title = results.models[results.perturbations[0].shapes].title if rows else ""
    return Table(f"Moved weights beside their passes, {title}", heads, rows, words=3)


def _growth(results: Results) -> Iterator[Table]:
    for curve in CURVES:
        points = [point for point in results.points if point.curve == curve]
        places = sorted({point.x for point in points})
        series = dict.fromkeys((point.method, point.backend) for point in points)
        known: dict[tuple[str, str, int], Interval] = {(p.method, p.backend, p.x): p.ratio for p in points}
        rows = [
            (method, backend, *(_short(known.get((method, backend, x))) for x in places)) for method, backend in series
        ]
        heads = ("method", "served by", *(f"{x:,}" for x in places))
        yield Table(f"Growth, times fused AdamW: {GROWTH[curve]}", heads, rows, words=2)


def _short(ratio: Interval | None) -> str:
    return "" if ratio is None else f"{ratio.median:.3g}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def summary(rows: Sequence[Row]) -> str:
    """How many targets are met, in one line."""
    asked = [row for row in rows if row.met is not None]
    counts = {verdict: sum(row.met == verdict for row in asked) for verdict in ("yes", "no", "undecided")}
    failed = sum(row.status == "failed" for row in rows)
    text = f"Targets: {counts['yes']} met, {counts['no']} missed, {counts['undecided']} undecided of {len(asked)}"
    return text + (f"; {failed} rows failed their verification and were not timed" if failed else "")
