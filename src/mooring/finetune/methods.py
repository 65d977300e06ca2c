"""The built-in methods and how a user's words become a `MethodSpec`. No torch here.

The default options are for the embedded vision task and were chosen with equal effort for every method by
``python benchmarks/tune_defaults.py``: 12 Halton points in each method's space, the same 5 seeds (100-104, none of
which a comparison reports by default), the highest mean accuracy on ID validation, ties by its loss. Momentum was not
tuned. With 5 x 60 validation images the choice is coarse:

========  =================================  ===============  ===============  ===============
method    chosen                             its accuracy     median of 12     worst of 12
========  =================================  ===============  ===============  ===============
adamw     lr 9.5e-4, weight_decay 4.9e-4     0.983            0.977            0.973
sgd       lr 5.6e-2, weight_decay 5.8e-3     0.987            0.973            0.940
adamp     lr 9.5e-4, weight_decay 4.9e-4     0.987            0.977            0.970
adams     lr 9.5e-4, weight_decay 4.9e-5     0.987            0.975            0.970
adamspd   lr 5.6e-3, strength 0.99           0.983            0.978            0.973
sgdp      lr 5.6e-2, weight_decay 5.8e-3     0.987            0.973            0.957
sgds      lr 5.6e-2, weight_decay 5.8e-3     0.987            0.973            0.960
sgdspd    lr 0.48, strength 1.7              0.980            0.973            0.943
========  =================================  ===============  ===============  ===============

All 96 rows are in ``benchmarks/tune_defaults.csv``. Seeds redraw the same 300 rows, so images that these validation
splits hold are ID test images under other seeds: with these defaults only ``later_rows`` and
``retention`` are made of images that no choice has seen.

``nso``, ``sam``, ``usam``, ``asam`` and ``rsam`` were **not** tuned: they are adamw with its tuned options, and the
perturbation around it has its paper's defaults (sigma 0.01 and k 1; rho 0.05, 0.5 for asam).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from mooring import _RULES as RULES
from mooring.finetune.errors import SpecError, suggestion
from mooring.finetune.perturbations import PERTURBATIONS
from mooring.finetune.spec import MODULE_CLASS, MethodSpec


@dataclass(frozen=True)
class Range:
    """The values a hyper-parameter is searched over when methods are tuned with equal effort."""

    low: float
    high: float
    log: bool = True

    def __str__(self) -> str:
        """The range in words."""
        return f"{_number(self.low)} to {_number(self.high)}{' (log)' if self.log else ''}"


def _number(value: float) -> str:
    """A number as people write it: 0.1, 2, 3e-2."""
    if 0.1 <= value < 1000:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


@dataclass(frozen=True)
class MethodInfo:
    """One built-in method.

    Attributes:
        spec: The class and its default options on the embedded vision task.
        description: One line.
        paper: Where the method comes from.
        state_per_weight: Numbers kept per trainable weight, beside the weight and its gradient.
        passes: Weight-sized tensors that one step reads and writes, as `mooring.cost` counts them.
        collectives: Reductions over processes that one step takes where weights are sharded.
        gradients_per_step: Gradient evaluations one step costs.
        space: What is tuned, over which range.
        tuned: Whether the default options were searched for; else they are those of the paper.
    """

    spec: MethodSpec
    description: str
    paper: str
    state_per_weight: int
    passes: int
    collectives: int
    gradients_per_step: int
    space: dict[str, Range]
    tuned: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """All default options, the optimizer's and the perturbation's."""
        return {**self.spec.options, **{k: v for given in self.spec.perturb.values() for k, v in given.items()}}

    @property
    def cost(self) -> str:
        """The cost of one step per float32 weight, in words."""
        gradients = f"{self.gradients_per_step} gradient{'s' if self.gradients_per_step > 1 else ''}"
        shared = f", {self.collectives} collective{'s' if self.collectives > 1 else ''} where sharded"
        return (
            f"{4 * self.state_per_weight} bytes of state, {self.passes} passes over memory, {gradients} per step"
            f"{shared if self.collectives else ''}{', a copy of the weights within it' if self.spec.perturb else ''}"
        )

    @property
    def ranges(self) -> str:
        """What is tuned, over which range, in words."""
        return ", ".join(f"{name} {space}" for name, space in self.space.items())


def _method(
    name: str,
    optimizer: str,
    options: dict[str, Any],
    *,
    description: str,
    paper: str,
    state_per_weight: int,
    passes: int,
    collectives: int = 0,
    space: dict[str, Range],
) -> MethodInfo:
    return MethodInfo(
        spec=MethodSpec(label=name, optimizer=f"mooring:{optimizer}", options=options),
        description=description,
        paper=paper,
        state_per_weight=state_per_weight,
        passes=passes,
        collectives=collectives,
        gradients_per_step=1,
        space=space,
    )


_ADAM_LR = Range(1e-4, 3e-2)
_SGD_LR = Range(1e-3, 1.0)
_DECAY = Range(1e-4, 1.0)
_STABLE_DECAY = Range(1e-5, 1e-1)
_STRENGTH = Range(0.1, 2.0, log=False)

METHODS: dict[str, MethodInfo] = {
    "adamw": _method(
        "adamw",
        "AdamW",
        {"lr": 9.5e-4, "weight_decay": 4.9e-4},
        description="Adam with decoupled weight decay: the usual choice, and the baseline.",
        paper="Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101",
        state_per_weight=2,
        passes=7,
        space={"lr": _ADAM_LR, "weight_decay": _DECAY},
    ),
    "sgd": _method(
        "sgd",
        "SGD",
        {"lr": 5.6e-2, "momentum": 0.9, "weight_decay": 5.8e-3},
        description="Momentum SGD with the decay inside the gradient, as torch has it.",
        paper="Sutskever et al., ICML 2013",
        state_per_weight=1,
        passes=5,
        space={"lr": _SGD_LR, "weight_decay": _STABLE_DECAY},
    ),
    "adamp": _method(
        "adamp",
        "AdamP",
        {"lr": 9.5e-4, "weight_decay": 4.9e-4},
        description="AdamW without the radial part of the step on scale-invariant weights.",
        paper="Heo et al., ICLR 2021, arXiv 2006.08217",
        state_per_weight=2,
        passes=10,
        collectives=1,
        space={"lr": _ADAM_LR, "weight_decay": _DECAY},
    ),
    "adams": _method(
        "adams",
        "AdamS",
        {"lr": 9.5e-4, "weight_decay": 4.9e-5},
        description="Adam with a decay that keeps pace with the gradient's size over the whole model.",
        paper="Xie et al., NeurIPS 2023, arXiv 2011.11152",
        state_per_weight=2,
        passes=8,
        collectives=1,
        space={"lr": _ADAM_LR, "weight_decay": _STABLE_DECAY},
    ),
    "adamspd": _method(
        "adamspd",
        "AdamSPD",
        {"lr": 5.6e-3, "strength": 0.99},
        description="Adam that takes back steps away from the pretrained weights where the gradient points to them.",
        paper="Tian, Huang and Kira, NeurIPS 2024, arXiv 2411.01713",
        state_per_weight=3,
        passes=11,
        collectives=1,
        space={"lr": _ADAM_LR, "strength": _STRENGTH},
    ),
    "sgdp": _method(
        "sgdp",
        "SGDP",
        {"lr": 5.6e-2, "momentum": 0.9, "weight_decay": 5.8e-3},
        description="Momentum SGD without the radial part of the step on scale-invariant weights.",
        paper="Heo et al., ICLR 2021, arXiv 2006.08217",
        state_per_weight=1,
        passes=7,
        collectives=1,
        space={"lr": _SGD_LR, "weight_decay": _STABLE_DECAY},
    ),
    "sgds": _method(
        "sgds",
        "SGDS",
        {"lr": 5.6e-2, "momentum": 0.9, "weight_decay": 5.8e-3},
        description="Momentum SGD with a decay outside the momentum that counts what the momentum accumulates.",
        paper="Xie et al., NeurIPS 2023, arXiv 2011.11152",
        state_per_weight=1,
        passes=5,
        space={"lr": _SGD_LR, "weight_decay": _STABLE_DECAY},
    ),
    "sgdspd": _method(
        "sgdspd",
        "SGDSPD",
        {"lr": 0.48, "momentum": 0.9, "strength": 1.7},
        description="Momentum SGD with adamspd's rule.",
        paper="Tian, Huang and Kira, NeurIPS 2024, arXiv 2411.01713",
        state_per_weight=2,
        passes=9,
        collectives=1,
        space={"lr": _SGD_LR, "strength": _STRENGTH},
    ),
}


def _perturbed(name: str, options: dict[str, Any], description: str, paper: str, space: dict[str, Range]) -> MethodInfo:
    base = METHODS["adamw"]
    spec = base.spec.model_copy(update={"label": name, "perturb": {name.upper(): options}})
    return replace(
        base,
        spec=spec,
        description=f"adamw with {description}",
        paper=paper,
        gradients_per_step=spec.gradients_per_step,
        space={"lr": _ADAM_LR, **space},
        tuned=False,
    )


_RHO = Range(5e-3, 0.5)
METHODS |= {
    "nso": _perturbed(
        "nso",
        {"sigma": 0.01, "k": 1},
        "the mean gradient at weights with noise added and subtracted, which lowers the trace of the Hessian.",
        "Zhang, Li and Ju, TMLR 2024, arXiv 2306.08553",
        {"sigma": Range(1e-3, 0.1)},
    ),
    "sam": _perturbed(
        "sam",
        {"rho": 0.05},
        "the gradient at the worst point of a ball around the weights, to first order.",
        "Foret et al., ICLR 2021, arXiv 2010.01412",
        {"rho": _RHO},
    ),
    "usam": _perturbed(
        "usam",
        {"rho": 0.05},
        "sam's gradient, the ascent as long as the gradient is.",
        "Andriushchenko and Flammarion, ICML 2022, arXiv 2206.06232",
        {"rho": _RHO},
    ),
    "asam": _perturbed(
        "asam",
        {"rho": 0.5},
        "sam's gradient, the ball measured in units of the weights.",
        "Kwon et al., ICML 2021, arXiv 2102.11600",
        {"rho": Range(5e-2, 5.0)},
    ),
    "rsam": _perturbed(
        "rsam",
        {"rho": 0.05, "sigma": 0.01},
        "sam's gradient, the ascent found at weights with noise added.",
        "Liu et al., CVPR 2022",
        {"rho": _RHO},
    ),
}

BASES = {"adam": "Adam", "sgd": "SGD", "adai": "Adai"}
"""The names under which a recipe may call the classes of mooring that take rules."""

DECAYS = tuple(rule for rule in RULES if rule.endswith("Decay"))
"""The rules that bring a ``weight_decay`` of their own."""


def resolve(request: str | Mapping[str, Any] | MethodSpec) -> MethodSpec:
    """Turn what a user wrote into a `MethodSpec`.

    Accepted are a built-in name (``"adamp"``; case does not matter), a class (``"torch.optim:NAdam"``), a mapping with
    a built-in ``name`` and options that override its defaults (``{"name": "adamp", "lr": 1e-3}``), and a mapping with
    an ``optimizer`` class, ``options`` and a ``label``. A mapping may hold ``rules`` too, see `MethodSpec`; then
    ``name`` may also be ``adam`` or ``adai``, and ``wrap`` in place of ``optimizer`` puts them on any optimizer's step.
    ``perturb`` takes the gradients of any of these at moved weights; the methods that are built so take its options
    beside those of their optimizer (``{"name": "nso", "k": 2, "lr": 1e-3}``).

    Raises:
        SpecError: The request is none of these; the message says what is wrong and what would be right.
    """
    if isinstance(request, MethodSpec):
        return request
    if isinstance(request, str):
        return _named(request)
    if not isinstance(request, Mapping):
        raise SpecError(f"a method is a name, 'module:Class' or a mapping, not {request!r}")
    fields = dict(request)
    wrap = fields.pop("wrap", False)
    if not isinstance(wrap, bool):  # the short form: wrap: torch.optim:NAdam
        if {"name", "optimizer"} & set(fields):
            raise SpecError(f"'wrap' already names the optimizer: got {wrap!r} beside 'name' or 'optimizer'")
        fields["optimizer"], wrap = wrap, True
    if ("name" in fields) == ("optimizer" in fields):
        raise SpecError(
            f"a method's mapping holds either 'name' (one of {', '.join(METHODS)}) or 'optimizer' ('module:Class'), "
            f"got the keys {sorted(map(str, fields))}"
        )
    recipe, rules = "rules" in fields, fields.pop("rules", ())
    base = _named(str(fields.pop("name") if "name" in fields else fields.pop("optimizer")), recipe)
    perturb = _perturbation(base, fields)
    label = fields.pop("label", _label(base.label, rules, perturb if perturb != base.perturb else ()))
    nested = fields.pop("options", {})
    if not isinstance(nested, Mapping):
        raise SpecError(f"method {label!r}: 'options' must be a mapping of keyword arguments, not {nested!r}")
    twice = sorted(set(nested) & set(fields))
    if twice:
        raise SpecError(f"method {label!r}: {twice} given both directly and under 'options'")
    defaults = dict(base.options)
    if not wrap and _rule_names(rules) & set(DECAYS):
        defaults.pop("weight_decay", None)  # a listed decay takes the place of the method's own, as in the library
    given = {**nested, **fields}
    own = {key: given.pop(key) for name in base.perturb for key in PERTURBATIONS[name] if key in given}
    if own:
        perturb = {name: {**options, **own} for name, options in base.perturb.items()}
    try:
        return MethodSpec(
            label=label,
            optimizer=base.optimizer,
            options={**defaults, **given},
            rules=rules,
            wrap=wrap,
            perturb=perturb,
        )
    except ValidationError as error:
        reasons = "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in error.errors())
        raise SpecError(f"method {label!r}: {reasons}") from None


def _rule_names(rules: Any) -> set[str]:
    """The names in a list of rules that need not be right yet."""
    items = rules if isinstance(rules, (list, tuple)) else ()
    return {name for item in items for name in (item if isinstance(item, Mapping) else [item]) if isinstance(name, str)}


def _perturbation(base: MethodSpec, fields: dict[str, Any]) -> Any:
    """What is to perturb, taken out of the fields; it need not be right yet."""
    if "perturb" not in fields:
        return base.perturb
    if base.perturb:
        (name,) = base.perturb
        raise SpecError(
            f"method {base.label!r} perturbs by itself; give the options of {name} beside its others "
            f"({', '.join(PERTURBATIONS[name])}), or write perturb beside another name"
        )
    return fields.pop("perturb")


def _label(base: str, rules: Any, perturb: Any) -> str:
    items = [*(rules if isinstance(rules, (list, tuple)) else ()), *([perturb] if perturb else [])]
    names = (next(iter(item), "") if isinstance(item, Mapping) else item for item in items)
    return "+".join([base, *(str(name).rpartition(":")[2] for name in names)])


def _named(name: str, recipe: bool = False) -> MethodSpec:
    if ":" in name:
        if not MODULE_CLASS.fullmatch(name):
            raise SpecError(f"method {name!r} is not of the form 'module:Class', for example 'torch.optim:NAdam'")
        return MethodSpec(label=name.partition(":")[2], optimizer=name)
    if name.lower() in METHODS:
        return METHODS[name.lower()].spec
    if recipe and name.lower() in BASES:
        return MethodSpec(label=name.lower(), optimizer=f"mooring:{BASES[name.lower()]}")
    known = [*METHODS, *(base for base in BASES if recipe and base not in METHODS)]
    raise SpecError(
        f"unknown method {name!r}{suggestion(name, known)}; the methods are {', '.join(known)}, "
        "or give a class as 'module:Class', for example 'torch.optim:NAdam'"
    )
