"""What compiled kernels do to many parameters in one call; what they cannot take is left to eager operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mooring.kernels import choice, random
from mooring.perturb.weights import Member, Pair

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def sorted_out(pairs: Sequence[Pair], kernel: str, also: Callable[[Pair], bool]) -> tuple[list[list[Pair]], list[Pair]]:
    """Those that a kernel can take, one list per type, and all others."""
    served: dict[torch.dtype, list[Pair]] = {}
    left = []
    known: dict[tuple[torch.device, str | None], bool] = {}
    for pair in pairs:
        member, saved = pair
        asked = saved.device, member.group.get("backend")
        if asked not in known:
            known[asked] = choice.serves(saved.device, kernel, asked[1])
        # A copy lies in memory as its original does.
        fits = known[asked] and saved.dtype in _DTYPES and saved.is_contiguous() and member.local().is_contiguous()
        if fits and also(pair):
            served.setdefault(saved.dtype, []).append(pair)
        else:
            left.append(pair)
    return list(served.values()), left


def shake(pairs: list[Pair], law: str, noise: Callable[[Member], tuple[int, float]]) -> list[Pair]:
    """Place parameters at their saved values plus noise that is drawn as it is added.

    Args:
        pairs: parameters and saved values.
        law: the noise's.
        noise: the seed and the standard deviation for a parameter; it stays where that is 0.

    Returns:
        What is left to do.
    """
    firsts: dict[int, int] = {}

    def is_a_run(pair: Pair) -> bool:
        first = _first(pair[0])
        if first is not None:
            firsts[id(pair[0])] = first
        return first is not None

    lists, left = sorted_out(pairs, "jobs", is_a_run)
    for served in lists:
        drawn = [(member, saved, *noise(member)) for member, saved in served]
        drawn = [entry for entry in drawn if entry[3] != 0]
        if not drawn:
            continue
        from mooring.kernels.cpu import many

        members, saved, seeds, scales = zip(*drawn)
        many.shake([m.local() for m in members], saved, seeds, [firsts[id(m)] for m in members], scales, law)
    return left


def squares(pairs: list[Pair], kind: str, eta: Callable[[Member], float]) -> dict[int, Tensor]:
    """The sum of squares of the direction of an ascent, (1,) float64, by the parameter's place in the list.

    Args:
        pairs: parameters and saved values.
        kind: ``"plain"``: the gradient; ``"adaptive"``: times |weight| + eta.
        eta: for a parameter; below 0 where its direction is the gradient all the same.
    """
    lists, _ = sorted_out(pairs, "jobs", _has_gradient)
    places = {id(member): i for i, (member, _) in enumerate(pairs)}
    found: dict[int, Tensor] = {}
    for served in lists:
        from mooring.kernels.cpu import many

        members, saved = zip(*served)
        sums = many.squares(saved, [_gradient(m) for m in members], kind, [eta(m) for m in members])
        found.update({places[id(member)]: sums[i : i + 1] for i, member in enumerate(members)})
    return found


def climb(pairs: list[Pair], kind: str, numbers: Callable[[Member], tuple[float, float, float, float]]) -> list[Pair]:
    """Place parameters at their saved values plus the ascent along their gradients.

    Args:
        pairs: parameters and saved values.
        kind: as in :func:`squares`, or ``"unscaled"``.
        numbers: the factor; eta; what is added and what is divided by where nothing is normalised.

    Returns:
        What is left to do.
    """
    lists, left = sorted_out(pairs, "jobs", _has_gradient)
    for served in lists:
        from mooring.kernels.cpu import many

        members, saved = zip(*served)
        places, gradients = [m.local() for m in members], [_gradient(m) for m in members]
        many.climb(places, saved, gradients, kind, [numbers(m) for m in members])
    return left


def _has_gradient(pair: Pair) -> bool:
    member, saved = pair
    g = member.gradient()
    return g is not None and g.dtype == saved.dtype and g.is_contiguous() and g.numel() > 0


def _gradient(member: Member) -> Tensor:
    g = member.gradient()
    assert g is not None
    return g


def _first(member: Member) -> int | None:
    """The place of this process's first element where all its elements are neighbours in the whole tensor."""
    where = member.where
    if where.whole == where.shape:
        return 0
    starts, _ = random.runs(tuple(member.local().shape), where.whole, where.offset)
    return int(starts[0]) if len(starts) == 1 else None
