"""Telemetry in the logs of Hugging Face's Trainer, and its training with several passes per step."""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'mooring.integrations.transformers needs transformers: pip install "mooring[hosts]"'
    ) from error

from mooring.measure.loggers import own
from mooring.perturb.frame import Perturbed


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


class PerturbedTraining:
    """Mixin for a Trainer whose optimizer is :class:`mooring.NSO`, :class:`mooring.SAM` or another of that kind.

    ::

        class MyTrainer(PerturbedTraining, Trainer):
            pass

        nso = mo.NSO(mo.AdamW(model.parameters(), lr=1e-4), sigma=0.01)
        MyTrainer(model, args, train_dataset=rows, optimizers=(nso, None)).train()

    ``training_step`` keeps the micro-batches of ``gradient_accumulation_steps`` until the last one has come, and then
    runs the Trainer's own ``training_step`` on all of them in every pass. So ``compute_loss`` may be overridden,
    autocast and the scaler are the Trainer's, ``max_grad_norm`` clips once, the final gradient, and one loss is logged
    for each step: the mean over the passes whose gradients enter it, or of the pass at the true weights.

    The module is taken from the Trainer, wrapped as it trains. Draws with mini-batches of their own
    (``fresh_batches``) need a loop of your own. With another optimizer the mixin does nothing.

    Raises:
        RuntimeError: from ``training_step``, under DeepSpeed, whose engine takes the gradients itself.
    """

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Keep a micro-batch; with the last one of a step, run all passes. Returns the loss to be logged."""
        host: Any = super()
        here: Any = self
        optimizer = getattr(here.optimizer, "optimizer", here.optimizer)
        if not isinstance(optimizer, Perturbed):
            loss: Tensor = host.training_step(model, inputs, num_items_in_batch)
            return loss
        if here.is_deepspeed_enabled:
            raise RuntimeError(f"{type(optimizer).__name__} needs its own passes, and DeepSpeed's engine has one")
        held: list[dict[str, Any]] = here.__dict__.setdefault("_held", [])
        if here.__dict__.get("_held_for") is not here.state:
            held.clear()  # of a training that was stopped in the middle of a step
            here._held_for = here.state
        held.append(inputs)
        if not here.accelerator.sync_gradients:
            return torch.zeros((), device=here.args.device)
        batches, here._held = held, []
        optimizer.attach(model)
        losses = []
        for pass_ in optimizer.passes(scaler=here.accelerator.scaler):
            with pass_:
                total: Any = 0.0
                for i, batch in enumerate(batches):
                    early = pass_.sync and i + 1 < len(batches)
                    with here.accelerator.no_sync(model) if early else nullcontext():
                        if pass_.gradient:
                            total = total + host.training_step(model, copy(batch), num_items_in_batch)
                        else:
                            self._forward(model, copy(batch), num_items_in_batch)
                losses.append((pass_, total))
        seen: Tensor = optimizer._loss([(pass_, total) for pass_, total in losses if pass_.gradient])
        return seen

    def _forward(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> None:
        """For the running statistics."""
        here: Any = self
        model.train()
        with here.compute_loss_context_manager():
            here.compute_loss(model, here._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
