"""A batch: tensors that take their step together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from mooring.anchors.held import fetch
from mooring.kernels import choice, eager, random, rounding
from mooring.kernels.eager import TensorList
from mooring.moments.base import Moments
from mooring.step.guard import Guard
from mooring.step.layout import Layout
from mooring.step.move import Move, Slices
from mooring.step.rule import Rule, entries_read
from mooring.step.scalars import host_value, on_device, option_vector
from mooring.step.shards import Sharding, all_sum, is_sharded, local, piece

if TYPE_CHECKING:
    from mooring.step.compiled import Compiled


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything narrower computes, and keeps its moments, in float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def state_dtype(dtype: torch.dtype, kept: str = "float32") -> torch.dtype:
    """The type of parameter-shaped moments: the compute type, complex where the parameter is.

    Where that is float32 it may be kept as bfloat16.
    """
    if kept == "bfloat16" and compute_dtype(dtype) == torch.float32:
        return torch.bfloat16
    return dtype if dtype.is_complex else compute_dtype(dtype)


def compensated(dtype: torch.dtype, group: Mapping[str, Any]) -> bool:
    """Whether a weight of this type keeps, beside it, what it cannot hold."""
    return group.get("rounding") == "kahan" and dtype in (torch.bfloat16, torch.float16)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


class Batch:
    """Tensors of one device, type, recipe and sharding, with everything a step needs to know of them.

    Args:
        owners: the parameters, keys of the optimizer's state.
        groups: the parameter group of each.
        rules: the rules that are active for them, in order.
        moments: how u is made.
        sharding: how they are split over processes (the same for all).
        positions: where each stands among all parameters of the optimizer.
    """

    def __init__(
        self,
        owners: Sequence[Tensor],
        groups: Sequence[dict[str, Any]],
        rules: Sequence[Rule],
        moments: Moments,
        sharding: Sharding,
        positions: Sequence[int],
    ) -> None:
        self.owners, self.groups, self.rules, self.moments = list(owners), list(groups), tuple(rules), moments
        self.positions = list(positions)
        self.group = self.groups[0]
        self._distinct = list({id(group): group for group in self.groups}.values())
        self.params = self._local_params()
        self.device = self.params[0].device
        self.dtype = compute_dtype(self.owners[0].dtype)
        self.global_numels = [p.numel() for p in self.owners]
        self.elements = sum(self.global_numels)
        self.anchored = any(r.needs_anchor for r in self.rules)

        by_rows = any(r.scope == "row" for r in self.rules)
        row_dims = [self.group["row_dim"] if by_rows and p.ndim >= 2 else None for p in self.params]
        self.row_axes = sharding.within if by_rows else ()
        self.tensor_axes = sharding.rows if by_rows else sharding.axes
        self.shard_axes = sharding.axes

        self.entries = entries_read(self.rules, self.group)
        self.rule_device = self._rule_device()
        self.layout = Layout([p.shape for p in self.params], row_dims, self.rule_device)
        self._whole = Layout([p.shape for p in self.params], [None] * len(self.params), self.device)
        shapes = [p.shape for p in self.owners]
        self._matrix = torch.tensor([len(s) >= 2 for s in shapes]).to(self.rule_device)
        self._numel = on_device([float(n) for n in self.global_numels], self.rule_device)
        self._row_length = on_device(
            [
                float(n if dim is None else n // max(shape[dim], 1))
                for n, dim, shape in zip(self.global_numels, row_dims, shapes)
            ],
            self.rule_device,
        )
        self.states: list[dict[str, Any]] = []
        # How many steps each tensor has taken, this one included: (T,) float64, where the states count them.
        self.steps = torch.zeros(len(self.params), dtype=torch.float64)
        self._options: dict[str, tuple[list[Any], Tensor]] = {}
        # Where another optimizer has already moved the weights: what they were, in the compute type.
        self.before: list[Tensor] | None = None
        # What the scan found over the model, and whether this step has to wait for it.
        self.scanned: Tensor | None = None
        self.awaits_scan = False
        # What the look over all gradients found: their factor, and each tensor's sum of squares before it.
        self.factor: Tensor | None = None
        self.squares: Tensor | None = None
        self._guard: Guard | None = None
        self._wide: dict[str, list[Tensor]] = {}
        self._compensated = compensated(self.owners[0].dtype, self.group)
        self.sharded = any(is_sharded(p) for p in self.owners)
        # The shape of each whole tensor and where this process's piece begins in it, where random bits are drawn.
        pieces = [piece(p) for p in self.owners] if self.draws() else []
        self.places = [(where.whole, where.offset) for where in pieces]
        # Raised by rules during a step, 0-dim bool by name; taken and cleared when the step is counted.
        self.flags: dict[str, Tensor] = {}
        # Anchors that are not in the state, this process's part of each, wherever their store keeps them.
        self.held: list[Tensor] | None = None
        # The directions of the step under way: g, p, u and d.
        self.directions: dict[str, TensorList] = {}
        # What the weights were before a recorded step, in the compute type.
        self.started: list[Tensor] | None = None
        # Rules at the beginning that read no inner product: they are asked before there are any.
        self.blind_rules = next((i for i, r in enumerate(self.rules) if _looks(r, self.group)), len(self.rules))
        self.compiled = _compiled(self)

    def look_again(self) -> None:
        """A new step: nothing is known of its gradients."""
        self.factor = self.squares = None
        if self.compiled is not None:
            self.compiled.forget()  # a step that raised may have left some

    def begin(self, skip: Tensor | None = None) -> None:
        """Count the step.

        Args:
            skip: on the device, whether :meth:`end` is to undo the step. Step counts then live there too.
        """
        self._wide, self._guard, self.awaits_scan = {}, None, False  # a step that raised may have left some
        if self.compiled is not None:
            self.steps = torch.from_numpy(self.compiled.begin())
            return
        self.look_up()
        if skip is not None:
            self._count_on_device()
            self._guard = Guard(skip.to(self.device, non_blocking=True))
            self._guard.keep([x for s in self.states for x in s.values() if isinstance(x, Tensor) and x.ndim == 0])
        torch._foreach_add_([s["step"] for s in self.states], 1)
        self.steps = torch.stack([s["step"] for s in self.states]).to(torch.float64)

    def _count_on_device(self) -> None:
        for state in self.states:
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim == 0 and value.device != self.device:
                    state[name] = value.to(self.device, non_blocking=True)

    def enter(self) -> None:
        """Copy what this step may have to put back; nothing where the host knows that it is taken."""
        if self._guard is not None:
            kept = [_real(local(x)) for s in self.states for k, x in s.items() if k != "anchor" and x.ndim]
            self._guard.keep([*self.params, *kept])

    def end(self) -> None:
        """Round moments into the type they are kept in, and undo the step where it was to be skipped."""
        for name, wide in self._wide.items():
            stored = self.state(name)
            noise = self.random_bits(name)
            torch._foreach_copy_(stored, [rounding.stochastic(x, torch.bfloat16, b) for x, b in zip(wide, noise)])
        self._wide = {}
        if self.compiled is not None:
            self.compiled.forget()
        if self._guard is not None:
            self._guard.restore()
            self._guard = None

    def look_up(self) -> None:
        """Find the weights again: hosts may have replaced their storage since the last step."""
        self.params = self._local_params()

    def any_gradient(self) -> bool:
        """Whether any gradient of this batch differs from zero, on any process. Waits for the device."""
        found = torch.stack([g.count_nonzero() for g in self.gradients()]).sum().double()
        [found] = all_sum([(found, self.shard_axes)])
        return bool(found > 0)

    def _local_params(self) -> list[Tensor]:
        return [_real(local(p.detach())) for p in self.owners]

    def _rule_device(self) -> torch.device:
        """Rules are evaluated on the host where options are all they read, so that nothing has to be fetched."""
        asks = bool(self.entries) or any(r.inspects() for r in self.rules)
        reads_device = asks or (self.moments.scans and any(r.needs_stable_scale for r in self.rules))
        lr_on_device = any(host_value_is_remote(g["lr"]) for g in self.groups)
        return self.device if reads_device or lr_on_device else torch.device("cpu")

    # What moments and rules ask for.

    def state(self, name: str) -> list[Tensor]:
        """This process's piece of a parameter-shaped state of every tensor."""
        stored = [s[name] for s in self.states]
        return [_real(local(x)) for x in stored] if self.sharded or stored[0].is_complex() else stored

    def scalars(self, name: str) -> Tensor:
        """A number that the state keeps of every tensor, (T,) float64."""
        found = None if self.compiled is None else self.compiled.scalars(name)
        return torch.stack([s[name] for s in self.states]) if found is None else found

    def put_scalars(self, name: str, values: Tensor) -> None:
        """Write a number into every tensor's state; ``values``: (T,), of the type that the state keeps it in."""
        if self.compiled is None or not self.compiled.put_scalars(name, values):
            torch._foreach_copy_([s[name] for s in self.states], list(values.unbind()))

    def moment(self, name: str) -> list[Tensor]:
        """The same in the compute type, to be written in place; what is kept in bfloat16 is rounded at the end."""
        stored = self.state(name)
        if stored[0].dtype == self.dtype:
            return stored
        if name not in self._wide:
            self._wide[name] = self.widen(stored)
        return self._wide[name]

    def host_options(self, name: str) -> list[float]:
        """A group option of every tensor, as numbers."""
        return [float(g[name]) for g in self.groups]

    def option(self, name: str) -> Tensor:
        """A group option of every tensor, (T,) float64 where rules are evaluated; never to be written on."""
        values = [g[name] for g in self._distinct]
        known = self._options.get(name)
        if known is None or any(isinstance(v, Tensor) for v in values) or known[0] != values:
            known = self._options[name] = values, option_vector([g[name] for g in self.groups], self.rule_device)
        return known[1]

    def vector(self, values: Sequence[float], device: torch.device) -> Tensor:
        """Numbers, one per tensor, as float64 on a device."""
        return on_device(values, device)

    def widen(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors in the compute type; those already in it are not copied."""
        return [t if t.dtype == self.dtype else t.to(self.dtype) for t in tensors]

    def stored_gradients(self) -> list[Tensor]:
        """This process's piece of every gradient as it is; never to be written on."""
        if not self.sharded and not self.owners[0].is_complex():
            given = cast("list[Tensor]", [p.grad for p in self.owners])  # a batch is of tensors that have one
            return [g.detach() if g.requires_grad else g for g in given]
        grads = []
        for p in self.owners:
            g = p.grad
            assert g is not None
            if local(g) is not g and g.placements != p.placements:  # type: ignore[attr-defined]
                g = g.redistribute(placements=p.placements)  # type: ignore[attr-defined]
            grads.append(_real(local(g.detach())))
        return grads

    def gradients(self) -> list[Tensor]:
        """Gradients in the compute type, unscaled and clipped, negated with ``maximize``; never to be written on."""
        grads = self.widen(self.stored_gradients())
        if self.factor is not None:
            factor = self.factor.to(self.dtype)
            return list(torch._foreach_mul(grads, -factor if self.group.get("maximize", False) else factor))
        return list(torch._foreach_neg(grads)) if self.group.get("maximize", False) else grads

    def gradient_squares(self, coupled: bool = False) -> Tensor:
        """The sum of each gradient's squares, (T,) float64; this process's part.

        Args:
            coupled: of the gradients that the moments see, with the terms of coupled decay.
        """
        if self.compiled is not None:
            return self.compiled.squares(coupled)
        return self.sums_of_squares(self.moment_gradients() if coupled else self.gradients())

    def sums(self, tensors: Sequence[Tensor]) -> Tensor:
        """The sum of each tensor's elements over the fixed tree, (T,) float64; this process's part."""
        return self._flat_sums(tensors, squares=False)

    def sums_of_squares(self, tensors: Sequence[Tensor]) -> Tensor:
        """The sum of each tensor's squares over the fixed tree, (T,) float64; this process's part."""
        return self._flat_sums(tensors, squares=True)

    def _flat_sums(self, tensors: Sequence[Tensor], squares: bool) -> Tensor:
        parts = []
        for block in self._whole.blocks:
            matrix = self._whole.matrix(block, tensors)
            parts.append(eager.row_sums(matrix * matrix if squares else matrix))
        return torch.cat(parts)

    # The stages.

    def observe(self, move: Move, kept: bool) -> dict[str, Tensor]:
        """Update the moments and form the Gram entries per slice, this process's part.

        Args:
            move: the pending displacement of the rules that have been asked already.
            kept: leave the directions of the step in ``directions``, where whoever records it finds them.
        """
        self.started = [p.to(self.dtype, copy=True) for p in self.params] if kept else None
        if self.compiled is None:
            self.directions = self.vectors()
            u = self.moments.update(self, self.coupled(self.directions), self.directions["p"])
            self.directions["u"] = u
            return self.gram(self.directions) if self.entries else {}
        if self.started is not None:
            self.directions = self.vectors()
            # The kernel may move weights while it looks at them.
            weights = [s if w is p else w for w, p, s in zip(self.directions["p"], self.params, self.started)]
            if self.directions.get("d") is self.directions["p"]:
                self.directions["d"] = weights
            self.directions["p"] = weights
        entries = self.compiled.observe(move, kept)
        if kept:
            self.directions["u"] = self.compiled.directions()
        return entries

    def gram(self, vectors: dict[str, TensorList]) -> dict[str, Tensor]:
        """Gram entries per slice, this process's part."""
        out: dict[str, list[Tensor]] = {name: [] for name in self.entries}
        letters = sorted({letter for name in self.entries for letter in name})
        for block in self.layout.blocks:
            matrices = {letter: self.layout.matrix(block, vectors[letter]) for letter in letters}
            for name, product in zip(self.entries, eager.inner_products(matrices, self.entries)):
                out[name].append(product)
        return {name: torch.cat(parts) for name, parts in out.items()}

    def slices(self, entries: dict[str, Tensor], move: Move) -> Slices:
        """The view of this batch that rules get."""
        return Slices(
            entries=entries,
            option=self.option,
            matrix=self._matrix,
            numel=self._numel,
            row_length=self._row_length,
            per_slice=self.layout.per_slice,
            stable_scale=lambda: self.moments.stable_scale(self),
            move=move,
            shared=self.group,
            count=self.raise_flag,
        )

    def number(self, name: str) -> Tensor:
        """A number that rules on a tape read, (T,) or 0-dim float64 by the name it has there."""
        if name.startswith("option "):
            return self.option(name.removeprefix("option "))
        if name == "stable scale":
            return self.moments.stable_scale(self)
        if name == "step size":
            return self.moments.step_size(self)
        return {"matrix": self._matrix, "numel": self._numel, "row length": self._row_length}[name]

    def raise_flag(self, name: str, where: Tensor) -> None:
        """Remember that a rule's condition held for some tensor in this step."""
        known = self.flags.get(name)
        self.flags[name] = where.any() if known is None else known | where.any()

    def apply(self, move: Move) -> None:
        """``p <- p - (tau p + beta u + kappa d)``, and the momentum buffer where a rule rewrote it.

        Where u has been subtracted already, only the difference to it is, so a rule that does nothing changes no bit.
        """
        if self.compiled is not None:
            self.compiled.apply(move)
            return
        vectors, self.directions = self.directions, {}
        wide = vectors["p"]
        if self.before is not None:
            move.beta = move.beta - 1
            wide = self.widen(self.params)
        terms = move.terms()
        if move.buffer is None and self.layout.one_each and self.rule_device.type == "cpu":
            lists = [(c.expand(len(self.params)).tolist(), vectors[letter]) for letter, c in terms]
            self._subtract(slice(None), wide, eager.displacement_lists(lists))
            return
        for block in self.layout.blocks:
            matrices = {letter: self.layout.matrix(block, vectors[letter]) for letter, _ in terms}
            part = [(c[block.slices], matrices[letter]) for letter, c in terms]
            s = self.layout.split(block, eager.displacement(part), self.params)
            if move.buffer is not None:
                weights = matrices.get("p", self.layout.matrix(block, vectors["p"]))
                radial = eager.displacement([(move.buffer[block.slices], weights)])
                buffers = self.moment("momentum_buffer")[block.tensors]
                torch._foreach_sub_(buffers, self.layout.split(block, radial, self.params))
            self._subtract(block.tensors, wide[block.tensors], s)

    def _subtract(self, tensors: slice, wide: TensorList, s: TensorList) -> None:
        """Subtract and round once, as the group asks."""
        stored = self.params[tensors]
        if stored[0].dtype == self.dtype:
            torch._foreach_sub_(stored, s)
            return
        moved = torch._foreach_sub(wide, s)
        if self._compensated:
            pairs = [rounding.split(x, stored[0].dtype) for x in moved]
            torch._foreach_copy_(self.state("compensation")[tensors], [rest for _, rest in pairs])
            moved = tuple(rounded for rounded, _ in pairs)
        elif self.group.get("rounding") == "stochastic":
            bits = self.random_bits("weight", tensors)
            moved = tuple(rounding.stochastic(x, stored[0].dtype, b) for x, b in zip(moved, bits))
        torch._foreach_copy_(stored, moved)

    def draws(self) -> bool:
        """Whether a step needs random bits."""
        stochastic = self.group.get("rounding") == "stochastic" and self.owners[0].dtype != self.dtype
        return stochastic or self.group.get("state_dtype") == "bfloat16"

    def random_bits(self, purpose: str, tensors: slice = slice(None)) -> list[Tensor]:
        """Random bits for rounding, int32 in [0, 2^16): those of this step, these elements and this purpose."""
        out = [torch.empty(p.shape, dtype=torch.int32, device=p.device) for p in self.params[tensors]]
        keys = zip(self.bits_keys(purpose)[tensors], self.positions[tensors])
        seeds = [random.key(position, after=key) for key, position in keys]
        random.fill_all(out, seeds, "bits", self.places[tensors], self.group.get("backend"))
        return out

    def bits_keys(self, purpose: str) -> list[int]:
        """What each tensor's random bits in this step depend on, but for the tensor's position."""
        keys = {id(group): random.key("rounding", purpose, group["draws"]) for group in self._distinct}
        return [keys[id(group)] for group in self.groups]

    def vectors(self) -> dict[str, TensorList]:
        """The directions of the step that exist before the moments: g, p, and d where a rule needs it."""
        params = self._weights() if self.before is None else self.before
        out: dict[str, TensorList] = {"g": self.gradients(), "p": params}
        if self.anchored:
            if self.group["anchor"] == "zero":
                out["d"] = params
            else:
                out["d"] = torch._foreach_sub(params, self.anchors())
        return out

    def _weights(self) -> list[Tensor]:
        """The weights in the compute type, with what their own type could not hold."""
        if self._compensated:
            return [rounding.join(p, rest) for p, rest in zip(self.params, self.state("compensation"))]
        return self.widen(self.params)

    def anchors(self) -> list[Tensor]:
        """This process's piece of every anchor, in the compute type; from the state or from where they are held."""
        return self.widen(self.stored_anchors())

    def stored_anchors(self) -> list[Tensor]:
        """The same in the type they are kept in."""
        if self.held is None:
            return self.state("anchor")
        return [_real(a) for a in fetch(self.held, self.device, self.owners[0].dtype)]

    def coupled(self, vectors: dict[str, TensorList]) -> TensorList:
        """The gradients that the moments see: with the terms of coupled decay."""
        grads = vectors["g"]
        for rule in self.rules:
            if rule.couples:
                grads = torch._foreach_add(
                    torch._foreach_mul(vectors[rule.couples], self.host_options("weight_decay")), grads
                )
        return grads

    def moment_gradients(self) -> TensorList:
        """The same before the step has begun; forms the directions only where coupled decay needs them."""
        return self.coupled(self.vectors()) if any(rule.couples for rule in self.rules) else self.gradients()


def _looks(rule: Rule, group: Mapping[str, Any]) -> bool:
    return bool(rule.reads_for("upd", group)) or rule.adds_up(group)


def _compiled(batch: Batch) -> Compiled | None:
    """The kernels for a batch, where they are wanted and can take it."""
    asked = choice.wanted() or batch.group.get("backend")
    if asked == "eager" or (batch.device.type != "cpu" and asked is None):
        return None
    if not choice.numba_installed():
        if asked is None:
            choice.say_missing()
            return None
        raise RuntimeError("backend='numba' needs the extra fast: pip install 'mooring[fast]'")
    from mooring.step.compiled import Compiled, kernel_name, unserved

    if not choice.loadable(kernel_name(batch.dtype)):
        return None
    reason = unserved(batch)
    if reason and asked == batch.group.get("backend") == "numba":
        raise RuntimeError(f"backend='numba' cannot serve: {reason}; backend=None takes what serves best")
    return None if reason else Compiled(batch)


def host_value_is_remote(value: Any) -> bool:
    """Whether an option can only be read by waiting for a device."""
    return host_value(value) is None
