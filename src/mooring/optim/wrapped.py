"""Rules on top of any torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.anchors import kinds
from mooring.anchors.held import Rounding
from mooring.moments.displacement import Displacement
from mooring.optim.around import Around, required
from mooring.optim.base import Optimizer
from mooring.optim.compose import in_order
from mooring.optim.plan import Plan
from mooring.rules.decay import CoupledDecay, Decay
from mooring.step.pipeline import take_step
from mooring.step.rule import Rule
from mooring.step.shards import local


def wrap(
    base: torch.optim.Optimizer,
    rules: Sequence[Rule],
    anchor: str | None = "capture",
    anchor_store: str = "device",
    anchor_file: str | None = None,
) -> Wrapped:
    """Apply rules to the step of any torch optimizer: Muon with selective projection, 8-bit Adam with an anchor.

    The wrapped step is taken as it is; what it did, ``u = p_before - p_after``, is the update direction that the rules
    see, with coefficient 1. Where a rule does nothing, the weights are the wrapped optimizer's to the bit.

    ``wrap(torch.optim.Adam(params), [SelectiveProjection()])`` is :class:`mooring.AdamSPD` within rounding. Costs a
    copy of the weights during the step, beside what the rules read.

    Args:
        base: the optimizer. Its groups, state and defaults are shared, not copied: one learning rate, one checkpoint.
        rules: RadialProjection, TrustRatio, SelectiveProjection; a decay where ``base`` has no ``weight_decay`` itself.
        anchor: where a rule needs one: ``"capture"``, ``"zero"``, None, or where the pretrained weights are: a
            safetensors file, a folder of them or of torch.distributed.checkpoint, or a hub id; see docs/anchors.md.
        anchor_store: where the anchor is kept: ``"device"``, ``"bfloat16"``, ``"cpu"`` or ``"mmap"``.
        anchor_file: the file to which a captured anchor is written with the stores ``"cpu"`` and ``"mmap"``.

    Raises:
        TypeError: if ``base`` is not a torch optimizer, or something in ``rules`` is not a rule.
        ValueError: for rules that need what a finished step no longer shows: coupled and stable decay.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(8, 4, bias=False)
        >>> base = torch.optim.Muon(model.parameters(), lr=0.02)
        >>> opt = mo.wrap(base, rules=[mo.SelectiveProjection(1.0)])
        >>> model(torch.ones(2, 8)).square().sum().backward()
        >>> opt.step()
    """
    return Wrapped(base, rules, dict(anchor=anchor, anchor_store=anchor_store, anchor_file=anchor_file))


class Wrapped(Around, Optimizer):  # type: ignore[override]
    """What :func:`wrap` returns. Its checkpoints are the wrapped optimizer's, with the anchor in the state."""

    # Anchors from before the first step; they enter the state after it.
    _given: dict[Tensor, Tensor]

    def __init__(self, base: torch.optim.Optimizer, rules: Sequence[Rule], anchor: dict[str, Any]) -> None:
        base = required(base)
        checked = in_order(rules)
        name = type(base).__name__
        for rule in checked:
            if isinstance(rule, CoupledDecay) or rule.needs_stable_scale:
                raise ValueError(
                    f"rules: {type(rule).__name__} acts inside the moments, which a wrapped step no longer shows; "
                    f"use the weight_decay of {name}, or a base of mooring's own"
                )
            if isinstance(rule, Decay) and any("weight_decay" in group for group in base.param_groups):
                raise ValueError(
                    f"rules: {name} has an option weight_decay itself; set it there and drop {type(rule).__name__}"
                )
        options: dict[str, Any] = {}
        for rule in checked:
            options = {**rule.options(), **options}
        if any(rule.scope == "row" for rule in checked):
            options["row_dim"] = 0
        if any(rule.needs_anchor for rule in checked):
            options |= {**kinds.OPTIONS, **anchor}
        self.__setstate__({"base": base, "_moments": Displacement(name), "_rules": tuple(checked), "_given": {}})
        self.add_options(options)
        for group in self.param_groups:
            self._check_group(group)
        self._find_anchors(self.param_groups)

    @override
    def _check_common(self, group: dict[str, Any]) -> None:
        """Gradients, rounding and moments are the wrapped optimizer's business."""

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return False

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "_moments": self._moments,
            "_rules": self._rules,
            "_given": self._given,
            "_processes": self._processes,
        }

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
            self._find_anchors(self.param_groups)
        except (ValueError, ImportError):
            del self.param_groups[-1]
            raise
        self._as_given.add(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let the wrapped optimizer take its step, then apply the rules to what it did.

        Args:
            closure: evaluates the loss and its gradients again; run once, with gradients enabled.

        Returns:
            What the closure returned, else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._recorder.fresh = False
        gradients = [[p.grad for p in group["params"]] for group in self.param_groups]
        self._refuse_sparse(gradients)
        plan = self._current_plan(gradients)
        new = self._missing_anchors(plan)
        self._capture_anchors(plan)
        self._hold_anchors(plan)
        for batch in plan.batches:
            batch.look_up()
            batch.before = [p.to(batch.dtype, copy=True) for p in batch.params]
        try:
            self.base.step()
            # Only now: most optimizers take a state that is not empty for one that they have made.
            for p, (anchor, moves) in new.items():
                self.state[p]["anchor"] = anchor
                self._given.pop(p, None)
                if not moves:
                    self._unanchored.add(p)
            for batch in plan.batches:
                batch.states = [self.state[p] for p in batch.owners]
            take_step(plan.batches, self._moments, self._recorder, self._processes)
        finally:
            for batch in plan.batches:
                batch.before = None
        return loss

    def _missing_anchors(self, plan: Plan) -> dict[Tensor, tuple[Tensor, bool]]:
        """Weights to become anchors after this step, and whether its learning rate lets it move them."""
        new: dict[Tensor, tuple[Tensor, bool]] = {}
        rounded = Rounding()
        members = [member for batch in plan.batches for member in zip(batch.owners, batch.groups)]
        for p, group in [*members, *plan.empty]:
            state = self.state.get(p, {})
            if not self._anchored or p in self._unanchored:
                continue
            if p in self._given:
                new[p] = self._given[p], True
            elif kinds.to_capture(group) or (kinds.in_state(group) and "anchor" not in state):
                if group["anchor"] == "given":
                    raise RuntimeError(kinds.NOT_GIVEN.format(what=f"a parameter of shape {tuple(p.shape)}"))
                if state and float(state.get("step", 1)) > 0:
                    raise RuntimeError(kinds.MISSING.format(name=self._title()))
                if kinds.to_capture(group):
                    self._unanchored.add(p)
                    continue
                moves = float(group["lr"]) != 0
                anchor = p.detach().to(kinds.stored_dtype(group, p.dtype), copy=True)
                if moves:
                    rounded.add(local(p.detach()), local(anchor))
                new[p] = anchor, moves
        rounded.announce()
        return new

    @override
    def anchor_of(self, p: Tensor) -> Tensor | None:
        return self._given[p].to(p.dtype) if p in self._given else super().anchor_of(p)

    @override
    def _put_anchor(self, p: Tensor, group: dict[str, Any], anchor: Tensor) -> None:
        if self.state.get(p):
            self.state[p]["anchor"] = anchor
        else:
            self._given[p] = anchor
        self._unanchored.discard(p)

    @override
    def _title(self) -> str:
        return f"wrap({type(self.base).__name__})"

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer; the wrapped one's own ``load_state_dict`` does the work.

        Raises:
            ValueError: for a checkpoint from the middle of training that lacks the anchor, or whose anchor's file is
                missing or has changed. Nothing is loaded then.
        """
        state_dict, held = self._with_anchors(state_dict)
        self.base.load_state_dict(state_dict)
        self._reset()
        self._held = held
        for group in self.param_groups:
            for p in group["params"]:
                if "anchor" in self.state.get(p, {}):
                    self._given.pop(p, None)
                    anchor = self.state[p]["anchor"]  # torch has cast it to the parameter's type
                    self.state[p]["anchor"] = anchor.to(kinds.stored_dtype(group, p.dtype))
