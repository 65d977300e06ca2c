"""The frame of all methods that take gradients at perturbed weights: passes, and what must hold around them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from mooring.optim.around import Around, required
from mooring.optim.given import Given, called, flattened_by, refuse_flat, refuse_replaced
from mooring.perturb.replay import Generators
from mooring.perturb.statistics import Frozen, running
from mooring.perturb.weights import Weights, needs_model
from mooring.step.scalars import host_value

# What to use where weights are flat pieces.
_AROUND = "use fully_shard (FSDP2), or the base optimizer alone"


@dataclass(frozen=True)
class Stage:
    """What a method wants of one pass.

    Attributes:
        place: moves the weights, or None for a pass at the true weights. May read the gradients so far.
        weight: factor of this pass's gradient in the final one; 0 for a gradient that only ``place`` of the next reads.
        gradient: whether a backward pass is wanted at all.
        draws: passes with the same number see the same dropout masks and augmentations.
        new_batch: whether a new mini-batch may begin here (with fresh batches).
    """

    place: Callable[[], None] | None = None
    weight: float = 1.0
    gradient: bool = True
    draws: int = 0
    new_batch: bool = False


class Pass:
    """One pass of a step, a context manager: the weights are perturbed inside the ``with`` block and nowhere else.

    Attributes:
        index: 0 for the first pass of the step.
        count: how many passes the step has.
        gradient: whether this pass wants a backward pass; without one, gradients are disabled inside the block.
        new_batch: whether to draw a new mini-batch for this pass; the first pass of a step always begins one.
        sync: whether gradients are averaged over processes here (only in the last pass, where that can be put off).
    """

    def __init__(self, frame: Perturbed, stage: Stage, index: int, count: int, sync: bool) -> None:
        self._frame, self.stage = frame, stage
        self.index, self.count = index, count
        self.gradient, self.new_batch, self.sync = stage.gradient, stage.new_batch or index == 0, sync
        self._stack: ExitStack | None = None
        self.entered = False

    def __enter__(self) -> Pass:
        if self.entered:
            raise RuntimeError(f"pass {self.index} was entered before; every pass of a step is taken once")
        self.entered = True
        with ExitStack() as stack:
            self._frame._begin_pass(self, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._stack is not None
        stack, self._stack = self._stack, None
        try:
            with stack:
                if error[0] is None:
                    self._frame._end_pass(self)
        except BaseException:
            self._frame._abandon()
            raise
        if error[0] is not None:
            self._frame._abandon()  # there is no step to be made of what the other passes would add

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, with the scaler's scale where there is one; nothing in a pass without a gradient."""
        if self.gradient:
            scaler = self._frame._scaler
            (loss if scaler is None else scaler.scale(loss)).backward()


