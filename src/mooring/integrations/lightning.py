"""Telemetry in the logs of Lightning."""

from __future__ import annotations

from typing import Any

try:
    from lightning import Callback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('mooring.integrations.lightning needs lightning: pip install "mooring[hosts]"') from error

from mooring.measure.loggers import own


class Telemetry(Callback):
    """Logs every recorded step through the module's ``log_dict``, so that its loggers and callback metrics have it.

    With several optimizers their position stands before each name.

    Args:
        every: distance of recorded steps.
        groups: also the values of every group, not of the model alone.
        drift: also measure drift of tensors without an anchor; keeps a copy of them.

    Example::

        lightning.Trainer(callbacks=[Telemetry(every=10)])
    """

    def __init__(self, every: int = 10, *, groups: bool = False, drift: bool = False) -> None:
        self.every, self.groups, self.drift = every, groups, drift

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start recording."""
        for optimizer in trainer.optimizers:
            own(optimizer).record(self.every, drift=self.drift)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the step that was just taken, if it was recorded."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch:
            return  # no step was taken: the last one is logged already
        for i, optimizer in enumerate(trainer.optimizers):
            found = own(optimizer)
            if found.recorded:
                start = f"{i}/" if len(trainer.optimizers) > 1 else ""
                values = {
                    start + name: value
                    for name, value in found.telemetry().items()
                    if self.groups or name.startswith("model/")
                }
                pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
