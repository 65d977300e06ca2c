"""A batch's step in compiled kernels: addresses instead of tensors, and rules on a tape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mooring.kernels import choice, random
from mooring.kernels.cpu import blocks, many, scalars, sweep, tables
from mooring.kernels.cpu.memory import BFLOAT16, FLOAT16, SAME
from mooring.kernels.cpu.program import CODE, COPY, SPARE, SUM, Program
from mooring.kernels.cpu.schedule import CHUNK, Cut, Schedule
from mooring.kernels.cpu.tables import APPLY, DECIDE, EARLY, EVERYTHING, FORESEE, LOOK, OBSERVE, REDUCE, SEEN
from mooring.kernels.cpu.threads import scratch, together
from mooring.step.move import Move
from mooring.step.shards import like_shard
from mooring.step.shards import local as local_of
from mooring.step.tape import NotTaped, Taped, tape_rules

if TYPE_CHECKING:
    from mooring.step.batch import Batch

_STORED = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_KINDS = {"adam": blocks.ADAM, "momentum": blocks.MOMENTUM, "adai": blocks.ADAI}
_ROUNDINGS = {"nearest": tables.NEAREST, "stochastic": tables.STOCHASTIC, "kahan": tables.KAHAN}
_LETTERS = "gpud"
_OF_MOMENTS = ("fresh", "keep2", "fresh2", "root", "floor", "keep1", "share")
"""The numbers that the moments make, in the order in which ``kernels/cpu/blocks.py`` has them."""
_ADDRESS = Tensor.data_ptr
_NO_PAIRS = np.zeros((0, 5), np.int64)


def kernel_name(dtype: torch.dtype) -> str:
    """The kernel of a compute type, as ``kernels/choice.py`` knows it."""
    return f"step {dtype}"


def unserved(batch: Batch) -> str:
    """Why the kernels cannot take a batch's step; empty where they can."""
    if batch.device.type != "cpu":
        return f"the kernels of the backend 'numba' are for the CPU, and these parameters are on {batch.device}"
    if not batch.moments.compiled:
        return f"there is no kernel for {batch.moments.describe(batch.group).split('(')[0]}"
    if batch.owners[0].is_complex():
        return "the kernels take no complex numbers"
    if batch.owners[0].dtype not in (torch.float32, torch.float64, *_STORED):
        return f"the kernels do not take {batch.owners[0].dtype}"
    if batch.layout.along_other_dims:
        return "the kernels take rows along dimension 0"
    if _narrow_moments(batch) and any(rule.rewrites(batch.group) for rule in batch.rules):
        return "a rule rewrites moments that are kept in bfloat16"
    if any(not _dense(p) for p in batch.params):
        return "a parameter is a view with gaps"
    return ""


def _narrow_moments(batch: Batch) -> bool:
    return batch.dtype == torch.float32 and batch.group.get("state_dtype") == "bfloat16"


def _dense(x: Tensor) -> bool:
    """Whether the elements fill their memory, whole rows of dimension 0 one after the other."""
    if x.is_contiguous():
        return True
    expected = 1
    order = sorted(range(x.ndim), key=lambda d: (x.stride(d), d != 0, x.shape[d]))
    for d in order:
        if x.shape[d] != 1 and x.stride(d) != expected:
            return False
        expected *= x.shape[d]
    return all(x.shape[0] == 1 or x.stride(0) >= x.stride(d) for d in range(x.ndim) if x.shape[d] != 1)


