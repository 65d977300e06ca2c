"""Gradients at moved weights as data: which perturbations a method may name, their options and their cost. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mooring.finetune.errors import suggestion

PERTURBATIONS: dict[str, tuple[str, ...]] = {
    "NSO": ("sigma", "k", "two_point", "clean", "noise", "relative", "schedule", "schedule_steps", "clean_forward"),
    "SAM": ("rho",),
    "USAM": ("rho",),
    "ASAM": ("rho", "eta"),
    "RSAM": ("rho", "sigma", "clean_forward"),
}
"""Class of mooring → its options in a comparison, the first one first.

The model and the noise's seed are the trial's. Options about several processes have no meaning here, and every pass of
a step sees the same batch, so that all methods read the same examples.
"""


def read(item: Any) -> dict[str, dict[str, Any]]:
    """``"SAM"``, ``{"SAM": 0.05}`` or ``{"SAM": {"rho": 0.05}}`` in the last form, names checked; nothing from {}.

    Raises:
        ValueError: It is none of these, or a name is not known.
    """
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, Mapping) or len(item) > 1:
        raise ValueError(
            f"perturb is one name, or one name with its options as in {{NSO: {{sigma: 0.01, k: 2}}}}, not {item!r}"
        )
    found = {}
    for name, given in item.items():
        if name not in PERTURBATIONS:
            raise ValueError(
                f"unknown perturbation {name!r}{suggestion(str(name), PERTURBATIONS)}; "
                f"they are {', '.join(PERTURBATIONS)}"
            )
        known = PERTURBATIONS[name]
        if isinstance(given, (list, tuple)):
            raise ValueError(f"{name}: give its options by name, as in {{{name}: {{{known[0]}: 0.01}}}}")
        options = dict(given) if isinstance(given, Mapping) else {} if given is None else {known[0]: given}
        for option in options:
            if option not in known:
                raise ValueError(
                    f"{name} has no option {option!r}{suggestion(str(option), known)}; "
                    f"its options here are {', '.join(known)}"
                )
        found[name] = options
    return found


def gradients_per_step(perturb: Mapping[str, Mapping[str, Any]]) -> int:
    """How many gradients one step evaluates: 1 without a perturbation, 2 for the sharpness family, 2k for NSO."""
    for name, options in perturb.items():
        if name != "NSO":
            return 1 if options.get("rho") == 0 else 2
        clean, k = options.get("clean", 0), options.get("k", 1)
        if clean == 1 or options.get("sigma") == 0:
            return 1
        draws = k if isinstance(k, int) and k >= 1 else 1  # what is wrong with it is said when the optimizer is built
        return (2 if options.get("two_point", True) else 1) * draws + (0 if clean == 0 else 1)
    return 1
