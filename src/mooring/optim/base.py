"""The one torch Optimizer subclass: groups, state, checkpoints. What a step computes is in ``mooring.step``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor

from mooring.anchors import kinds
from mooring.moments.base import Moments
from mooring.optim import common as common_options
from mooring.optim.anchored import Anchored
from mooring.optim.common import CommonOptions
from mooring.optim.cost import cost
from mooring.optim.given import (
    Given,
    called,
    flattened_by,
    reads_model,
    reads_whole,
    refuse_flat,
    refuse_inside_backward,
    refuse_part,
    refuse_replaced,
)
from mooring.optim.plan import Plan
from mooring.optim.pretty import pipeline_text, stages
from mooring.optim.recorded import Recorded
from mooring.step.batch import Batch, compensated, state_dtype
from mooring.step.gradients import Screen, screen
from mooring.step.pipeline import Scan, take_step
from mooring.step.processes import Processes
from mooring.step.record import Recorder
from mooring.step.rule import Rule
from mooring.step.scalars import host_value

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Optimizer(Anchored, Recorded):
    """Moments, then rules, then one affine move: the frame of every optimizer here.

    Weights outside ``step`` are always the true weights and ``p.grad`` is never written. State keys are torch's, values
    are parameter-shaped or 0-dim tensors, groups hold numbers and strings, so every checkpoint format that takes
    torch's AdamW takes these.

    Args:
        params: parameters, ``named_parameters()``, or groups.
        defaults: group options and their defaults.
        moments: how the update direction is made.
        rules: what is done with it, in order.
        common: the options that every optimizer takes.

    Attributes:
        grad_norm: after a step with ``max_grad_norm`` or ``non_finite="skip"``, the norm of the unscaled gradients
            before clipping, 0-dim float64 on their device; reading its value waits for the device. Else None.
    """

    _constructing = False
    _one_parameter = False
    grad_norm: Tensor | None

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        moments: Moments,
        rules: Sequence[Rule],
        common: CommonOptions | None = None,
    ) -> None:
        of_groups, self._one_parameter = common_options.split_off_one_parameter(common or {})
        self._processes = Processes(of_groups.pop("process_group", None))
        defaults = {**common_options.with_defaults(type(self).__name__, of_groups), **defaults}
        self._as_given = Given([])
        self._moments, self._rules = moments, tuple(rules)
        self._recorder = Recorder()
        self._reset()
        for rule in self._rules:
            defaults = {**rule.options(), **defaults}
        if any(rule.scope == "row" for rule in self._rules):
            defaults = {"row_dim": 0, **defaults}
        if "anchor" in defaults:
            defaults = {**kinds.OPTIONS, **defaults}
        self._constructing = True
        super().__init__(params, defaults)
        self._constructing = False
        self._find_anchors(self.param_groups)
        self._refuse_part()

    def _reset(self) -> None:
        self._plan: Plan | None = None
        self._reset_anchors()
        self.grad_norm = None
        self._skipped: Tensor | None = None

    # Groups.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not give take the constructor's values.

        Raises:
            ValueError: an option out of range, or a parameter that this optimizer's rules cannot serve.
        """
        before = len(self.param_groups)
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
            common_options.check_shared(self.param_groups)
            if not self._constructing:  # names are matched all together, so not before all groups are there
                self._find_anchors(self.param_groups)
        except (ValueError, ImportError):
            del self.param_groups[before:]
            raise
        self._as_given.add(self.param_groups[-1])

    def _check_group(self, group: dict[str, Any]) -> None:
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"lr must be a number or a tensor of one element, got a tensor of shape {tuple(lr.shape)}")
        number = host_value(lr)
        if number is not None and not 0 <= number < float("inf"):
            raise ValueError(f"lr must be a finite number >= 0, got {lr!r}")
        self._moments.check(group)
        self._check_common(group)
        for rule in self._rules:
            rule.check(group)
        if self._anchored:
            kinds.check(group)
        if "row_dim" in group and group["row_dim"] not in (0, 1):
            raise ValueError(f"row_dim must be 0 or 1, got {group['row_dim']!r}")
        by_sums = [type(r).__name__ for r in self._rules if r.scope in ("row", "tensor")]
        for i, p in enumerate(group["params"]):
            if p.is_complex() and by_sums:
                raise ValueError(
                    f"params: {called(group, i)} is complex, and {by_sums[0]} is defined for real weights; "
                    "give it to AdamW or SGD"
                )
        self._refuse_flat(group)

    def _refuse_flat(self, group: dict[str, Any]) -> None:
        stage = reads_whole(group, self._moments, self._rules)
        for i, p in enumerate(group["params"] if stage else ()):
            if (host := flattened_by(p)) is not None:
                refuse_flat(called(group, i), host, str(stage))

    def _refuse_replaced(self) -> None:
        """Look at the parameters again: hosts flatten them, or put flat pieces in their place, after construction."""
        found = self._as_given.replaced(self.param_groups)
        for group in self.param_groups:
            self._refuse_flat(group)
            stage = reads_whole(group, self._moments, self._rules)
            if found is not None and stage is not None:
                refuse_replaced(*found, stage)

    def _refuse_part(self) -> None:
        """Refuse some of a model's parameters where the recipe reads all of them."""
        if (stage := self._reads_model()) is not None:
            refuse_part(type(self).__name__, sum(len(group["params"]) for group in self.param_groups), stage)

    def _reads_model(self) -> str | None:
        """The first stage that reads the whole model; None where there is none, or one parameter is the model."""
        if self._one_parameter or self._processes.several_stages:
            return None
        return next((s for group in self.param_groups if (s := reads_model(group, self._moments)) is not None), None)

    def _check_common(self, group: dict[str, Any]) -> None:
        common_options.check(group)
        for i, p in enumerate(group["params"]):
            common_options.check_parameter(group, called(group, i), p)
        if common_options.draws(group):
            group.setdefault("draws", 0)

    # The step.

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: evaluates the loss and its gradients again; run once, with gradients enabled.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: for a sparse gradient, before anything was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._recorder.fresh = False
        gradients = [[p.grad for p in group["params"]] for group in self.param_groups]
        self._refuse_sparse(gradients)
        self.grad_norm = None
        plan = self._current_plan(gradients)
        if plan.batches or plan.empty:
            fresh = not self.state
            self._fill_state(plan)
            if not (fresh and self._is_dry_run(plan)):
                self._take(plan)
                return loss
        if self._processes.several_stages:
            self._attend()
        return loss

    def _screen(self, batches: Sequence[Batch]) -> Screen:
        common_options.check_shared(self.param_groups)
        group = self.param_groups[0]
        found = screen(
            batches,
            group["max_grad_norm"],
            group["non_finite"] == "skip",
            self._processes,
            getattr(self, "grad_scale", None),
            getattr(self, "found_inf", None),
        )
        self.grad_norm = found.norm
        if found.skip is not None:
            one = found.skip.to(torch.int64)
            self._skipped = one if self._skipped is None else self._skipped + one
        return found

    def _attend(self) -> None:
        """Take part in the sums over the model on a stage that has nothing to add; the others wait for it."""
        if not self._screen([]).skip_now and self._moments.scans:
            Scan([], self._moments, self._processes).finish([])

    def _take(self, plan: Plan) -> None:
        found = self._screen(plan.batches)
        if found.skip_now:
            return
        self._capture_anchors(plan)
        self._hold_anchors(plan)
        for group in self.param_groups:
            if common_options.draws(group):
                group["draws"] = group.get("draws", 0) + 1
        for batch in plan.batches:
            batch.begin(found.skip if found.undecided else None)
        take_step(plan.batches, self._moments, self._recorder, self._processes)

    @property
    def process_group(self) -> Any:
        """The group given as ``process_group=``; None where there is none. A pickle does not hold it: set it again."""
        return self._processes.group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._processes = Processes(group)
        self._plan = None

    @property
    def skipped_steps(self) -> int:
        """How many steps changed nothing because gradients were not finite, since this object was made or loaded.

        Waits for the device.
        """
        return 0 if self._skipped is None else int(self._skipped)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler leaves unscaling and skipping to this step, which then waits for nothing.

        Only where the step was asked to handle gradients: trainers that clip by themselves refuse an optimizer that
        says yes.
        """
        group = self.param_groups[0]
        return bool(group["max_grad_norm"] is not None or group["non_finite"] == "skip")

    def _refuse_sparse(self, gradients: Sequence[Sequence[Tensor | None]]) -> None:
        for group, given in zip(self.param_groups, gradients):
            if {g.layout for g in given if g is not None} <= {torch.strided}:
                continue
            for i, g in enumerate(given):
                if g is not None and g.layout != torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__} does not take sparse gradients: {called(group, i)} has one; "
                        "build the embedding with sparse=False"
                    )

    def _current_plan(self, gradients: Sequence[Sequence[Tensor | None]]) -> Plan:
        depends = self.param_groups, gradients, self._moments, self._rules
        if self._plan is None or not self._plan.fits(*depends):
            self._refuse_replaced()
            if (stage := self._reads_model()) is not None:
                refuse_inside_backward(type(self).__name__, stage)
            self._plan = Plan(*depends)
            self._processes.know([p for group in self.param_groups for p in group["params"]])
        return self._plan

    def _fill_state(self, plan: Plan) -> None:
        if plan.filled is not None and plan.filled == list(map(id, self.state.values())):
            return
        for p, group in plan.empty:
            self._fill(p, group)
        for batch in plan.batches:
            for p, group in zip(batch.owners, batch.groups):
                self._fill(p, group)
            batch.states = [self.state[p] for p in batch.owners]
        plan.filled = list(map(id, self.state.values()))

    def _fill(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        if not all(name in state for name in self._moments.state_names(group)):
            kept = state_dtype(p.dtype, group.get("state_dtype", "float32"))
            self._moments.fill(state, group, torch.zeros_like(p, dtype=kept, memory_format=torch.preserve_format))
        if compensated(p.dtype, group) and "compensation" not in state:
            state["compensation"] = torch.zeros_like(p, dtype=torch.int16, memory_format=torch.preserve_format)
        self._fill_anchor(p, group)

    def _is_dry_run(self, plan: Plan) -> bool:
        """Whether this is a checkpointer's way of asking for the shape of our state.

        torch.distributed.checkpoint steps a fresh optimizer with zero gradients and lr 0. Counting that step would
        change the bias corrections of the real ones. Reading the gradients waits for the device, which happens only
        here: on a first step at lr 0.
        """
        if any(host_value(g["lr"]) != 0 for b in plan.batches for g in b.groups):
            return False
        moved = False
        for batch in plan.batches:
            moved = batch.any_gradient() or moved  # every process asks for every batch
        return not moved

    def init_state(self) -> None:
        """Allocate the state of every parameter now, as checkpointers want it; changes no weight and no later step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    self._fill(p, group)

    # Checkpoints and copies.

    def __getstate__(self) -> dict[str, Any]:
        own = {"_moments": self._moments, "_rules": self._rules, "_one_parameter": self._one_parameter}
        return {**super().__getstate__(), **own, "_processes": self._processes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_processes", Processes())
        self.__dict__.setdefault("_recorder", Recorder())  # torch comes here when it loads a checkpoint, too
        if "_as_given" not in self.__dict__:
            self._as_given = Given(self.param_groups)
        self._reset()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)  # checkpoints of torch's optimizers and of older versions lack some
        self._unanchored = self._still_unanchored()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer or of torch's with the same moments.

        torch casts all state to the parameter's type; here moments come back in the type they are kept in, so a bf16
        model resumes bitwise. Loaded tensors are copies: the checkpoint and the optimizer share nothing.

        Raises:
            ValueError: for a checkpoint from the middle of training that lacks the anchor, or whose anchor's file is
                missing or has changed. Nothing is loaded then.
        """
        self._refuse_replaced()
        final: dict[str, Any] = {}
        held = [self._held]

        def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            given, held[0] = self._with_anchors(given)
            given = self._with_own_backend(given)
            final.update(given)
            return given

        handle = self.register_load_state_dict_pre_hook(check)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self._restore_types(final)
        self._held = held[0]
        for group in self.param_groups:
            self._check_group(group)
        common_options.check_shared(self.param_groups)

    def _with_own_backend(self, given: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint with this optimizer's choice of a backend, which belongs to the machine and not to the run."""
        saved = given["param_groups"]
        own = [group.get("backend") for group in self.param_groups]
        if len(own) != len(saved):  # torch says what is wrong with the groups
            return given
        return {**given, "param_groups": [{**group, "backend": b} for group, b in zip(saved, own)]}

    def _saved_states(self, state_dict: dict[str, Any]) -> Iterable[tuple[dict[str, Any], Tensor, dict[str, Any]]]:
        """(own group, parameter, saved state) for every parameter that has a saved state."""
        for own, saved in zip(self.param_groups, state_dict["param_groups"]):
            for p, index in zip(own["params"], saved["params"]):
                if index in state_dict["state"]:
                    yield own, p, state_dict["state"][index]

    def _restore_types(self, state_dict: dict[str, Any]) -> None:
        for group, p, saved in self._saved_states(state_dict):
            state = cast("dict[str, Any]", self.state[p])
            for name, value in saved.items():
                if not isinstance(value, Tensor) or name == "step":
                    continue
                own = state[name]
                if name in self._moments.state_names({**group, "amsgrad": True}):
                    wide = name in self._moments.always_wide
                    dtype = state_dtype(p.dtype, "float32" if wide else group.get("state_dtype", "float32"))
                else:
                    dtype = value.dtype
                # From the checkpoint itself: what torch loaded has been rounded to the parameter's type.
                state[name] = value.detach().to(device=own.device, dtype=dtype, copy=True)
            # A buffer without a count (torch's SGD keeps none) has seen at least one step.
            state["step"] = torch.tensor(float(saved.get("step", 1)), dtype=torch.float32)
            self._moments.loaded(state)
        self._unanchored = self._still_unanchored()

    # For people.

    def stages(self, group: int = 0) -> list[str]:
        """What a step does to one parameter group, in order and in words: the line that ``print(optimizer)`` shows.

        Args:
            group: the index of the group.

        Example:
            >>> import torch, mooring as mo
            >>> mo.AdamW(torch.nn.Linear(2, 2).parameters()).stages()[-2:]
            ['decoupled decay(weight_decay=0.01, toward zero)', 'step']
        """
        return stages(self.param_groups[group], self._moments, self._rules)

    def __repr__(self) -> str:
        return pipeline_text(type(self).__name__, self.param_groups, self._moments, self._rules, cost(self))


def announce_anchored_decay(name: str, groups: Sequence[dict[str, Any]]) -> None:
    """Say once what a positive weight decay means to an anchored optimizer."""
    decays = sorted({g["weight_decay"] for g in groups if g["weight_decay"] != 0 and g.get("anchor") is not None})
    if decays:
        warnings.warn(
            f"{name}: weight_decay={decays[0]:g} decays toward the anchor (the pretrained weights), not toward zero; "
            "selective projection is set by strength, and needs no weight_decay",
            UserWarning,
            stacklevel=3,
        )
