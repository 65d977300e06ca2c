"""What an optimizer does about its anchors: captures, reads, verifies. Where they lie is ``anchors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mooring.anchors import kinds
from mooring.anchors.held import Held, Rounding, check_shape, fetch, named
from mooring.anchors.names import first, match
from mooring.anchors.sources import digest, write
from mooring.optim.plan import Plan
from mooring.step.shards import is_sharded, like_shard, local, local_part, whole


class Anchored(torch.optim.Optimizer):
    """The part of :class:`mooring.optim.base.Optimizer` that knows of anchors."""

    # Parameters whose anchor follows the weights until the first step that can move them.
    _unanchored: set[Tensor]
    # Anchors that files hold.
    _held: Held

    def _fill(self, p: Tensor, group: dict[str, Any]) -> None:
        """Allocate all state of a parameter."""
        raise TypeError(f"{type(self).__name__} must define _fill")

    def _title(self) -> str:
        return type(self).__name__

    def _reset_anchors(self) -> None:
        self._unanchored = set()
        self._held = Held(local_part, local)

    @property
    def _anchored(self) -> bool:
        """Whether a rule may read an anchor; other optimizers ignore the options of one."""
        return "anchor" in self.defaults

    def _fill_anchor(self, p: Tensor, group: dict[str, Any]) -> None:
        """Make room for an anchor that the state holds, and remember to capture it."""
        state = self.state[p]
        if not self._anchored or p in self._unanchored:
            return
        if kinds.to_capture(group) or (kinds.in_state(group) and "anchor" not in state):
            if group["anchor"] == "given":
                raise RuntimeError(kinds.NOT_GIVEN.format(what=f"a parameter of shape {tuple(p.shape)}"))
            if state["step"] > 0:
                raise RuntimeError(kinds.MISSING.format(name=self._title()))
            if kinds.in_state(group):
                state["anchor"] = p.detach().to(kinds.stored_dtype(group, p.dtype), copy=True)
            if p.numel():
                self._unanchored.add(p)

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
        known = {p for group in self.param_groups for p in group["params"]}
        for p in [p for p in self.state if p not in known]:
            del self.state[p]  # of parameters that a host has replaced since; no checkpoint could be made of it
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

    def _still_unanchored(self) -> set[Tensor]:
        """Parameters whose anchor in the state is from before the first step."""
        follow = [p for group in self.param_groups if group.get("anchor") == "capture" for p in group["params"]]
        states = ((p, self.state[p]) for p in follow if p in self.state)
        return {p for p, s in states if "anchor" in s and not s.get("step", 1) > 0}

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
