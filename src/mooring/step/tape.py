"""Rules written down as a list of operations, for kernels that evaluate them tensor by tensor.

A rule is a function of a few float64 numbers. Called once with stand-ins for them, it leaves a tape of what it does;
``kernels/cpu`` plays it for every tensor. The operations are those of float64, each rounded by itself, so a tape gives
the bits that the rule gives in torch. A rule that asks for more than arithmetic (the shape of a tensor, a function that
is not in the list) cannot be taped: it is evaluated in torch, between the kernel's stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mooring.step.move import Move, Slices
from mooring.step.rule import Rule

_PLAIN = {
    torch.add: "add", torch.sub: "sub", torch.mul: "mul", torch.div: "div", torch.true_divide: "div",
    torch.maximum: "maximum", torch.minimum: "minimum", torch.lt: "lt", torch.le: "le", torch.gt: "gt",
    torch.ge: "ge", torch.eq: "eq", torch.ne: "ne", torch.logical_and: "logical_and", torch.logical_or: "logical_or",
    torch.neg: "neg", torch.abs: "abs", torch.sqrt: "sqrt", torch.rsqrt: "rsqrt", torch.reciprocal: "reciprocal",
    torch.logical_not: "logical_not", torch.isfinite: "isfinite", torch.where: "where",
}  # fmt: skip


_TESTS = frozenset("lt le gt ge eq ne logical_and logical_or logical_not isfinite".split())  # noqa: SIM905


class NotTaped(Exception):
    """A rule does something that has no place on a tape."""


class Tape:
    """What rules do to numbers, in order.

    Attributes:
        steps: (name, result, operands, whether the result is a row).
        wide: per number, whether there is one for each slice.
        constants, inputs: the numbers that are given, by value and by name.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, tuple[int, ...], bool]] = []
        self.wide: list[bool] = []
        self.constants: dict[float, int] = {}
        self.inputs: dict[str, int] = {}
        self._done: dict[tuple[str, tuple[int, ...], bool], int] = {}

    def new(self, wide: bool) -> Number:
        """A number that nothing has been done to yet."""
        self.wide.append(wide)
        return Number(self, len(self.wide) - 1)

    def constant(self, value: float) -> Number:
        """A number that never changes."""
        if value not in self.constants:
            self.constants[value] = self.new(False).index
        return Number(self, self.constants[value])

    def input(self, name: str) -> Number:
        """A number that every tensor has one of."""
        if name not in self.inputs:
            self.inputs[name] = self.new(False).index
        return Number(self, self.inputs[name])

    def do(self, name: str, *operands: Any, row: bool = False) -> Number:
        """Write an operation down; ``row`` where its result is one also if no operand is."""
        given = [self.number(x) for x in operands]
        wide = row or (name != "sum" and any(self.wide[x.index] for x in given))
        done = name, tuple(x.index for x in given), wide
        if done in self._done:
            return Number(self, self._done[done])
        out = self.new(wide)
        self.steps.append((name, out.index, done[1], wide))
        self._done[done] = out.index
        return out

    def forget(self, wanted: Sequence[int]) -> None:
        """Leave out what the wanted numbers do not depend on."""
        needed, kept = set(wanted), []
        for step in reversed(self.steps):
            _, out, operands, _ = step
            if out in needed:
                needed.update(operands)
                kept.append(step)
        self.steps = kept[::-1]

    def number(self, x: Any) -> Number:
        """A stand-in for an operand."""
        if isinstance(x, Number):
            return x
        if isinstance(x, (bool, int, float)):
            return self.constant(float(x))
        raise NotTaped(f"an operand of type {type(x).__name__}")


