"""Which tensor of a source belongs to which parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

# Segments that wrappers put into parameters' names: DDP, torch.compile, FSDP, activation checkpointing, PEFT.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})


def plain(name: str) -> str:
    """The name without the segments that wrappers insert."""
    kept = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(kept)


def match(names: Sequence[str], keys: Iterable[str], source: str) -> dict[str, str]:
    """Find the key of each parameter.

    1. The key that equals the name.
    2. The key that equals it when the segments of wrappers (``WRAPPERS``) are left out of both.
    3. Only where fewer than half of the names have a key by then: one prefix, the same for all names that are left,
       is taken away (``bert.encoder.x`` -> ``encoder.x``) or put before them (the reverse), whichever matches most.

    Args:
        names: of parameters.
        keys: of the source.
        source: what to call it in errors.

    Returns:
        The key of every name that has one.

    Raises:
        ValueError: where two keys, or two prefixes, fit equally well.
    """
    exact = set(keys)
    by_plain: dict[str, list[str]] = {}
    for key in exact:
        by_plain.setdefault(plain(key), []).append(key)
    found: dict[str, str] = {}
    for name in names:
        if name in exact:
            found[name] = name
        elif plain(name) in by_plain:
            found[name] = _only(name, by_plain[plain(name)], source)
    left = [name for name in names if name not in found]
    if 2 * len(found) < len(names):
        renamed = _by_prefix([plain(name) for name in left], set(by_plain), source)
        for name in left:
            if plain(name) in renamed:
                found[name] = _only(name, by_plain[renamed[plain(name)]], source)
    return found


def _only(name: str, candidates: list[str], source: str) -> str:
    if len(candidates) > 1:
        shown = " and ".join(sorted(candidates)[:2])
        raise ValueError(f"anchor={source!r}: parameter {name!r} could be {shown}; rename one of them in the source")
    return candidates[0]


def _by_prefix(names: Sequence[str], keys: set[str], source: str) -> Mapping[str, str]:
    """The renaming by one prefix, taken away or put before, that finds most of the names."""
    votes: Counter[tuple[str, str]] = Counter()
    wanted = set(names)
    for name in wanted:
        for i, character in enumerate(name):
            if character == "." and name[i + 1 :] in keys:
                votes["without", name[:i]] += 1
    for key in keys:
        for i, character in enumerate(key):
            if character == "." and key[i + 1 :] in wanted:
                votes["with", key[:i]] += 1
    best = votes.most_common(2)
    if len(best) == 2 and best[0][1] == best[1][1]:
        (how, one), (also, other) = sorted(candidate for candidate, _ in best)
        raise ValueError(
            f"anchor={source!r}: names match equally well {how} the prefix {one!r} and {also} {other!r}; give the "
            "parameters the source's names (named_parameters() of the module that was saved), or rename its keys"
        )
    if not best:
        return {}
    (how, prefix), _ = best[0]
    if how == "with":
        return {name: f"{prefix}.{name}" for name in wanted if f"{prefix}.{name}" in keys}
    cut = {name: name.removeprefix(prefix + ".") for name in wanted if name.startswith(prefix + ".")}
    return {name: key for name, key in cut.items() if key in keys}


def first(names: Iterable[str], count: int = 3) -> str:
    """A few names, for an error."""
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")
