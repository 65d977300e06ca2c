"""From the measurements of a recorded step to named numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mooring.step.record import Table


def summarise(
    tables: Sequence[Table],
    counts: Mapping[str, float],
    groups: Sequence[Mapping[str, Any]],
    step: int,
    per_tensor: bool,
) -> dict[str, float]:
    """``group/rule/metric`` of every group and of the model, and ``group/rule/metric/parameter`` if asked for.

    Args:
        tables: on the host.
        counts: counters by ``rule/metric``, of the model.
        groups: the optimizer's groups as they are now.
        step: the number of the recorded step.
        per_tensor: whether single tensors are named.
    """
    out = {f"model/{name}": value for name, value in counts.items()}
    measured = _by_position(tables)
    if not measured:
        return out
    out["model/step/number"] = float(step)
    out["model/step/tensors"] = float(len(measured))
    out.update(_named("model", measured.values()))
    position = 0
    for title, group in zip(group_names(groups), groups):
        members = []
        for i in range(len(group["params"])):
            position += 1
            if position in measured:
                members.append((_tensor_name(group, i), measured[position]))
        out.update(_named(title, [m for _, m in members]))
        for name, values in members if per_tensor else ():
            out.update({f"{key}/{name}": value for key, value in _named(title, [values]).items()})
    return out


def group_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """A group's ``name`` with anything but letters, digits, dots and dashes as ``_``; ``group0`` where it has none."""
    names: list[str] = []
    for i, group in enumerate(groups):
        given = group.get("name")
        name = re.sub(r"[^\w.-]+", "_", given) if isinstance(given, str) and given else f"group{i}"
        names.append(f"{name}_{i}" if name in (*names, "model") else name)
    return names


def _tensor_name(group: Mapping[str, Any], i: int) -> str:
    names = group.get("param_names")
    return str(names[i]) if names else f"tensor{i}"


def _by_position(tables: Sequence[Table]) -> dict[int, dict[str, float]]:
    out: dict[int, dict[str, float]] = {}
    for table in tables:
        for position, numel, values in zip(table.positions, table.numels, table.values.T.tolist()):
            out.setdefault(position, {"numel": float(numel)}).update(zip(table.names, values))
    return out


def _named(title: str, tensors: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of a set of tensors: norms add up in squares, everything else is a mean over tensors."""
    members = list(tensors)

    def total(name: str) -> float | None:
        values = [m[name] for m in members if name in m]
        return math.fsum(values) if values else None

    out: dict[str, float | None] = {
        "weights/norm": _root(total("qq")),
        "weights/cosine": _mean(_cosine(m) for m in members),
        "gradient/norm": _root(total("gg")),
        "step/norm": _root(total("ss")),
        "step/effective": _mean(effective_step(m["pp"], m["ps"], m["ss"], m["qq"]) for m in members),
        "step/moved": _ratio(total("nn"), total("numel")),
        "drift/distance": _root(total("rr")),
        "drift/relative": _ratio(_root(total("rr")), _root(total("aa"))),
    }
    for name in dict.fromkeys(name for m in members for name in m if "/" in name):
        out[name] = _mean(m.get(name) for m in members)
    return {f"{title}/{name}": value for name, value in out.items() if value is not None}


def effective_step(pp: float, ps: float, ss: float, qq: float) -> float | None:
    """The distance of the directions before and after, ``‖q/‖q‖ − p/‖p‖‖``, ``q = p − s``; None without a direction.

    With the angle φ between p and q, ``sin²φ = (<p,p><s,s> − <p,s>²) / (<p,p><q,q>)``, and the distance is
    ``2 sin(φ/2)``, so ``sin φ · √(2 / (1 + cos φ))`` where cos φ > 0. No two nearly equal numbers are subtracted unless
    s is nearly parallel to p, where the distance is small beside ``‖s‖/‖p‖``.

    Args:
        pp: <p, p>.
        ps: <p, s>.
        ss: <s, s>.
        qq: <q, q>.
    """
    if not (0 < pp < math.inf and 0 < qq < math.inf):
        return None
    cosine = (pp - ps) / math.sqrt(pp * qq)
    if cosine <= 0:
        return math.sqrt(max(0.0, 2 - 2 * cosine))
    return math.sqrt(max(0.0, ss - ps * (ps / pp)) / qq * 2 / (1 + cosine))


def _cosine(m: Mapping[str, float]) -> float | None:
    """``|cos(p, g)| √numel``: about 0.8 for a random direction, near 0 for scale-invariant weights."""
    if not (m["gg"] > 0 and m["pp"] > 0):
        return None
    return abs(m["gp"]) / math.sqrt(m["gg"] * m["pp"]) * math.sqrt(m["numel"])


def _root(x: float | None) -> float | None:
    return None if x is None else math.sqrt(x)


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None and not math.isnan(v)]
    return math.fsum(known) / len(known) if known else None