class Number:
    """A stand-in for a float64 tensor, per slice or per tensor, that writes down what is done to it."""

    dtype = torch.float64

    def __init__(self, tape: Tape, index: int) -> None:
        self.tape, self.index = tape, index

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tape = next(x for x in [*args, *kwargs.values()] if isinstance(x, Number)).tape
        if function in _PLAIN and not kwargs:
            return tape.do(_PLAIN[function], *args)
        if function in (torch.zeros_like, torch.ones_like) and not kwargs:
            # As wide as what it is like, which where() and sums over slices depend on.
            return tape.do("copy", tape.constant(float(function is torch.ones_like))).like(args[0])
        if function is torch.clamp:
            return args[0].clamp(*args[1:], **kwargs)
        raise NotTaped(getattr(function, "__name__", str(function)))

    def like(self, other: Number) -> Number:
        """The same number, at every slice where ``other`` has one for each."""
        return self if not self.tape.wide[other.index] else self.tape.do("copy", self, row=True)

    def clamp(self, min: Any = None, max: Any = None) -> Number:
        """NaN stays NaN, as in torch."""
        x = self if min is None else self.tape.do("maximum", self, min)
        return x if max is None else self.tape.do("minimum", x, max)

    def __getattr__(self, name: str) -> Callable[[], Number]:
        function = getattr(torch, name, None)
        if function not in _PLAIN:
            raise NotTaped(name)
        return lambda *others: self.tape.do(_PLAIN[function], self, *others)

    def double(self) -> Number:
        """Every number here is float64."""
        return self

    def to(self, *_: Any, **__: Any) -> Number:
        """Likewise; a truth value is 0 or 1."""
        return self

    def __add__(self, x: Any) -> Number:
        return self.tape.do("add", self, x)

    def __radd__(self, x: Any) -> Number:
        return self.tape.do("add", x, self)

    def __sub__(self, x: Any) -> Number:
        return self.tape.do("sub", self, x)

    def __rsub__(self, x: Any) -> Number:
        return self.tape.do("sub", x, self)

    def __mul__(self, x: Any) -> Number:
        return self.tape.do("mul", self, x)

    def __rmul__(self, x: Any) -> Number:
        return self.tape.do("mul", x, self)

    def __truediv__(self, x: Any) -> Number:
        return self.tape.do("div", self, x)

    def __rtruediv__(self, x: Any) -> Number:
        return self.tape.do("div", x, self)

    def __neg__(self) -> Number:
        return self.tape.do("neg", self)

    def __lt__(self, x: Any) -> Number:
        return self.tape.do("lt", self, x)

    def __le__(self, x: Any) -> Number:
        return self.tape.do("le", self, x)

    def __gt__(self, x: Any) -> Number:
        return self.tape.do("gt", self, x)

    def __ge__(self, x: Any) -> Number:
        return self.tape.do("ge", self, x)

    def __eq__(self, x: Any) -> Number:  # type: ignore[override]
        return self.tape.do("eq", self, x)

    def __ne__(self, x: Any) -> Number:  # type: ignore[override]
        return self.tape.do("ne", self, x)

    def __and__(self, x: Any) -> Number:
        return self.tape.do("logical_and", self, x)

    def __or__(self, x: Any) -> Number:
        return self.tape.do("logical_or", self, x)

    def __invert__(self) -> Number:
        return self.tape.do("logical_not", self)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise NotTaped("a branch of the host")


class Taped:
    """Rules on a tape.

    Attributes:
        tape: the operations.
        entries: the number of each Gram entry.
        outputs: the numbers of the coefficients that were written, and of the contraction's amount.
        flags: the numbers that rules count, by name.
    """

    def __init__(self, tape: Tape, entries: dict[str, int], outputs: dict[str, int], flags: dict[str, int]) -> None:
        self.tape, self.entries, self.outputs, self.flags = tape, entries, outputs, flags

    def later(self, entry: str) -> list[int] | None:
        """Which steps depend on an entry; None where a decision does, which would hide that the entry is NaN."""
        late, found = {self.entries[entry]}, []
        for i, (name, out, operands, _) in enumerate(self.tape.steps):
            if late.isdisjoint(operands):
                continue
            if name in _TESTS or (name == "where" and operands[0] in late):
                return None
            late.add(out)
            found.append(i)
        return None if late & {*self.flags.values()} else found

    def by_row(self) -> list[int]:
        """Which steps lead to the outputs where all numbers that are not rows are known."""
        needed, found = set(self.outputs.values()), []
        for i, (_, out, operands, wide) in reversed([*enumerate(self.tape.steps)]):
            if wide and out in needed:
                needed.update(operands)
                found.append(i)
        return found[::-1]


def tape_rules(rules: Sequence[Rule], group: Any, entries: Sequence[str]) -> Taped:
    """Call rules once, with stand-ins.

    Raises:
        NotTaped: where a rule asks for more than arithmetic.
    """
    tape = Tape()
    rows = {name: tape.new(True) for name in entries}
    flags: dict[str, int] = {}

    def count(name: str, where: Number) -> None:
        if name in flags:
            where = tape.do("logical_or", Number(tape, flags[name]), where)
        flags[name] = where.index

    x = Slices(
        entries=rows,  # type: ignore[arg-type]
        option=lambda name: tape.input(f"option {name}"),  # type: ignore[arg-type,return-value]
        matrix=tape.input("matrix"),  # type: ignore[arg-type]
        numel=tape.input("numel"),  # type: ignore[arg-type]
        row_length=tape.input("row length"),  # type: ignore[arg-type]
        per_slice=lambda number: number,
        stable_scale=lambda: tape.input("stable scale"),  # type: ignore[arg-type,return-value]
        move=Move(beta=tape.input("step size")),  # type: ignore[arg-type]
        shared=group,
        count=count,  # type: ignore[arg-type]
    )
    try:
        for rule in rules:
            parts = rule.sums(x)
            rule.decide(x, [tape.do("sum", part) for part in parts])  # type: ignore[misc]
    except (AttributeError, TypeError) as error:
        raise NotTaped(str(error)) from error
    written = {name: getattr(x.move, name) for name in ("beta", "tau", "kappa", "buffer", "contraction")}
    outputs = {name: tape.number(c).index for name, c in written.items() if c is not None}
    tape.forget([*outputs.values(), *flags.values()])
    return Taped(tape, {name: row.index for name, row in rows.items()}, outputs, flags)