class Compiled:
    """The kernels' view of one batch.

    Args:
        batch: a batch that :func:`unserved` has nothing against.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.like = np.empty(1, np.float64 if batch.dtype == torch.float64 else np.float32)
        tensors = len(batch.params)
        self.table = np.zeros((tensors, tables.COLUMNS), np.int64)
        self.numbers = np.zeros((tensors, blocks.NUMBERS))
        self.how = self._settings()
        self.cut = Cut(*batch.layout.counts_and_lengths)
        slices, products, pieces = batch.layout.slices, len(batch.entries), len(self.cut.pieces)
        self.coefficients = np.zeros((4, slices))
        self.pairs = _all_products(batch.entries) if self.how[tables.LOOP] == tables.AMONG else _products(batch.entries)
        self.entries, self.partial = np.zeros((products, slices)), np.zeros((pieces, products))
        self._sums = np.zeros((1, slices)), np.zeros((pieces, 1))
        self.taped = self._tape()
        self.program = Program() if self.taped is None else _program(self.taped, batch.entries)
        self.early = EARLY if self._moves_early(self.how) else 0
        self._set_program()
        self._schedules: dict[str, Schedule] = {}
        self._headers: dict[str, tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]] = {}
        self._observed = False
        self._kept: list[Tensor] = []
        self._contiguous = False
        # The tensors whose addresses are in the table, by column.
        self._held: dict[int, list[Tensor]] = {}
        # Addresses as they were found: of the weights, and of what the state holds for each of them.
        self._weights: list[int] = []
        self._state: list[int] = []
        self._columns = _columns(batch, self.how)
        scalars.load()
        # By name: addresses of numbers in the state as they were found, their tensors, and the addresses as an array.
        self._scalars: dict[str, tuple[list[int], list[Tensor], np.ndarray | None]] = {}
        self._firsts = _firsts(batch)
        self._positions = np.array(batch.positions, np.uint64)

    # What is fixed with the plan.

    def _settings(self) -> np.ndarray:
        batch, group = self.batch, self.batch.group
        how = np.zeros(tables.SETTINGS, np.int64)
        how[tables.WEIGHTS] = _STORED.get(batch.owners[0].dtype, SAME)
        how[tables.MOMENTS] = BFLOAT16 if _narrow_moments(batch) else SAME
        how[tables.ROUNDING] = _ROUNDINGS[group.get("rounding", "nearest")] if how[tables.WEIGHTS] != SAME else 0
        how[tables.KIND] = _KINDS[batch.moments.compiled]
        for at, on in zip((tables.AMSGRAD, tables.NESTEROV, tables.PLAIN), batch.moments.compiled_options(group)):
            how[at] = on
        couples = "".join(rule.couples for rule in batch.rules)
        how[tables.COUPLES] = {"": 0, "p": 1, "d": 2}[couples]
        moved = "".join(rule.writes for rule in batch.rules)
        how[tables.TAUS] = "p" in moved
        how[tables.KAPPAS] = "d" in moved
        how[tables.OFFSETS] = batch.anchored
        how[tables.BUFFERS] = any(rule.rewrites(group) for rule in batch.rules)
        how[tables.LOOP] = self._loop(how)
        how[tables.ANCHOR] = tables.ZERO if group.get("anchor") == "zero" else SAME
        return how

    def _loop(self, how: np.ndarray) -> int:
        """Whether one loop can do all that a block needs."""
        batch = self.batch
        own_types = how[tables.WEIGHTS] == SAME and how[tables.MOMENTS] == SAME
        brain = how[tables.WEIGHTS] == BFLOAT16 and how[tables.MOMENTS] == SAME
        rare = any(how[at] for at in (tables.AMSGRAD, tables.NESTEROV, tables.PLAIN, tables.BUFFERS))
        adam, adai = how[tables.KIND] == blocks.ADAM, how[tables.KIND] == blocks.ADAI
        if rare or (adam and (how[tables.COUPLES] or batch.group["betas"][0] <= 0.5)):  # torch's lerp is another then
            return tables.SEVERAL
        if (adam and brain) or (adai and own_types):
            return tables.SEVERAL if batch.entries or how[tables.OFFSETS] else tables.STRAIGHT
        if not own_types:
            return tables.SEVERAL
        rest = tables.AMONG if adam and batch.entries else tables.SEVERAL
        if not how[tables.OFFSETS]:
            return {(): tables.STRAIGHT, ("gg", "gp", "pp", "pu"): SEEN}.get(batch.entries, rest)
        if batch.group.get("anchor") == "zero":
            return tables.SEVERAL
        if not self._moves_early(how):
            return rest
        held = adam and batch.entries == ("dd", "gd", "ud", "uu") and not how[tables.TAUS]
        return tables.HELD if held else tables.SEVERAL

    def _tape(self) -> Taped | None:
        batch = self.batch
        if batch.shard_axes:
            return None
        try:
            return tape_rules(batch.rules, batch.group, batch.entries)
        except NotTaped:
            return None

    def _moves_early(self, how: np.ndarray) -> bool:
        """Whether only a last contraction depends on inner products: everything before it can move at once."""
        batch = self.batch
        if not batch.rules or not batch.rules[-1].contracts or not batch.layout.one_each or how[tables.BUFFERS]:
            return False
        exact = how[tables.WEIGHTS] == SAME or how[tables.ROUNDING] == tables.KAHAN
        return batch.blind_rules == len(batch.rules) - 1 and exact

    def _set_program(self) -> None:
        program, batch = self.program, self.batch
        self._ports = np.array(list(program.inputs.values()), np.int64)
        outputs = np.array(program.outputs or [-1] * 5, np.int64)
        if self.early:
            outputs[:4] = -1
        wires = np.array(program.entries, np.int64)
        self.rules = tables.Rules(
            program.steps, program.wide, wires, self._ports, outputs, program.late, program.by_row
        )
        foresees = self.how[tables.LOOP] == SEEN and len(program.late) > 0
        self._foresees = FORESEE if foresees else 0
        self._needs = np.full(len(batch.params), EVERYTHING)
        self._expected = np.zeros(len(batch.params), np.int64)
        self._registers = (len(program.wide) + SPARE) * self.cut.most_slices
        self._constants = np.array([register for register, _ in program.constants], np.int64)
        self._values = np.array([value for _, value in program.constants])
        self._known = np.zeros((len(batch.params), len(program.wide) if foresees else 0))
        self._flags = np.zeros((len(batch.params) + 1, len(program.flags)))
        self._flags[-1] = list(program.flags.values())
        self._inputs = np.zeros((len(batch.params), len(self._ports)))
        self._given: list[Tensor | None] = [None] * len(self._ports)

    # What changes from step to step.

    def begin(self) -> np.ndarray:
        """Count the step, and find everything in memory again: hosts replace weights and state sometimes.

        Returns:
            The number of this step for each tensor, (T,) float64.
        """
        batch = self.batch
        weights = [] if batch.sharded else list(map(_ADDRESS, batch.owners))
        if batch.sharded or weights != self._weights:
            batch.look_up()
            self._weights, self._state = weights, []  # how the weights lie decides how the state has to
            self.table[:, tables.P] = [p.data_ptr() for p in batch.params]
            self._contiguous = all(p.is_contiguous() for p in batch.params)
        if batch.sharded or self._state_lies() != self._state:
            for column, name in self._columns:
                self._put(column, [s[name] for s in batch.states], name)
            self._state = [] if batch.sharded else self._state_lies()
        if self.how[tables.OFFSETS] and self.how[tables.ANCHOR] != tables.ZERO:
            anchors = batch.stored_anchors()
            self.how[tables.ANCHOR] = _STORED.get(anchors[0].dtype, SAME)
            self._put(tables.A, anchors, None)
        return self._count()

    def _state_lies(self) -> list[int]:
        """The addresses of what the kernels work on in the state, tensor by tensor."""
        names = [name for _, name in self._columns]
        return [state[name].data_ptr() for state in self.batch.states for name in names]

    def _count(self) -> np.ndarray:
        steps = self._places("step", torch.float32)
        if steps is None:
            counts = [s["step"] for s in self.batch.states]
            torch._foreach_add_(counts, 1)
            return torch.stack([c.to("cpu", torch.float64) for c in counts]).numpy()
        out = np.empty(len(steps))
        sweep.count(steps, out)
        return out

    def _places(self, name: str, dtype: torch.dtype) -> np.ndarray | None:
        """Where the numbers lie that the state keeps under a name, (T,) int64; None where only torch gets at them."""
        tensors = [state[name] for state in self.batch.states]
        found = list(map(_ADDRESS, tensors))
        if name not in self._scalars or self._scalars[name][0] != found:
            served = all(x.dtype == dtype and x.device.type == "cpu" for x in tensors)
            # The tensors are held, so that nothing else comes to lie where they do.
            self._scalars[name] = found, tensors, np.array(found, np.int64) if served else None
        return self._scalars[name][2]

    def scalars(self, name: str) -> Tensor | None:
        """Numbers of the state, (T,) float64; None where only torch gets at them."""
        places = self._places(name, torch.float64)
        if places is None:
            return None
        out = np.empty(len(places))
        scalars.read(places, out)
        return torch.from_numpy(out)

    def put_scalars(self, name: str, values: Tensor) -> bool:
        """Write numbers of the state, (T,) of their own type; False where only torch gets at them."""
        places = self._places(name, values.dtype)
        if places is not None:
            scalars.write(places, values.numpy())
        return places is not None

    def _put(self, column: int, given: Sequence[Tensor], name: str | None) -> None:
        """Addresses of tensors that lie in memory as the weights do; others are laid out anew, in the state too."""
        tensors = [local_of(x) for x in given] if self.batch.sharded else list(given)
        addresses = list(map(_ADDRESS, tensors))
        self._held[column] = tensors
        if not (self._contiguous and all(map(Tensor.is_contiguous, tensors))):
            for i, (x, p) in enumerate(zip(tensors, self.batch.params)):
                if x.stride() != p.stride() and x.numel() > 1:
                    tensors[i] = torch.empty_like(p, dtype=x.dtype).copy_(x)
                    if name is not None:
                        self.batch.states[i][name] = like_shard(tensors[i], self.batch.owners[i])
            addresses = list(map(_ADDRESS, tensors))
        self.table[:, column] = addresses

    def forget(self) -> None:
        """Forget the gradients of a step: the next one's may lie elsewhere, and the host may want their memory."""
        self._held.pop(tables.G, None)

    def _gradients(self) -> None:
        batch = self.batch
        if tables.G not in self._held:
            gradients = batch.stored_gradients()
            dtype = batch.params[0].dtype
            if {g.dtype for g in gradients} != {dtype}:
                gradients = [g.to(dtype) for g in gradients]
            self._put(tables.G, gradients, None)
        factor = 1.0 if batch.factor is None else float(batch.factor)
        # The factor is rounded to the compute type, as a gradient that is multiplied in torch sees it.
        self.numbers[:, blocks.SCALE] = -factor if batch.group.get("maximize", False) else factor
        if self.how[tables.COUPLES]:
            self.numbers[:, blocks.COUPLED] = batch.option("weight_decay").numpy()

    def squares(self, coupled: bool) -> Tensor:
        """Each tensor's sum of squares of the gradient, (T,) float64; this process's part.

        Args:
            coupled: of the gradient that the moments see.
        """
        self._gradients()
        couples = self.how[tables.COUPLES]
        self.how[tables.COUPLES] = couples if coupled else 0
        try:
            return self._sum(tables.SQUARES)
        finally:
            self.how[tables.COUPLES] = couples

    def maximum_sums(self) -> Tensor:
        """Each tensor's sum of the running maximum of the second moment as it will be after the step, (T,) float64."""
        self._gradients()
        self._fill_numbers()
        return self._sum(tables.SUMS)

    def _sum(self, what: int) -> Tensor:
        slices, partial = self._sums
        self._run(f"sums {what}", partial=partial, entries=slices, pairs=_NO_PAIRS)
        per_slice = torch.from_numpy(slices[0].copy())
        return self.batch.layout.per_tensor([per_slice])[0]

    def _fill_numbers(self) -> None:
        steps = self.batch.steps.tolist()
        at = {step: self.batch.moments.compiled_numbers(self.batch, step) for step in set(steps)}
        rows = {step: [numbers.get(name, 0.0) for name in _OF_MOMENTS] for step, numbers in at.items()}
        made = self.numbers[:, blocks.FRESH : blocks.SHARE + 1]
        made[:] = rows[steps[0]] if len(rows) == 1 else [rows[step] for step in steps]

    @property
    def has_temporaries(self) -> bool:
        """Whether a step takes memory for every element: random bits that are drawn before the kernel runs."""
        inside = self._firsts is not None and all(p.is_contiguous() for p in self.batch.params)
        return self.batch.draws() and not inside

    # The step.

    @property
    def runs_through(self) -> bool:
        """Whether the rules are on a tape, so that the kernel can take the whole step."""
        return self.taped is not None

    def take(self, move: Move) -> None:
        """The whole step of a batch that is not sharded.

        Args:
            move: the pending displacement of the rules that need no inner products, where that is all of them or
                where only a contraction follows; otherwise not read.
        """
        self._gradients()
        self._fill_numbers()
        self._draw()
        if not self.batch.entries:
            self._set(move)
            self._run("straight")
            return
        self._fill_inputs()
        if self.early:
            self._set(move)
        if self.how[tables.MOMENTS] != SAME:
            self._keep_by_wave()
        self._run("step")
        self.table[:, tables.U] = 0
        assert self.taped is not None
        for i, name in enumerate(self.program.flags):
            self.batch.raise_flag(name, torch.from_numpy(self._flags[:-1, i] != 0))

    def _keep_by_wave(self) -> None:
        """A place for u of tensors that go in stages: from moments that have been rounded it cannot be formed again."""
        sizes = [self.cut.elements(tensors) for tensors in self.cut.waves]
        kept = scratch("kept by wave", max((int(n.sum()) for n in sizes), default=0), self.like.dtype)
        for tensors, n in zip(self.cut.waves, sizes):
            self.table[tensors[:, 0], tables.U] = kept.ctypes.data + (np.cumsum(n) - n) * kept.itemsize

    def observe(self, move: Move, kept: bool) -> dict[str, Tensor]:
        """Update the moments and form the inner products, where rules are evaluated in torch; this process's part.

        Args:
            move: the pending displacement of the rules that read no inner product.
            kept: form u also where nothing reads it, and keep it for :meth:`directions`.
        """
        self._gradients()
        self._fill_numbers()
        self._draw()
        self._observed = kept or bool(self.batch.entries)
        if not self._observed:
            return {}
        if kept or self.how[tables.MOMENTS] != SAME:  # from moments that have been rounded it cannot be formed again
            self._kept = [torch.empty_like(p, dtype=self.batch.dtype) for p in self.batch.params]
            self.table[:, tables.U] = [x.data_ptr() for x in self._kept]
        if self.early:
            self._set(move)
        self._run("observe")
        return {name: torch.from_numpy(row.copy()) for name, row in zip(self.batch.entries, self.entries)}

    def directions(self) -> list[Tensor]:
        """The update direction of every tensor, as :meth:`observe` kept it."""
        group, moments = self.batch.group, self.batch.moments
        _, nesterov, bare = moments.compiled_options(group)
        if moments.compiled == "momentum" and not nesterov and not bare and self.how[tables.MOMENTS] == SAME:
            return [b.clone() for b in self.batch.state("momentum_buffer")]
        return self._kept

    def apply(self, move: Move) -> None:
        """Move the weights."""
        if not self._observed:
            self._set(move)
            self._run("straight")
        elif self.early:
            amount = move.contraction
            self.numbers[:, blocks.AMOUNT] = 0.0 if amount is None else amount.numpy()
            self._run("apply")
        else:
            self._set(move)
            self._run("apply")
        self.table[:, tables.U], self._kept = 0, []

    def _set(self, move: Move) -> None:
        for at, c in enumerate((move.beta, move.tau, move.kappa, move.buffer)):
            self.coefficients[at] = 0.0 if c is None else c.numpy()

    def _fill_inputs(self) -> None:
        for at, name in enumerate(self.program.inputs):
            number = self.batch.number(name)
            if number is not self._given[at]:  # vectors are never written on, so the same one holds the same numbers
                self._given[at], self._inputs[:, at] = number, number.numpy()

    def _draw(self) -> None:
        """Random bits for what is rounded in this step: keys of them, where elements lie one after the other."""
        batch = self.batch
        rounded = {tables.DRAWN_P: "weight"} if self.how[tables.ROUNDING] == tables.STOCHASTIC else {}
        if self.how[tables.MOMENTS] != SAME:
            names = [name for name in batch.moments.state_names(batch.group) if name not in batch.moments.always_wide]
            rounded.update(zip((tables.DRAWN_M, tables.DRAWN_V, tables.DRAWN_X), names))
        if not rounded:
            return
        for column, purpose in rounded.items():
            if self._firsts is not None and self._contiguous:
                self.table[:, tables.FIRST] = self._firsts
                self.table[:, column] = 0
                keys = np.array(batch.bits_keys(purpose), np.uint64)
                self.table[:, column + 1 : column + 3] = many.streams(many.after(keys, self._positions))
            else:
                self._put(column, batch.random_bits(purpose), None)

    def _run(self, what: str, **others: np.ndarray) -> None:
        """Let threads go through the stages of a schedule.

        Args:
            what: see :meth:`_schedule`.
            others: tables in place of the batch's own.
        """
        if what not in self._schedules:
            self._schedules[what] = self._schedule(what)
        if what != "step":
            self._needs.fill(EVERYTHING)
        todo = self._schedules[what]
        if not len(todo.stages):
            return
        # All of torch's threads or none: a smaller team would end the others, and torch would have to begin them anew.
        double, threads = self.batch.dtype == torch.float64, torch.get_num_threads() if todo.threads > 1 else 1
        choice.load(kernel_name(self.batch.dtype), lambda: sweep.on_team(double))
        memory = (
            scratch("registers", threads * self._registers, np.float64),
            scratch("blocks", threads * tables.SCRATCH, self.like.dtype),
            scratch("kept", threads * tables.PIECE, self.like.dtype),
        )
        registers = memory[0][: threads * self._registers].reshape(threads, len(self.program.wide) + SPARE, -1)
        registers[:, self._constants, 0] = self._values
        known = self._headers.get(what)
        shape = 1 + len(todo.stages), 8 * (1 + threads)
        if known is None or known[1].shape != shape or any(a is not b for a, b in zip(known[2], memory)):
            counters = np.zeros(shape, np.int64)
            known = self._headers[what] = self._header(todo, memory, counters, others), counters, memory
        known[1].fill(0)
        together(sweep.on_team(double), known[0].ctypes.data, threads)

    def _header(
        self, todo: Schedule, memory: Sequence[np.ndarray], counters: np.ndarray, others: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Where everything lies that the kernel works with; see tables.py. None of it is ever allocated anew."""
        registers, work, kept = memory
        threads = counters.shape[1] // 8 - 1
        named = {
            "pieces": self.cut.pieces, "table": self.table, "how": self.how, "numbers": self.numbers,
            "pairs": self.pairs, "partial": self.partial, "entries": self.entries, "coefficients": self.coefficients,
            "needs": self._needs, "expected": self._expected, "known": self._known, "inputs": self._inputs,
            "flags": self._flags,
            "stages": todo.stages, "claims": todo.claims, "counters": counters[1:], "units": todo.units,
            "slots": counters[0], "registers": registers[: threads * self._registers].reshape(threads, -1),
            "work": work.reshape(-1, tables.SCRATCH), "kept": kept.reshape(-1, tables.PIECE),
            **self.rules._asdict(), **others,
        }  # fmt: skip
        arrays = [named[name] for name in tables.HEADER]
        assert all(x.flags.c_contiguous for x in arrays)
        return np.array([(x.ctypes.data, *x.shape, 1)[:3] for x in arrays], np.int64)

    def _schedule(self, what: str) -> Schedule:
        """The stages of one run over the batch.

        ``"straight"``: moments and move, no sums. ``"step"``: the whole step with rules on a tape. ``"observe"`` and
        ``"apply"``: what comes before and after rules in torch. ``"sums N"``: sums over tensors, N being a code.
        """
        cut, out = self.cut, Schedule(self.cut)
        chunks = cut.chunks(cut.tensors)
        # What is formed first where the loop is SEEN is, without a forecast, formed beside the rest.
        observe = OBSERVE | self.early | (LOOK if self.how[tables.LOOP] == SEEN else 0)
        if what == "straight":
            return out.add(OBSERVE | EARLY, chunks)
        if what == "observe":
            return out.add(observe, chunks).add(REDUCE, cut.tensors)
        if what == "apply":
            return out.add(APPLY | self.early, chunks)
        if what != "step":
            return out.add(int(what.split()[1]), chunks).add(REDUCE, cut.tensors)
        out.add(observe | self._foresees | REDUCE | DECIDE | APPLY, cut.small)
        for tensors in cut.waves:
            chunks = cut.chunks(tensors)
            if self._foresees:
                out.add(LOOK, chunks, CHUNK).add(FORESEE, tensors)
                out.add(OBSERVE, chunks, CHUNK)
            else:
                out.add(observe, chunks, CHUNK)
            out.add(REDUCE | DECIDE, tensors).add(APPLY | self.early, chunks, CHUNK)
        return out


def _all_products(entries: Sequence[str]) -> np.ndarray:
    """Where the products that are formed all together go."""
    at = {frozenset(name): i for i, name in enumerate(entries)}
    names = ("gg", "gp", "gu", "pp", "pu", "uu", "gd", "pd", "ud", "dd")
    return np.array([(-1, -1, -1, at.get(frozenset(name), -1), -1) for name in names], np.int64)


def _columns(batch: Batch, how: np.ndarray) -> list[tuple[int, str]]:
    """The state that the kernels read, by the column of the table that its addresses go into."""
    moments = batch.moments
    places = zip(moments.state_names({**batch.group, "amsgrad": True}), (tables.M, tables.V, tables.X))
    kept = moments.state_names(batch.group)
    rest = [(tables.REST, "compensation")] if how[tables.ROUNDING] == tables.KAHAN else []
    return [(column, name) for name, column in places if name in kept] + rest


def _firsts(batch: Batch) -> list[int] | None:
    """Each piece's first element in its whole tensor; None where a piece is more than one run of neighbours."""
    found = [random.runs(tuple(p.shape), *place)[0] for p, place in zip(batch.params, batch.places)]
    return [int(starts[0]) for starts in found] if all(len(starts) == 1 for starts in found) else None


def _products(entries: Sequence[str]) -> np.ndarray:
    """Which inner products to form, three in one loop where a pair of letters needs at least two of them."""
    left = {name: i for i, name in enumerate(entries)}
    out = []
    for a, b in ("gp", "du", "pu", "gu", "gd", "pd"):
        if a + b not in left and b + a not in left:
            continue
        three = [left.get(a + a, -1), left.get(a + b, left.get(b + a, -1)), left.get(b + b, -1)]
        if sum(i >= 0 for i in three) >= 2:
            out.append([_LETTERS.index(a), _LETTERS.index(b), *three])
            for name in (a + a, a + b, b + a, b + b):
                left.pop(name, None)
    for name, i in left.items():
        out.append([_LETTERS.index(name[0]), _LETTERS.index(name[1]), -1, i, -1])
    return np.array(out, np.int64).reshape(-1, 5)


def _program(taped: Taped, entries: Sequence[str]) -> Program:
    """A tape with its numbers placed in registers."""
    steps = np.zeros((len(taped.tape.steps), 6), np.int64)
    for i, (name, out, operands, wide) in enumerate(taped.tape.steps):
        padded = [*operands, *[operands[0]] * (3 - len(operands))]
        steps[i] = [CODE[name], out, *padded, int(wide)]
    later = taped.later("pu") if "pu" in taped.entries else None
    late = steps[later or []]
    unknown = taped.tape.constant(float("nan")).index
    late[late[:, 0] == SUM, 2], late[late[:, 0] == SUM, 0] = unknown, COPY
    return Program(
        steps,
        np.array(taped.tape.wide, np.int64),
        [(register, value) for value, register in taped.tape.constants.items()],
        [taped.entries.get(name, -1) for name in entries],
        dict(taped.tape.inputs),
        [taped.outputs.get(name, -1) for name in ("beta", "tau", "kappa", "buffer", "contraction")],
        dict(taped.flags),
        late,
        steps[taped.by_row()],
    )
