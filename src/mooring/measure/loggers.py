"""Telemetry to a logger, whichever of the usual methods it has."""

from __future__ import annotations

from typing import Any

from mooring.optim.base import Optimizer


def log_to(writer: Any, optimizer: Any, step: int, *, per_tensor: bool = False) -> bool:
    """Write the telemetry of the latest step, if that was a recorded one; call it after every step.

    Args:
        writer: has ``add_scalar(name, value, step)`` (TensorBoard), ``log_metrics(dict, step=)`` (MLflow, Lightning's
            loggers) or ``log(dict, step=)`` (Weights & Biases, trackio); or a dict, to which lists of
            ``(step, value)`` are added under each name.
        optimizer: of this library, or a trainer's wrapper around one.
        step: the step to write, in the training's own counting.
        per_tensor: also the values of single tensors.

    Returns:
        Whether anything was written.

    Raises:
        TypeError: if the writer has none of these methods, or the optimizer has no telemetry.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.AdamW(model.parameters(), lr=1e-3)
        >>> opt.record(every=2)
        >>> history = {}
        >>> for step in range(4):
        ...     model(torch.ones(3, 4)).sum().backward()
        ...     opt.step()
        ...     _ = mo.log_to(history, opt, step)
        >>> [step for step, _ in history["model/step/norm"]]
        [0, 2]
    """
    found = own(optimizer)
    if not isinstance(writer, dict) and not any(hasattr(writer, m) for m in ("add_scalar", "log_metrics", "log")):
        raise TypeError(
            f"writer must be a dict or have add_scalar, log_metrics or log, got {type(writer).__name__}; "
            "torch.utils.tensorboard.SummaryWriter, mlflow, wandb and trackio runs do"
        )
    if not found.recorded:
        return False
    values = found.telemetry(per_tensor)
    if isinstance(writer, dict):
        for name, value in values.items():
            writer.setdefault(name, []).append((step, value))
    elif hasattr(writer, "add_scalar"):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
    elif hasattr(writer, "log_metrics"):
        writer.log_metrics(values, step=step)
    else:
        writer.log(values, step=step)
    return True


def own(optimizer: Any) -> Optimizer:
    """The optimizer of this library behind the wrappers of a trainer (Accelerate, Lightning), or inside an NSO.

    Raises:
        TypeError: if there is none.
    """
    found = optimizer
    while found is not None and not isinstance(found, Optimizer):
        found = getattr(found, "optimizer", None) or getattr(found, "base", None)
    if found is None:
        raise TypeError(
            f"optimizer must be one of mooring's, got {type(optimizer).__name__}; "
            "mooring.wrap(optimizer, rules=[]) gives any torch optimizer telemetry"
        )
    return found