class Perturbed(Around, torch.optim.Optimizer):  # type: ignore[override]
    """A base optimizer whose gradients come from several passes at moved weights.

    It shares the base's groups, state and defaults, so schedulers, checkpoints and trainers see one optimizer. Outside
    a pass the weights are the true weights, whatever happens inside it. Subclasses say which passes they want.

    Args:
        base: any torch optimizer.
        options: group options of the method, with their defaults.
        model: the module that owns the weights. Needed for running statistics, for ``no_sync`` under DDP, and where
            weights are sharded.
        seed: of the noise.
        clean_forward: where no pass is at the true weights and the model keeps running statistics, add a forward pass
            that updates them.
        config: what the method was told beside its group options; copies and pickles keep it.
        replay: give passes that belong together the same dropout masks and augmentations.
    """

    model: Any

    def __init__(
        self,
        base: torch.optim.Optimizer,
        options: dict[str, Any],
        *,
        model: nn.Module | None,
        seed: int,
        clean_forward: bool,
        config: dict[str, Any],
        replay: bool = True,
    ) -> None:
        base = required(base)
        if isinstance(base, Perturbed):
            raise TypeError(f"base must not perturb by itself, got {type(base).__name__} inside {type(self).__name__}")
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"seed must be an int, got {seed!r}")
        self.__setstate__(
            {
                "base": base,
                "model": model,
                "_options": {**options, "noise_seed": seed, "noise_draws": 0},
                "_clean_forward": clean_forward,
                "_config": config,
                "_replay": replay,
            }
        )
        self._require_model()
        self.add_options(self._options)
        for group in self.param_groups:
            self._check_group(group)
        self._refuse_flat()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._weights = Weights(self.base, self.model)
        self._as_given = Given(self.param_groups)
        self._running: Iterator[Pass] | None = None
        self._ready = False
        self._scaler: Any = None
        self._hooked = False
        self._left: list[tuple[Tensor, Tensor]] = []
        self._held = 1.0
        self._begun = False
        self._generators: dict[int, Generators] = {}
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        names = ("base", "model", "_options", "_clean_forward", "_config", "_replay")
        return {name: self.__dict__[name] for name in names}

    def _require_model(self) -> None:
        if self.model is None and needs_model(self.param_groups):
            raise ValueError(
                f"{type(self).__name__}: model must be given where weights are sharded, because a module may hold "
                "gathered copies of weights that were moved"
            )

    # What a method says.

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError for an option out of range."""

    def _refuse_flat(self) -> None:
        """Raise ValueError where what would move is flat pieces, or masters that the model does not see."""
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                if (host := flattened_by(p)) is not None:
                    refuse_flat(called(group, i), host, f"{type(self).__name__}, noise or a norm,", _AROUND)
        if (found := self._as_given.replaced(self.param_groups)) is not None:
            refuse_replaced(*found, f"{type(self).__name__}, noise or a norm,", _AROUND)

    def _stages(self) -> list[Stage]:
        """The passes of this step, in order."""
        raise TypeError(f"{type(self).__name__} must define _stages")

    # Passes.

    def passes(self, scaler: Any = None) -> Iterator[Pass]:
        """The passes of one step, for a loop of your own; call :meth:`step` after it.

        ::

            optimizer.zero_grad()
            for pass_ in nso.passes():
                with pass_:
                    pass_.backward(loss_of(model(x), y))
            nso.step()

        Inside the block the weights are perturbed, gradients add up in ``p.grad`` over micro-batches and passes, and
        under DDP only the last pass communicates. After the loop ``p.grad`` is the method's gradient: clip it, unscale
        it, step. A block that raises leaves the true weights. Inside the block ``state_dict()``, of this optimizer, of
        the base and of the model that was given, is an error: a checkpoint would hold perturbed weights.

        Args:
            scaler: a GradScaler whose scale the loss is multiplied by in ``pass_.backward``; step with
                ``scaler.step(nso)``.

        Raises:
            RuntimeError: where a pass of the loop was not entered with ``with``.
            ValueError: where weights have been sharded since this object was made, and it was given no model, or a host
                has put flat pieces in their place.
        """
        self._abandon()
        self._require_model()
        self._refuse_flat()
        self._ready = False
        self._scaler = scaler
        loop = self._loop()
        self._running = loop
        return loop

    def _loop(self) -> Iterator[Pass]:
        self._begun = False  # whether a pass with a gradient has begun
        stages = self._stages()
        if self._clean_forward and all(s.place is not None for s in stages) and running(self.model):
            # The statistics of the norm layers have to see the true weights once.
            stages.insert(0, Stage(gradient=False, draws=-1))
        defers = hasattr(self.model, "no_sync") and not hasattr(self.model, "set_requires_gradient_sync")
        try:
            for i, stage in enumerate(stages):
                last = i == len(stages) - 1
                current = Pass(self, stage, i, len(stages), sync=last or not defers or self._syncs_early(stage))
                yield current
                if not current.entered:
                    raise RuntimeError("this pass was not taken: put the forward and backward into `with pass_:`")
            self._finish()
        finally:
            self._weights.restore()
            self._weights.forget()
            self._generators.clear()
            self._left, self._running = [], None

    def _syncs_early(self, stage: Stage) -> bool:
        """Whether this pass's gradient has to be that of all processes although it is not the last."""
        return False

    def _finish(self) -> None:
        if self._held != 1.0:
            self._scale_gradients(self._held)
        self._held = 1.0
        for group in self.param_groups:
            group["noise_draws"] += 1
        self._ready = True

    def _abandon(self) -> None:
        """Give up a loop that was left before its end, and what its passes have added up."""
        if self._running is not None:
            for p, _ in self._left:
                p.grad = None
            self._running.close()  # type: ignore[attr-defined]
            self._running = None

    def _begin_pass(self, current: Pass, stack: ExitStack) -> None:
        stage = current.stage
        for p, before in self._left:
            p.grad = before  # also where it was cleared between two passes
        kept = stage.place is not None
        if stage.place is not None:
            stack.callback(Frozen(self.model).restore)
            self._refuse_checkpoints(stack)
            stack.callback(self._weights.restore)
            with torch.no_grad():
                stage.place()
        if stage.gradient:
            self._make_room(current)
        if self._replay:
            if stage.draws in self._generators:
                self._generators[stage.draws].restore()
            else:
                self._generators[stage.draws] = Generators({p.device for g in self.param_groups for p in g["params"]})
        if not current.sync and self.model is not None:
            stack.enter_context(self.model.no_sync())
        if kept and self.model is None and self.param_groups[0]["noise_draws"] == 0 and not self._warned:
            stack.callback(self._watch_statistics().remove)  # in the first step; later ones would say it again
        stack.enter_context(torch.enable_grad() if stage.gradient else torch.no_grad())

    def _refuse_checkpoints(self, stack: ExitStack) -> None:
        """Let nobody, in any thread, ask for a state dict until the true weights are back."""

        def refuse(*_: Any) -> None:
            raise RuntimeError(
                f"state_dict() inside a pass of {type(self).__name__}, where the weights are perturbed: a checkpoint "
                "would hold those. Take it outside of the `with` block, best between two steps"
            )

        # Hooks on whatever holds parameters are met from every module around it, wrapped or not.
        modules = [] if self.model is None else [m for m in self.model.modules() if m._parameters]
        for owner in (self.base, *modules):
            stack.callback(owner.register_state_dict_pre_hook(refuse).remove)

    def _make_room(self, current: Pass) -> None:
        """Let the gradient of this pass add to what earlier passes left, or drop that."""
        # A forward pass at the true weights may come first, and gradients that are there then are of an earlier step.
        later, self._begun = self._begun, True
        weight = current.stage.weight
        if later and self._held == 0.0:
            for p, _ in self._gradients():
                p.grad = None
        elif later and weight not in (0.0, self._held):
            self._scale_gradients(self._held / weight)
        self._held = weight
        self._left = self._gradients() if later else []

    @torch.no_grad()
    def _end_pass(self, current: Pass) -> None:
        """Add what earlier passes left where gradients were cleared inside the block."""
        if not current.gradient:
            return
        for p, before in self._left:
            if p.grad is before:
                continue
            if not current.sync or (hasattr(self.model, "no_sync") and current.count > 1):
                raise RuntimeError(
                    "gradients of earlier passes were cleared inside a pass, before they were averaged over processes; "
                    "clear them before the loop, or with this optimizer's zero_grad()"
                )
            p.grad = before if p.grad is None else before.add_(p.grad)
        self._left = self._gradients()

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Every parameter that has a gradient, with it."""
        return [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def _scale_gradients(self, factor: float) -> None:
        for _, gradient in self._gradients():
            gradient.mul_(factor)

    def _watch_statistics(self) -> Any:
        """Notice running statistics that a perturbed pass moves because no model was given."""

        def hook(module: nn.Module, _: Any) -> None:
            if module.training and module._buffers.get("running_mean") is not None and not self._warned:
                self._warned = True
                warnings.warn(
                    f"{type(self).__name__}: {type(module).__name__} updates its running statistics at perturbed "
                    f"weights; pass model= to {type(self).__name__}, and only clean passes will",
                    UserWarning,
                    stacklevel=2,
                )

        return nn.modules.module.register_module_forward_pre_hook(hook)

    # What hosts need.

    def attach(self, model: nn.Module) -> None:
        """Say which module owns the weights, where a host has wrapped it since (DDP) or ``model=`` was not given."""
        if model is not self.model:
            self._abandon()
            self.model = model
            self._weights = Weights(self.base, model)

    @contextmanager
    def closure_without_gradient(self) -> Iterator[None]:
        """In this block, ``step(closure)`` after a loop of passes calls the closure once and adds no pass to the loop.

        Lightning hands its hooks to a step in this way. Bare ``step(closure)`` takes the closure for the gradient.
        """
        self._hooked = True
        try:
            yield
        finally:
            self._hooked = False

    # The optimizer's interface.

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; after the first pass of a step it does nothing, because gradients add up over passes."""
        if self._running is None or not self._left:
            self.base.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[..., Any] | None = None, forward: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: evaluates the loss and its gradients (clears them, runs forward and backward, returns the loss). It
                is called once for every pass; one that takes an argument is given the :class:`Pass`.
            forward: evaluates the model without gradients, for a pass that only updates running statistics; without
                it the closure does that, at the price of a gradient.

        Returns:
            The mean loss over the passes whose gradients enter the step, or of the clean pass where there is one; None
            without a closure.

        Raises:
            RuntimeError: without a closure and without :meth:`passes` before it, where this step could move weights.
        """
        if closure is not None and self._hooked:
            with torch.enable_grad():
                closure()
            closure = None
        if closure is None:
            if not self._ready and not self._is_dry_run():
                raise RuntimeError(
                    f"{type(self).__name__}.step() needs gradients at perturbed weights. Call step(closure), or run "
                    "`for pass_ in optimizer.passes(): with pass_: ...` before step(); in a Trainer or LightningModule "
                    "use the mixins of mooring.integrations"
                )
            self._ready = False
            self.base.step()
            return None
        if getattr(self.base, "found_inf", None) is not None:
            raise RuntimeError(
                "scaler.step(optimizer, closure) would step on scaled gradients; use "
                "`for pass_ in optimizer.passes(scaler=scaler)`, then scaler.step(optimizer)"
            )
        takes_pass = _takes_argument(closure)
        losses: list[tuple[Pass, Any]] = []
        for current in self.passes():
            with current:
                if current.gradient:
                    losses.append((current, closure(current) if takes_pass else closure()))
                elif forward is not None:
                    forward()
                else:
                    with torch.enable_grad():
                        closure(current) if takes_pass else closure()
                    self.base.zero_grad(set_to_none=True)
        self._ready = False
        self.base.step()
        return self._loss(losses)

    def _loss(self, losses: list[tuple[Pass, Any]]) -> Any:
        clean = [loss for current, loss in losses if current.stage.place is None]
        wanted = clean[:1] or [loss for _, loss in losses]
        if not all(isinstance(x, (Tensor, float, int)) for x in wanted):
            return wanted[0]
        values = [x.detach() if isinstance(x, Tensor) else x for x in wanted]
        return values[0] if len(values) == 1 else sum(values) / len(values)

    def _is_dry_run(self) -> bool:
        """Whether nothing can move: learning rates of 0, or no gradients at all."""
        return not self._gradients() or all(host_value(group["lr"]) == 0 for group in self.param_groups)

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base."""
        for option, value in self._options.items():
            param_group.setdefault(option, self.param_groups[0].get(option, value))
        self._check_group(param_group)
        self.base.add_param_group(param_group)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The base's checkpoint; seed, number of draws and the method's options are in its groups."""
        return self.base.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer, or of the base alone."""
        self._abandon()
        self.base.load_state_dict(state_dict)
        self.add_options(self._options)
        for group in self.param_groups:
            self._check_group(group)

    # A GradScaler that unscales inside the step writes here what the base is to read.

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return bool(getattr(self.base, "_step_supports_amp_scaling", False))

    def __getattr__(self, name: str) -> Any:
        if name in ("grad_scale", "found_inf") and "base" in self.__dict__:
            return getattr(self.base, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("grad_scale", "found_inf"):
            setattr(self.base, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in ("grad_scale", "found_inf"):
            delattr(self.base, name)
        else:
            super().__delattr__(name)

    def __repr__(self) -> str:
        return f"{self._describe()} around\n{self.base!r}"

    def _describe(self) -> str:
        """The method with its options, in one line."""
        return type(self).__name__

    @property
    def gradients_per_step(self) -> int:
        """How many gradient evaluations one step takes."""
        return sum(stage.gradient for stage in self._stages())


def check_size(group: dict[str, Any], name: str) -> None:
    """Raise ValueError unless an option is a finite number >= 0."""
    if not 0 <= group[name] < float("inf"):
        raise ValueError(f"{name} must be a finite number >= 0, got {group[name]!r}")


def _takes_argument(closure: Callable[..., Any]) -> bool:
    try:
        inspect.signature(closure).bind()
    except TypeError:
        return True
    except ValueError:  # a builtin without a signature
        return False
    return False
