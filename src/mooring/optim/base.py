"""The one torch Optimizer subclass: groups, state, checkpoints. What a step computes is in ``mooring.step``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

import torch
import torch.distributed as dist
from torch import Tensor

from mooring.anchors import kinds
from mooring.anchors.held import Held, Rounding, check_shape, fetch, named
from mooring.anchors.names import first, match
from mooring.anchors.sources import digest, write
from mooring.moments.base import Moments
from mooring.optim import common as common_options
from mooring.optim.common import CommonOptions
from mooring.optim.cost import cost
from mooring.optim.plan import Plan
from mooring.optim.pretty import pipeline_text, stages
from mooring.optim.telemetry import summarise
from mooring.step.batch import compensated, state_dtype
from mooring.step.gradients import screen
from mooring.step.pipeline import take_step
from mooring.step.record import Recorder
from mooring.step.rule import Rule
from mooring.step.scalars import host_value
from mooring.step.shards import is_sharded, like_shard, local, local_part, whole

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Optimizer(torch.optim.Optimizer):
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
    grad_norm: Tensor | None

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        moments: Moments,
        rules: Sequence[Rule],
        common: CommonOptions | None = None,
    ) -> None:
        defaults = {**common_options.with_defaults(type(self).__name__, common or {}), **defaults}
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
        if self._moments.scans:
            warn_of_one_parameter(type(self).__name__, self.param_groups)

    def _reset(self) -> None:
        self._plan: Plan | None = None
        # Parameters whose anchor follows the weights until the first step that can move them.
        self._unanchored: set[Tensor] = set()
        self.grad_norm = None
        self._skipped: Tensor | None = None
        # Anchors that files hold.
        self._held = Held(local_part, local)

    @property
    def _anchored(self) -> bool:
        """Whether a rule may read an anchor; other optimizers ignore the options of one."""
        return "anchor" in self.defaults

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
                    f"params: {self._name(group, i)} is complex, and {by_sums[0]} is defined for real weights; "
                    "give it to AdamW or SGD"
                )
            # FSDP version 1 hands out flat pieces: rows, norms and the mean of a whole tensor cannot be seen in them.
            if getattr(p, "_fsdp_flattened", False) and (by_sums or self._moments.scans):
                reader = by_sums[0] if by_sums else "stable weight decay"
                raise ValueError(
                    f"params: {self._name(group, i)} is a flat shard of FSDP version 1, which hides the shapes and "
                    f"sums that {reader} reads; use fully_shard (FSDP2)"
                )

    def _check_common(self, group: dict[str, Any]) -> None:
        common_options.check(group)
        for i, p in enumerate(group["params"]):
            common_options.check_parameter(group, self._name(group, i), p)
        if common_options.draws(group):
            group.setdefault("draws", 0)

    @staticmethod
    def _name(group: dict[str, Any], i: int) -> str:
        names = group.get("param_names")
        return f"parameter {names[i]!r}" if names else f"parameter {i} of its group"

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
        self._refuse_sparse()
        self.grad_norm = None
        plan = self._current_plan()
        if plan.batches or plan.empty:
            fresh = not self.state
            self._fill_state(plan)
            if not (fresh and self._is_dry_run(plan)):
                self._take(plan)
        return loss

    def _take(self, plan: Plan) -> None:
        common_options.check_shared(self.param_groups)
        group = self.param_groups[0]
        found = screen(
            plan.batches,
            group["max_grad_norm"],
            group["non_finite"] == "skip",
            getattr(self, "grad_scale", None),
            getattr(self, "found_inf", None),
        )
        self.grad_norm = found.norm
        if found.skip is not None:
            one = found.skip.to(torch.int64)
            self._skipped = one if self._skipped is None else self._skipped + one
        if found.skip_now:
            return
        self._capture_anchors(plan)
        self._hold_anchors(plan)
        for group in self.param_groups:
            if common_options.draws(group):
                group["draws"] = group.get("draws", 0) + 1
        for batch in plan.batches:
            batch.begin(found.skip if found.undecided else None)
        take_step(plan.batches, self._recorder)

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

    def _refuse_sparse(self) -> None:
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__} does not take sparse gradients: {self._name(group, i)} has one; "
                        "build the embedding with sparse=False"
                    )

    def _current_plan(self) -> Plan:
        signature = Plan.signature(self.param_groups, self._moments, self._rules)
        if self._plan is None or self._plan.key != signature:
            self._plan = Plan(signature, self.param_groups, self._moments, self._rules)
        return self._plan

    def _fill_state(self, plan: Plan) -> None:
        for p, group in plan.empty:
            self._fill(p, group)
        for batch in plan.batches:
            for p, group in zip(batch.owners, batch.groups):
                self._fill(p, group)
            batch.states = [self.state[p] for p in batch.owners]

    def _fill(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        if not all(name in state for name in self._moments.state_names(group)):
            kept = state_dtype(p.dtype, group.get("state_dtype", "float32"))
            self._moments.fill(state, group, torch.zeros_like(p, dtype=kept, memory_format=torch.preserve_format))
        if compensated(p.dtype, group) and "compensation" not in state:
            state["compensation"] = torch.zeros_like(p, dtype=torch.int16, memory_format=torch.preserve_format)
        if not self._anchored or p in self._unanchored:
            return
        if kinds.to_capture(group) or (kinds.in_state(group) and "anchor" not in state):
            if group["anchor"] == "given":
                raise RuntimeError(kinds.NOT_GIVEN.format(what=f"a parameter of shape {tuple(p.shape)}"))
            if state["step"] > 0:
                raise RuntimeError(kinds.MISSING.format(name=type(self).__name__))
            if kinds.in_state(group):
                state["anchor"] = p.detach().to(kinds.stored_dtype(group, p.dtype), copy=True)
            if p.numel():
                self._unanchored.add(p)

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

    def _capture_anchors(self, plan: Plan) -> None:
        if not self._unanchored:
            return
        rounded = Rounding()
        for batch in plan.batches:
            for p, group in zip(batch.owners, batch.groups):
                if p in self._unanchored and kinds.in_state(group) and float(group["lr"]) != 0:
                    anchor = self.state[p]["anchor"]
                    anchor.copy_(p)
                    rounded.add(local(p.detach()), local(anchor))
                    self._unanchored.discard(p)
        rounded.announce()
        self._capture_into_files(plan)

    def _capture_into_files(self, plan: Plan) -> None:
        """Write the weights of all groups that share a file when the first of them can move."""
        moving = [(p, g) for batch in plan.batches for p, g in zip(batch.owners, batch.groups) if kinds.to_capture(g)]
        for file in dict.fromkeys(group["anchor_file"] for _, group in moving if float(group["lr"]) != 0):
            groups = [(i, g) for i, g in enumerate(self.param_groups) if kinds.to_capture(g)]
            groups = [(i, g) for i, g in groups if g["anchor_file"] == file]
            members = [member for i, group in groups for member in named(group, i)]
            tensors = {name: p.detach() for name, p in members}
            if len(tensors) < len(members):
                raise ValueError(f"anchor_file={file!r}: two parameters have the same name; give each group its file")
            sha256 = _write_once(Path(file), tensors)
            for _, group in groups:
                group["anchor_hash"] = sha256
            self._unanchored.difference_update(p for _, p in members)
            for batch in plan.batches:
                batch.held = None

    def _hold_anchors(self, plan: Plan) -> None:
        """Give each batch the anchors that are not in the state."""
        for batch in plan.batches:
            if not batch.anchored or kinds.location(batch.group) is None:
                continue
            if kinds.to_capture(batch.group):  # until then the anchor follows the weights
                batch.held = [local(p.detach()) for p in batch.owners]
            elif batch.held is None:
                batch.held = self._held.of(batch.owners, batch.group, self.param_groups)

    def _find_anchors(self, groups: Sequence[dict[str, Any]]) -> None:
        if self._anchored:
            self._held.find(groups)

    def anchor_of(self, p: Tensor) -> Tensor | None:
        """What a parameter is held to, wherever that is kept; never to be written on.

        Args:
            p: a parameter of this optimizer.

        Returns:
            A tensor like ``p``, sharded as it is; None where its group is free or its anchor is not captured yet.
            Reading it costs a copy for every ``anchor_store`` other than ``"device"``.

        Raises:
            ValueError: for a tensor that is no parameter of this optimizer, or a file that is missing or has changed.

        Example:
            >>> import torch, mooring as mo
            >>> weight = torch.nn.Parameter(torch.ones(2))
            >>> mo.AdamSPD([weight], anchor="zero").anchor_of(weight)
            tensor([0., 0.])
        """
        groups = [group for group in self.param_groups if any(q is p for q in group["params"])]
        if not groups:
            raise ValueError(f"anchor_of: a tensor of shape {tuple(p.shape)} is no parameter of this optimizer")
        [group] = groups
        if not self._anchored or group["anchor"] is None:
            return None
        if group["anchor"] == "zero":
            return torch.zeros_like(p.detach())
        if kinds.in_state(group):
            kept = self.state[p].get("anchor") if p in self.state and p not in self._unanchored else None
            return None if kept is None else kept.to(p.dtype)
        if kinds.to_capture(group):
            return None
        held = self._held.of([p], group, self.param_groups)
        return like_shard(fetch(held, local(p).device, p.dtype)[0], p)

    def anchor_to(self, state_dict: Mapping[str, Tensor]) -> None:
        """Anchor the weights to a state dict instead of what they are at the first step.

        Every group with ``anchor="capture"`` takes its anchors from the state dict by name, and its ``anchor`` becomes
        ``"given"``. From here on they are like captured ones: state, saved with it, needed on a resume. Groups anchored
        at zero, to a file or to nothing stay so. Costs what a captured anchor costs.

        Args:
            state_dict: the pretrained weights; names as in :func:`mooring.anchors.names.match`.

        Raises:
            ValueError: without names, for a parameter that the state dict lacks, or of another shape. Nothing is
                changed then.

        Example:
            >>> import torch, mooring as mo
            >>> model = torch.nn.Linear(4, 2)
            >>> pretrained = {name: value + 0.1 for name, value in model.state_dict().items()}
            >>> opt = mo.AdamSPD(model.named_parameters(), lr=1e-3)
            >>> opt.anchor_to(pretrained)
        """
        if not self._anchored:
            raise ValueError(f"anchor_to: {type(self).__name__} has no rule that reads an anchor")
        groups = [g for g in self.param_groups if g["anchor"] in ("capture", "given")]
        members: list[tuple[str, Tensor, dict[str, Any]]] = []
        for group in groups:
            kinds.check({**group, "anchor": "given"})
            if "param_names" not in group:
                raise ValueError(
                    "anchor_to: a state dict is read by name, and these parameters have none: pass "
                    "model.named_parameters() or mo.param_groups(model) to the optimizer"
                )
            members += [(name, p, group) for name, p in zip(group["param_names"], group["params"])]
        keys = match([name for name, _, _ in members], state_dict, "state_dict")
        missing = [name for name, _, _ in members if name not in keys]
        if missing:
            raise ValueError(
                f"anchor_to: the state dict has no {first(missing)}; it has {first(state_dict)}. Put new parameters "
                "into a group with anchor=None, as param_groups(model, anchor=state_dict) does"
            )
        for name, p, _ in members:
            check_shape(name, tuple(p.shape), tuple(state_dict[keys[name]].shape), "state_dict")
        rounded = Rounding()
        with torch.no_grad():
            for name, p, group in members:
                anchor = torch.empty_like(p.detach(), dtype=kinds.stored_dtype(group, p.dtype))
                value, part = whole(state_dict[keys[name]].detach()), local_part(p)
                value = (value if part is None else value[part]).to(local(anchor).device, p.dtype)
                local(anchor).copy_(value)
                rounded.add(value, local(anchor))
                self._put_anchor(p, group, anchor)
        for group in groups:
            group["anchor"] = "given"
        rounded.announce()

    def _put_anchor(self, p: Tensor, group: dict[str, Any], anchor: Tensor) -> None:
        if "anchor" not in self.state[p]:
            self.state[p]["anchor"] = anchor
            self._fill(p, group)  # all state at once: checkpointers take one that is not empty for complete
        self.state[p]["anchor"] = anchor
        self._unanchored.discard(p)

    def init_state(self) -> None:
        """Allocate the state of every parameter now, as checkpointers want it; changes no weight and no later step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    self._fill(p, group)

    # Telemetry.

    def record(self, every: int | None = 10, *, drift: bool = False) -> None:
        """Record the next step and then one of ``every`` steps, for :meth:`telemetry`.

        A recorded step measures itself in passes of its own, so recording changes no bit of weights or state. It makes
        some forty passes over each batch and holds up to six copies of it meanwhile; other steps cost nothing more.
        Recording belongs to this object: it is no part of checkpoints, outlives ``load_state_dict``, and a copy or an
        unpickled optimizer does not record.

        Args:
            every: distance of recorded steps; None stops recording and forgets what was recorded.
            drift: measure drift of tensors without an anchor too, from where they are at their first recorded step.
                Keeps a copy of those tensors.

        Raises:
            ValueError: if ``every`` is not a whole number above 0.

        Example:
            >>> import torch, mooring as mo
            >>> model = torch.nn.Linear(4, 2)
            >>> opt = mo.AdamSPD(model.parameters(), lr=1e-3)
            >>> opt.record(every=10)
            >>> model(torch.ones(3, 4)).sum().backward()
            >>> opt.step()
            >>> sorted(opt.telemetry())[-1]
            'model/weights/norm'
        """
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(f"every must be a whole number above 0, or None to stop recording, got {every!r}")
        self._recorder.start(every, drift)

    @property
    def recorded(self) -> bool:
        """Whether the latest step was recorded."""
        return self._recorder.fresh

    def telemetry(self, per_tensor: bool = False) -> dict[str, float]:
        """What the last recorded step did, as plain numbers: ``group/rule/metric`` -> value.

        Fetched here, in one transfer from the device; a second call before the next step costs none. The first part of
        a name is ``model`` or the group: its ``name``, else ``group0``. What a step gives no value for, such as the
        direction of a tensor that is zero, is left out. docs/telemetry.md has every metric's formula.

        Counters of rare events, such as steps on which the cap of stable decay bound, count every step since the
        optimizer was made, and are there without :meth:`record`.

        Args:
            per_tensor: also ``group/rule/metric/parameter`` of every tensor that took part in the step.

        Raises:
            RuntimeError: if :meth:`record` was not called and nothing was counted.
        """
        if self._recorder.every is None and not self._recorder.counts:
            raise RuntimeError(f"{type(self).__name__} records nothing yet; call record(every=10) before the steps")
        tables, counts = self._recorder.fetch()
        return summarise(tables, counts, self.param_groups, self._recorder.last, per_tensor)

    # Checkpoints and copies.

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_moments": self._moments, "_rules": self._rules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_recorder", Recorder())  # torch comes here when it loads a checkpoint, too
        self._reset()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)  # checkpoints of torch's optimizers and of older versions lack some
        self._unanchored = self._still_unanchored()

    def _still_unanchored(self) -> set[Tensor]:
        """Parameters whose anchor in the state is from before the first step."""
        follow = [p for group in self.param_groups if group.get("anchor") == "capture" for p in group["params"]]
        states = ((p, self.state[p]) for p in follow if p in self.state)
        return {p for p, s in states if "anchor" in s and not s.get("step", 1) > 0}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer or of torch's with the same moments.

        torch casts all state to the parameter's type; here moments come back in the type they are kept in, so a bf16
        model resumes bitwise. Loaded tensors are copies: the checkpoint and the optimizer share nothing.

        Raises:
            ValueError: for a checkpoint from the middle of training that lacks the anchor, or whose anchor's file is
                missing or has changed. Nothing is loaded then.
        """
        final: dict[str, Any] = {}
        held = [self._held]

        def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            given, held[0] = self._with_anchors(given)
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

    def _saved_states(self, state_dict: dict[str, Any]) -> Iterable[tuple[dict[str, Any], Tensor, dict[str, Any]]]:
        """(own group, parameter, saved state) for every parameter that has a saved state."""
        for own, saved in zip(self.param_groups, state_dict["param_groups"]):
            for p, index in zip(own["params"], saved["params"]):
                if index in state_dict["state"]:
                    yield own, p, state_dict["state"][index]

    def _with_anchors(self, state_dict: dict[str, Any]) -> tuple[dict[str, Any], Held]:
        """The checkpoint with complete options of its anchors, and the files that hold them, verified.

        Options that the checkpoint does not have stay. Of two paths to a file ours is taken, because files move between
        runs; what it must hold is what the checkpoint says.
        """
        held = Held(local_part, local)
        saved_groups = state_dict["param_groups"]
        same = [len(g["params"]) for g in saved_groups] == [len(g["params"]) for g in self.param_groups]
        if not self._anchored or not same:  # torch says what is wrong with the groups
            return state_dict, held
        merged: list[dict[str, Any]] = []
        for own, saved in zip(self.param_groups, saved_groups):
            ours = {name: own[name] for name in ("anchor", *kinds.OPTIONS) if name in own}
            group = {**(kinds.OPTIONS if "anchor" in saved else ours), **saved}
            if kinds.is_source(group) and kinds.is_source(ours):
                group["anchor"] = ours["anchor"]
            if kinds.on_file(group) and ours["anchor_file"] is not None:
                group["anchor_file"] = ours["anchor_file"]
            for index in saved["params"]:
                state = state_dict["state"].get(index, {})
                lacks = kinds.to_capture(group) or (kinds.in_state(group) and "anchor" not in state)
                if lacks and state and float(state.get("step", 1)) > 0:
                    raise ValueError("state_dict: " + kinds.MISSING.format(name=self._title()))
            merged.append(group)
        names = [{**own, **group, "params": own["params"]} for own, group in zip(self.param_groups, merged)]
        held.find(names)
        held.verify(names)
        for group, found in zip(merged, names):
            group["anchor_hash"] = found["anchor_hash"]
        return {**state_dict, "param_groups": merged}, held

    def _title(self) -> str:
        return type(self).__name__

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


def _write_once(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write captured anchors and return the file's sha256; where they are sharded, rank 0 writes for all."""
    together = any(is_sharded(t) for t in tensors.values())
    outcome: list[str | None] = [None, None]
    try:
        write(path, tensors, whole, keep=not together or dist.get_rank() == 0)
        outcome[0] = digest([path]) if path.exists() else None
    except (ValueError, OSError) as error:
        if not together:
            raise
        outcome[1] = str(error)
    if together:
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise ValueError(outcome[1])
    return str(outcome[0])


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


def warn_of_one_parameter(name: str, groups: Sequence[dict[str, Any]]) -> None:
    """Say that a mean over the model is none where a host makes one optimizer for each parameter."""
    if sum(len(group["params"]) for group in groups) == 1:
        warnings.warn(
            f"{name} got one parameter, so its mean over the model is that parameter's own. Where a host makes an "
            "optimizer for each parameter (steps inside the backward pass, layer-wise or offloaded steps), use a "
            "method without such a mean, AdamW or AdamSPD",
            UserWarning,
            stacklevel=4,
        )
