"""Telemetry in the logs of Lightning, and its training with several passes per step."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

try:
    from lightning import Callback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('mooring.integrations.lightning needs lightning: pip install "mooring[hosts]"') from error

from mooring.measure.loggers import own
from mooring.perturb.frame import Perturbed


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


class PerturbedTraining:
    """Mixin for a LightningModule whose optimizer is :class:`mooring.NSO`, :class:`mooring.SAM` or another such.

    ::

        class FineTune(PerturbedTraining, LightningModule):
            accumulate_grad_batches = 2
            gradient_clip_val = 1.0

            def loss_step(self, batch, batch_idx):  # instead of training_step
                loss = cross_entropy(self(batch["x"]), batch["y"])
                self.log("loss", loss)
                return loss

            def configure_optimizers(self):
                return mo.NSO(mo.AdamW(self.parameters(), lr=1e-4), sigma=0.01)

    It is manual optimisation: Lightning wants accumulation and clipping there in the module instead of its Trainer,
    and schedulers to be stepped by hand, which this does. ``training_step`` keeps batches until
    ``accumulate_grad_batches`` have come or the epoch ends, and then runs ``loss_step`` on all of them in every pass.
    The gradient is their mean; it is unscaled and clipped once, after the last pass. What ``loss_step`` logs counts in
    the first pass only.

    Draws with mini-batches of their own (``fresh_batches``) need a loop of your own. A checkpoint that is written in
    the middle of a step does not hold the batches kept so far.

    Attributes:
        accumulate_grad_batches: how many batches make one step.
        gradient_clip_val: bound of the final gradient; None for none.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``.
        scheduler_interval: ``"step"`` (those that a scaler skips do not count) or ``"epoch"``: when schedulers step.

    Raises:
        TypeError: from ``training_step``, if the optimizer is none of that kind or there are several of them, and if a
            scheduler wants a metric.
    """

    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str = "norm"
    scheduler_interval: str = "step"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self._held: list[tuple[Any, int]] = []
        self._silent = False

    def loss_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch; to be written instead of ``training_step``. It is called once for every pass."""
        raise TypeError(f"{type(self).__name__} must define loss_step(batch, batch_idx) instead of training_step")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Keep a batch; with the last one of a step, run all passes and step. Returns the loss of the step."""
        here: Any = self
        if self._held and self._held[-1][1] + 1 != batch_idx:
            self._held = []  # of a training that was stopped in the middle of a step
        self._held.append((batch, batch_idx))
        last = here.trainer.is_last_batch
        if len(self._held) < self.accumulate_grad_batches and not last:
            return None
        batches, self._held = self._held, []
        wrapped = here.optimizers()
        optimizer = getattr(wrapped, "optimizer", None)
        if not isinstance(optimizer, Perturbed):
            raise TypeError(
                f"configure_optimizers of a PerturbedTraining must return one NSO, SAM or other perturbing optimizer, "
                f"got {type(wrapped).__name__ if optimizer is None else type(optimizer).__name__}"
            )
        module = here.trainer.strategy.model
        optimizer.attach(module)
        optimizer.zero_grad()
        losses = []
        for pass_ in optimizer.passes(scaler=getattr(here.trainer.precision_plugin, "scaler", None)):
            with pass_:
                self._silent = pass_.index > 0
                try:
                    losses.append((pass_, self._run(pass_, module, batches)))
                finally:
                    self._silent = False
        with optimizer.closure_without_gradient():
            wrapped.step()
        skipped = optimizer._ready  # a scaler did not call step
        if last if self.scheduler_interval == "epoch" else not skipped:
            self._step_schedulers()
        seen: Tensor = optimizer._loss([(pass_, loss) for pass_, loss in losses if pass_.gradient])
        return seen

    def _run(self, pass_: Any, module: Any, batches: list[tuple[Any, int]]) -> Tensor:
        here: Any = self
        total: Any = 0.0
        for i, (batch, index) in enumerate(batches):
            early = pass_.sync and i + 1 < len(batches) and hasattr(module, "no_sync")
            with module.no_sync() if early else nullcontext():
                loss = self.loss_step(batch, index) / len(batches)
                if pass_.gradient:
                    here.manual_backward(loss)
            total = total + loss.detach()
        return torch.as_tensor(total)

    def _step_schedulers(self) -> None:
        here: Any = self
        for config in here.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise TypeError("ReduceLROnPlateau wants a metric; step it in a hook of your own")
            config.scheduler.step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip; Lightning calls this when the gradient is unscaled. An override has to call it."""
        if self.gradient_clip_val is not None:
            here: Any = self
            here.clip_gradients(
                optimizer,
                gradient_clip_val=self.gradient_clip_val,
                gradient_clip_algorithm=self.gradient_clip_algorithm,
            )

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's ``log``, silent in all passes but the first."""
        if not self._silent:
            here: Any = super()
            here.log(*args, **kwargs)
