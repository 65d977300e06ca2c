"""Telemetry in the logs of Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'mooring.integrations.transformers needs transformers: pip install "mooring[hosts]"'
    ) from error

from mooring.measure.loggers import own


class Telemetry(TrainerCallback):
    """Adds telemetry to what the Trainer logs: its log history, and the loggers it reports to.

    A log gets the last recorded step, once. ``attach`` puts the callback before those of the loggers, because a
    callback that is added later sees a log after they wrote it.

    Args:
        every: distance of recorded steps.
        groups: also the values of every group, not of the model alone.
        drift: also measure drift of tensors without an anchor; keeps a copy of them.

    Example::

        trainer = Trainer(model, args, train_dataset=rows, optimizers=(mo.AdamSPD(groups), None))
        Telemetry(every=10).attach(trainer)
    """

    def __init__(self, every: int = 10, *, groups: bool = False, drift: bool = False) -> None:
        self.every, self.groups, self.drift = every, groups, drift
        self._logged = 0.0

    def attach(self, trainer: Any) -> Telemetry:
        """Add this callback to a Trainer, before all others."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Start recording."""
        own(optimizer).record(self.every, drift=self.drift)
        self._logged = 0.0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, optimizer: Any = None, **kw: Any
    ) -> None:
        """Add the last recorded step's values, unless an earlier log has them."""
        if logs is None or optimizer is None:
            return
        values = own(optimizer).telemetry()
        number = values.get("model/step/number", 0.0)
        if number == self._logged:
            return
        self._logged = number
        values = {name: v for name, v in values.items() if self.groups or name.startswith("model/")}
        logs.update(values)
        history = state.log_history
        if history and history[-1].get("step") == state.global_step:
            history[-1].update(values)
