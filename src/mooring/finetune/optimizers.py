"""From a `MethodSpec` to a `torch.optim.Optimizer`, with errors that name the method and the option."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import mooring
from mooring.finetune.errors import SpecError, suggestion
from mooring.finetune.importing import load
from mooring.finetune.perturbations import PERTURBATIONS
from mooring.finetune.rules import check_takes_rules, recipe_optimizer
from mooring.finetune.spec import MethodSpec
from mooring.optim.base import Optimizer
from mooring.optim.common import DEFAULTS as COMMON_DEFAULTS
from mooring.perturb.frame import Perturbed
from mooring.step.shards import local


def load_class(method: MethodSpec) -> type[torch.optim.Optimizer]:
    """Import the optimizer class of a method; a module in the working folder is found too."""
    found = load(method.optimizer, f"method {method.label!r}")
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise SpecError(f"method {method.label!r}: {method.optimizer!r} is not a subclass of torch.optim.Optimizer")
    return found


def build_optimizer(
    method: MethodSpec,
    model: nn.Module,
    *,
    seed: int = 0,
    steps: int | None = None,
    head: tuple[str, ...] = (),
) -> torch.optim.Optimizer:
    """Build the optimizer over the model's trained parameters, with their names where the class takes names.

    Nothing is held to an initial value that is not pretrained: for optimizers with anchors, the head and adapters
    (names with ``lora_``) are groups of their own, without an anchor and with one of zero.

    Args:
        method: What to build.
        model: Whose parameters it moves.
        seed: Of the noise, where the method draws any.
        steps: The length of the training: where a schedule of the noise names none, it runs over this.
        head: Prefixes of the names of new parameters, which have no pretrained value.

    Raises:
        SpecError: The class, a rule or the perturbation cannot be found, or refuses its options.
    """
    cls = load_class(method)
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in method.options.items()
    }
    _check_names(method, cls)
    check_takes_rules(method, cls)

    def build(params: Any) -> torch.optim.Optimizer:
        return recipe_optimizer(method, cls, params, options) if method.rules else cls(params, **options)

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    anchored = method.wrap or issubclass(cls, Optimizer)
    try:
        optimizer = build(_by_anchor(named, head) if anchored else named)
    except SpecError:
        raise
    except Exception:
        # A class that looks into its parameters before torch's constructor does may not know (name, parameter) pairs.
        # What is wrong with the options, if that was it, is said by the second attempt.
        try:
            optimizer = build([p for _, p in named])
        except Exception as error:
            raise SpecError(f"method {method.label!r}: {_refused(method, options)}: {error}") from error
    if not all("lr" in group for group in optimizer.param_groups):
        raise SpecError(f"method {method.label!r}: {method.optimizer} keeps no 'lr' in its groups to schedule")
    if method.wrap and needs_closure(optimizer.base):  # type: ignore[attr-defined]
        raise SpecError(f"method {method.label!r}: {method.optimizer} cannot be wrapped, its step needs a closure")
    return _perturbed(method, optimizer, model, seed, steps) if method.perturb else optimizer


def _by_anchor(named: list[tuple[str, nn.Parameter]], head: tuple[str, ...]) -> list[Any]:
    new = {name for name, _ in named if any(name == one or name.startswith(f"{one}.") for one in head)}
    added = {name for name, _ in named if "lora_" in name} - new
    groups: list[dict[str, Any]] = [
        {"params": [(name, p) for name, p in named if name not in new | added]},
        {"params": [(name, p) for name, p in named if name in added], "anchor": "zero"},
        {"params": [(name, p) for name, p in named if name in new], "anchor": None},
    ]
    return [group for group in groups if group["params"]] if new or added else list(named)


def _perturbed(
    method: MethodSpec, base: torch.optim.Optimizer, model: nn.Module, seed: int, steps: int | None
) -> Perturbed:
    ((name, given),) = method.perturb.items()
    if needs_closure(base):
        raise SpecError(
            f"method {method.label!r}: {method.optimizer} needs a closure of its own and cannot be perturbed"
        )
    cls = getattr(mooring, name)
    options = {"seed": seed, **given} if "seed" in inspect.signature(cls).parameters else dict(given)
    if options.get("schedule", "constant") != "constant" and steps is not None:
        options.setdefault("schedule_steps", steps)
    try:
        return cls(base, model=model, **options)  # type: ignore[no-any-return]
    except Exception as error:
        raise SpecError(f"method {method.label!r}: {method.perturb_text} was refused: {error}") from error


def pipeline(optimizer: torch.optim.Optimizer) -> list[str]:
    """The stages of one step in order, as ``print(optimizer)`` shows them; for a foreign optimizer its step is one."""
    if isinstance(optimizer, Perturbed):
        return [f"gradient of {repr(optimizer).partition(' around')[0]}", *pipeline(optimizer.base)]
    if isinstance(optimizer, Optimizer):
        return optimizer.stages()
    return [f"step of {type(optimizer).__name__}"]


def check_method(method: MethodSpec) -> list[str]:
    """Build the optimizer over a tiny model, so that a wrong option is found before any trial starts.

    Returns:
        What the optimizer warned of, with the method's label: rules that work against each other.

    Raises:
        SpecError: see `build_optimizer`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_optimizer(method, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), steps=1)
    texts = dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning)
    return [f"method {method.label!r}: {text}" for text in texts]


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step`` cannot be called without a closure (L-BFGS is the one in torch)."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The memory of all tensors in the optimizer's state, each storage once; where they are split, this process's."""
    storages = (local(tensor).untyped_storage() for tensor in _tensors(dict(optimizer.state)))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in _tensors(item))
    elif isinstance(value, (list, tuple)):
        yield from (tensor for item in value for tensor in _tensors(item))


def _check_names(method: MethodSpec, cls: type[torch.optim.Optimizer]) -> None:
    parameters = list(inspect.signature(cls).parameters.values())
    known = [parameter.name for parameter in parameters[1:] if parameter.name != "rules"]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        if not issubclass(cls, Optimizer):
            return
        known = [name for name in known if name != "common"] + list(COMMON_DEFAULTS)
    own = [option for one in method.perturb for option in PERTURBATIONS[one]]
    for name in method.options:
        if name not in known and not (method.wrap and name == "anchor"):
            raise SpecError(
                f"method {method.label!r}: {method.optimizer} has no option {name!r}"
                f"{suggestion(name, [*known, *own])}; "
                f"its options are {', '.join(known)}"
                + "".join(f", and those of {one}: {', '.join(PERTURBATIONS[one])}" for one in method.perturb)
            )


def _refused(method: MethodSpec, options: dict[str, Any]) -> str:
    written = [f"{name}={value!r}" for name, value in options.items()]
    if method.rules:
        written.append(f"rules=[{method.rules_text}]")
    who = f"wrap({method.optimizer})" if method.wrap else method.optimizer
    return f"{who} refused {', '.join(written) or 'its defaults'}"
