"""From a `MethodSpec` to a `torch.optim.Optimizer`, with errors that name the method and the option."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mooring.finetune.errors import SpecError, suggestion
from mooring.finetune.spec import MethodSpec


def load_class(method: MethodSpec) -> type[torch.optim.Optimizer]:
    """Import the optimizer class of a method; a module in the working folder is found too."""
    module_name, _, class_name = method.optimizer.partition(":")
    added = str(Path.cwd())
    sys.path.append(added)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpecError(f"method {method.label!r}: module {module_name!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove(added)
    try:
        found = getattr(module, class_name)
    except AttributeError:
        near = suggestion(class_name, dir(module))
        raise SpecError(f"method {method.label!r}: module {module_name!r} has no {class_name!r}{near}") from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise SpecError(f"method {method.label!r}: {method.optimizer!r} is not a subclass of torch.optim.Optimizer")
    return found


def build_optimizer(method: MethodSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the model's parameters, with their names where the class takes names."""
    cls = load_class(method)
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in method.options.items()
    }
    _check_names(method, cls)
    try:
        optimizer = cls(model.named_parameters(), **options)
    except Exception:
        # A class that looks into its parameters before torch's constructor does may not know (name, parameter) pairs.
        # What is wrong with the options, if that was it, is said by the second attempt.
        try:
            optimizer = cls(model.parameters(), **options)
        except Exception as error:
            raise SpecError(
                f"method {method.label!r}: {method.optimizer} refused {_written(options)}: {error}"
            ) from error
    if not all("lr" in group for group in optimizer.param_groups):
        raise SpecError(f"method {method.label!r}: {method.optimizer} keeps no 'lr' in its groups to schedule")
    return optimizer


def check_method(method: MethodSpec) -> None:
    """Build the optimizer over a tiny model, so that a wrong option is found before any trial starts."""
    build_optimizer(method, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step`` cannot be called without a closure (L-BFGS is the one in torch)."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The memory of all tensors in the optimizer's state, each storage once."""
    storages = (tensor.untyped_storage() for tensor in _tensors(dict(optimizer.state)))
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
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters[1:]]
    for name in method.options:
        if name not in known:
            raise SpecError(
                f"method {method.label!r}: {method.optimizer} has no option {name!r}{suggestion(name, known)}; "
                f"its options are {', '.join(known)}"
            )


def _written(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "its defaults"
