"""Options that every optimizer takes: what is done with gradients before the step, and in which numbers it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NON_FINITE = ("propagate", "skip")
ROUNDINGS = ("nearest", "stochastic", "kahan")
STATE_DTYPES = ("float32", "bfloat16")
BACKENDS = (None, "eager", "numba")


class CommonOptions(TypedDict, total=False):
    """Keyword options of every optimizer but :func:`mooring.wrap`'s.

    ``max_grad_norm`` and ``non_finite`` are the same in all groups, because the norm runs over all of them;
    ``rounding`` and ``state_dtype`` may differ by group.

    Attributes:
        max_grad_norm: clip the gradients to this norm, taken over all parameters with a gradient: they are multiplied
            by ``min(1, max_grad_norm / (norm + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_`` does, inside the step
            and without touching ``p.grad``. Default None, no clipping. Costs one pass over the gradient.
        non_finite: ``"propagate"`` (default): NaN and infinity go into the weights, as in torch. ``"skip"``: a step
            whose gradients have no finite norm changes no weight, no state and no step count. On an accelerator
            nothing waits for that decision; it costs a temporary copy of one batch of tensors.
        rounding: how bfloat16 and float16 weights are rounded after a step, which is computed in float32. ``"nearest"``
            (default) loses updates smaller than half a unit in the last place. ``"stochastic"`` rounds up with the
            probability that keeps the mean; its random bits depend on the step, the parameter and the element alone,
            so replicas, shards and resumed runs agree. ``"kahan"`` keeps what the type cannot hold in
            ``state["compensation"]`` (2 bytes per element): weight and compensation together are the float32 weight.
        state_dtype: the type moments are kept in: ``"float32"`` (default) or ``"bfloat16"``; float64 weights always
            keep float64. Moments are computed in float32 either way, and rounded to bfloat16 stochastically, because
            a second moment that is rounded to nearest stops moving.
        one_parameter: say that the one parameter given is the whole model. Without it (default False) whatever reads
            the whole model, a mean or a norm over all parameters, is refused for an optimizer of one parameter,
            because hosts that step inside the backward pass make one for each. No group option.
        process_group: where a pipeline puts other parameters of the model on other processes, the group of one process
            of each stage: ``mesh["pp"].get_group()``. What is one number for the model, the norm and the skipping above
            and the mean that stable decay and Adai read, is then that of all stages. Every process of the group must
            step alike. Default None. An argument of the constructor, not a group option: it is in no checkpoint.
        backend: ``"eager"`` is plain torch on any device, ``"numba"`` the compiled kernels for the CPU, an error where
            they cannot serve. Default None: the kernels where they are installed (``mooring[fast]``) and can serve,
            else eager. They agree within the rounding of the compute type, see docs/performance.md.
    """

    max_grad_norm: float | None
    non_finite: Literal["propagate", "skip"]
    rounding: Literal["nearest", "stochastic", "kahan"]
    state_dtype: Literal["float32", "bfloat16"]
    one_parameter: bool
    process_group: ProcessGroup | None
    backend: Literal["eager", "numba"] | None


DEFAULTS: dict[str, Any] = {
    "max_grad_norm": None,
    "non_finite": "propagate",
    "rounding": "nearest",
    "state_dtype": "float32",
    "backend": None,
}
SHARED = ("max_grad_norm", "non_finite")


def split_off_one_parameter(given: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The options that groups hold, and ``one_parameter``, which says something of all groups together."""
    held = {key: value for key, value in given.items() if key != "one_parameter"}
    return held, bool(given.get("one_parameter", False))


def with_defaults(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The common options, completed.

    Raises:
        TypeError: for an option that is none of them.
    """
    for key in given:
        if key not in DEFAULTS:
            known = ", ".join([*DEFAULTS, "one_parameter", "process_group"])
            raise TypeError(f"{name}() got an unexpected keyword argument {key!r}; it also takes {known}")
    return {**DEFAULTS, **given}


def check(group: Mapping[str, Any]) -> None:
    """Raise ValueError naming the option, its value and what would be right."""
    limit = group["max_grad_norm"]
    if limit is not None and not (isinstance(limit, (int, float)) and limit > 0):
        raise ValueError(f"max_grad_norm must be a number > 0, or None for no clipping, got {limit!r}")
    choices = {"non_finite": NON_FINITE, "rounding": ROUNDINGS, "state_dtype": STATE_DTYPES, "backend": BACKENDS}
    for name, allowed in choices.items():
        if group[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {group[name]!r}")


def check_parameter(group: Mapping[str, Any], name: str, p: Tensor) -> None:
    """Raise ValueError for an option that cannot serve a parameter."""
    if p.is_complex() and group["state_dtype"] == "bfloat16":
        raise ValueError(
            f"state_dtype: {name} is complex, and there is no complex bfloat16; give it a group with 'float32'"
        )


def check_shared(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where groups disagree on an option that belongs to all of them."""
    for name in SHARED:
        values = {group[name] for group in groups}
        if len(values) > 1:
            raise ValueError(
                f"{name} must be the same in all groups, because the norm runs over all of them; "
                f"got {', '.join(sorted(map(repr, values)))}"
            )


def screens(group: Mapping[str, Any]) -> bool:
    """Whether a step looks over all gradients before it takes them."""
    return group.get("max_grad_norm") is not None or group.get("non_finite") == "skip"


def describe_screen(group: Mapping[str, Any]) -> str:
    """What that look decides, as a stage of the step."""
    limit = group.get("max_grad_norm")
    clip = [] if limit is None else [f"clip(max_grad_norm={limit:g})"]
    return " and ".join([*clip, *(["skip non-finite gradients"] if group.get("non_finite") == "skip" else [])])


def draws(group: Mapping[str, Any]) -> bool:
    """Whether a step of this group needs random bits."""
    return bool(group.get("rounding") == "stochastic" or group.get("state_dtype") == "bfloat16")


def describe(group: Mapping[str, Any]) -> str:
    """The options that differ from their defaults, as text."""
    return ", ".join(f"{name}={group[name]}" for name, value in DEFAULTS.items() if group.get(name, value) != value)
