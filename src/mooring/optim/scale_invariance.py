"""Which parameters a model's output does not feel the scale of, found by trial."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from mooring.optim.groups import owned_parameters, row_dim_in
from mooring.step.shards import is_sharded

# What the eps of norm layers becomes. Beside any variance above 1e-12 it is rounding, and a variance that is exactly
# zero stays harmless, which eps = 0 would turn into NaN.
_EPS = 1e-20
_EPS_NAME = re.compile(r"(?:^|_)(?:eps|epsilon)(?:_|$)", re.IGNORECASE)
# A scaling that changes the output this much less than factors drawn for each element on their own is no change.
_UNCHANGED = 1e-6
# Below this share of the output the element-wise factors have no influence but rounding.
_UNUSED = 1e-10
_POINTS = 2

_NARROW = frozenset((torch.float32, torch.float16, torch.bfloat16))
_TO_NARROW = frozenset((Tensor.float, Tensor.half, Tensor.bfloat16))
# The place of eps among the arguments.
_NORMS: dict[Callable[..., Any], int] = {
    F.batch_norm: 7,
    F.group_norm: 4,
    F.instance_norm: 7,
    F.layer_norm: 4,
    F.rms_norm: 3,
    torch.batch_norm: 7,
    torch.group_norm: 4,
    torch.instance_norm: 7,
    torch.layer_norm: 4,
    torch.rms_norm: 3,
}

Forward = Callable[[nn.Module, Any], Any]


class ScaleInvariance(dict[str, str]):
    """Parameter name -> ``"row"`` or ``"tensor"``, for those found invariant; printed, it is a table.

    Attributes:
        unused: names of parameters without influence on the output of this batch, of which nothing can be said.
        shapes: the shape of every invariant parameter.
        tried: how many parameters were tried.
    """

    def __init__(self, scopes: Mapping[str, str], unused: Sequence[str], shapes: Mapping[str, torch.Size], tried: int):
        super().__init__(scopes)
        self.unused = tuple(unused)
        self.shapes = dict(shapes)
        self.tried = tried

    def __repr__(self) -> str:
        rows = [("parameter", "shape", "scale invariant by")]
        rows += [(name, "x".join(map(str, self.shapes[name])) or "scalar", scope) for name, scope in self.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        lines.append(f"{self.tried - len(self) - len(self.unused)} others are not")
        if self.unused:
            lines.append(f"without influence on this batch: {', '.join(self.unused)}")
        return "\n".join(lines)


def scale_invariant_parameters(model: nn.Module, batch: Any, forward: Forward | None = None) -> ScaleInvariance:
    """Find the parameters whose scale the model's output does not depend on, by trial.

    On a float64 copy of the model, each trainable parameter is multiplied by random positive factors between 1/2 and 2:
    one for each element (does it have any influence?), one for the tensor, one for each row. It is invariant by tensor
    or by row where the latter two change the output by less than a millionth of what the first does::

        max |f(c p) - f(p)| / |f(p)|  <=  1e-6  max |f(C p) - f(p)| / |f(p)|          over the tensors of the output

    For small factors that ratio is the cosine of gradient and weights times the root of the number of elements, which
    AdamP's test compares with 0.1; here it is measured at float64 and on the output itself, so chance plays no part.

    The copy is tried at two points near the weights, each with factors of its own. Every element is moved a
    little, zeros too: a bias that starts at zero breaks the invariance of the weights before it as soon as it is
    trained. Frozen parameters stay as they are. Norm layers are in train mode; in a model whose root is in train mode
    each module keeps its own, so a batch norm frozen with ``.eval()`` counts as frozen. Dropout is off, and all other
    random numbers are the same in every pass. The eps of norm layers breaks invariance a little in any training, so
    here it is set to 1e-20, whether it is an argument of torch's norm functions or an attribute named ``eps``,
    ``variance_epsilon`` or the like; casts to narrower floats inside the model become casts to float64.

    Nothing of the model changes: weights, buffers, gradients, modes, nor the states of torch's and Python's random
    numbers. Costs 8 bytes per parameter for the copy, and between two and six forward passes per trainable tensor;
    two or three examples are enough (batch norm needs two or more).

    Args:
        model: the plain module, before DDP, FSDP or torch.compile wrap it.
        batch: a tensor is passed to the model as it is, a mapping as keyword arguments, a tuple or list as arguments.
            Floating-point tensors in it become float64.
        forward: ``forward(model, batch)`` where the call or the choice of outputs is another. The output may be
            tensors in lists, tuples, mappings and dataclasses; integer tensors in it are not looked at.

    Returns:
        A dict from parameter name to ``"row"`` or ``"tensor"``; others are absent. Rows are what ``param_groups`` sets
        with ``row_dim``; an invariant vector is invariant as a tensor. Tied parameters appear under their first name.

    Raises:
        TypeError: for an output without floating-point tensors.
        ValueError: for a model without trainable parameters, with sharded parameters or ones on the meta device, that
            cannot be copied, or whose output is NaN.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten())
        >>> found = mo.scale_invariant_parameters(model, torch.randn(2, 3, 8, 8))
        >>> dict(found), found.unused
        ({'0.weight': 'row'}, ('0.bias',))
        >>> opt = mo.AdamP(mo.param_groups(model, scale_invariant=found), lr=1e-3)
    """
    members = {name: (p, row_dim_in(owner)) for name, p, owner in owned_parameters(model)}
    _check({name: p for name, (p, _) in members.items()})
    with _Trial(model, batch, forward or _call) as trial:
        scopes = {name: "" for name, (p, _) in members.items() if not p.is_complex()}
        unused: list[str] = []
        for point in range(_POINTS):
            trial.move_to(point)
            for name, known in list(scopes.items()):
                influence = trial.change(name, None)
                if influence <= _UNUSED:
                    unused.append(name)
                found = "" if influence <= _UNUSED else trial.scope(name, members[name][1], known, influence)
                if found:
                    scopes[name] = found
                else:
                    del scopes[name]
    if len(unused) == len(members):
        raise ValueError(
            "model: no trainable parameter influences the output; does forward call the model it is given?"
        )
    shapes = {name: members[name][0].shape for name in scopes}
    return ScaleInvariance(scopes, unused, shapes, len(members))


class _Trial:
    """A float64 copy of a model, and how much its output changes when one of its parameters is scaled.

    As a context it keeps everything of the process that a forward pass here touches: random numbers and defaults.
    """

    def __init__(self, model: nn.Module, batch: Any, forward: Forward) -> None:
        try:
            self.copy = copy.deepcopy(model)
        except Exception as error:
            raise ValueError(f"model: it cannot be copied, and the trial needs a copy to work on: {error}") from error
        self.originals = {name: p for name, p, _ in owned_parameters(model)}
        named = dict(self.copy.named_parameters())
        self.params = {name: named[name] for name in self.originals}
        self.batch, self.forward = _each_tensor(batch, _wide), forward
        self.devices = list(range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0))  # type: ignore[no-untyped-call]
        self.draws = torch.Generator()
        self.base: list[Tensor] = []
        _prepare(self.copy)

    def __enter__(self) -> _Trial:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.random.fork_rng(self.devices))
            stack.callback(random.setstate, random.getstate())
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
            stack.enter_context(_Float64())
            self.leave = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave.close()

    def move_to(self, point: int) -> None:
        """Put the copy near the model's weights: each element keeps its sign, and zeros get one."""
        self.draws.manual_seed(point)
        for name, p in self.params.items():
            p.copy_(self.originals[name])
            size = float(p.abs().square().mean().sqrt())
            noise = torch.randn(p.shape, generator=self.draws, dtype=torch.float64).to(p.device)
            nudged = p * self.factors(p.shape, 0.0, 0.2, p.device)
            p.copy_(torch.where(p == 0, noise * (0.1 * size if size > 0 else 0.1), nudged))
        self.base = self.outputs()
        if any(bool(x.isnan().any()) for x in self.base):
            raise ValueError("model: its output is NaN")

    def scope(self, name: str, row_dim: int, known: str, influence: float) -> str:
        """The widest freedom of a parameter, at most ``known``: "row", "tensor", or "" where it has none."""
        limit = influence * _UNCHANGED
        if self.change(name, ()) > limit:
            return ""
        shape = self.params[name].shape
        if len(shape) < 2 or known == "tensor":
            return "tensor"
        rows = tuple(n if dim == row_dim else 1 for dim, n in enumerate(shape))
        return "row" if self.change(name, rows) <= limit else "tensor"

    def change(self, name: str, shape: tuple[int, ...] | None) -> float:
        """How much the output changes when a parameter is multiplied by factors of a shape; None is its own."""
        p = self.params[name]
        saved = p.clone()
        # Away from 1, so that one factor for a whole tensor is never nearly none.
        p.mul_(self.factors(p.shape if shape is None else shape, 0.2, math.log(2), p.device))
        new = self.outputs()
        p.copy_(saved)
        if len(new) != len(self.base):
            return math.inf
        return max(_distance(x, y) for x, y in zip(self.base, new))

    def factors(self, shape: tuple[int, ...], low: float, high: float, device: torch.device) -> Tensor:
        """Positive factors whose logarithms have either sign and a size between low and high."""
        size, sign = torch.rand((2, *shape), generator=self.draws, dtype=torch.float64)
        exponent: Tensor = (low + (high - low) * size) * torch.where(sign < 0.5, -1.0, 1.0)
        return exponent.exp().to(device)

    def outputs(self) -> list[Tensor]:
        """All floating-point tensors of the output, with the same random numbers every time."""
        random.seed(0)
        torch.default_generator.manual_seed(0)
        if self.devices:
            torch.cuda.manual_seed_all(0)
        found = [x.to(torch.float64) for x in _tensors(self.forward(self.copy, self.batch))]
        if not found:
            raise TypeError("model: its output holds no floating-point tensor; choose one with forward=")
        return found


def _distance(base: Tensor, new: Tensor) -> float:
    """Relative change of a tensor; infinities must stay where they are (masks), and then do not count."""
    if base.shape != new.shape:
        return math.inf
    same = base == new
    if not bool((same | (base.isfinite() & new.isfinite())).all()):
        return math.inf
    change = torch.where(same, 0.0, new - base).norm()
    size = torch.where(base.isfinite(), base, 0.0).norm()
    return float(change / size) if size > 0 else float(change)


def _prepare(model: nn.Module) -> None:
    """Widen a copy to float64, set its modes, and take the eps out of its norms."""
    if not model.training:
        model.train()
    model._apply(_wide)  # type: ignore[no-untyped-call]
    for module in model.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and _EPS_NAME.search(name) and 0 < value < 0.1:
                setattr(module, name, _EPS)
            elif isinstance(value, Tensor):  # a constant that is no buffer
                setattr(module, name, _wide(value.detach()))


class _Float64(TorchFunctionMode):
    """Casts to narrower floats become casts to float64, and norm functions get no eps to speak of."""

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _TO_NARROW:
            return args[0].double()
        args = tuple(_wide_type(a) for a in args)
        kwargs = {name: _wide_type(a) for name, a in (kwargs or {}).items()}
        place = _NORMS.get(func)
        if place is not None and place < len(args):
            args = (*args[:place], _EPS, *args[place + 1 :])
        elif place is not None:
            kwargs["eps"] = _EPS
        return func(*args, **kwargs)


def _wide_type(x: Any) -> Any:
    return torch.float64 if isinstance(x, torch.dtype) and x in _NARROW else x


def _wide(x: Tensor) -> Tensor:
    if x.is_complex():
        return x.to(torch.complex128)
    return x.to(torch.float64) if x.is_floating_point() else x


def _check(members: Mapping[str, Tensor]) -> None:
    if not members:
        raise ValueError("model has no parameter with requires_grad=True")
    for name, p in members.items():
        if p.is_meta:
            raise ValueError(f"model: parameter {name!r} is on the meta device and has no values")
        if is_sharded(p) or getattr(p, "_fsdp_flattened", False):
            raise ValueError(f"model: parameter {name!r} is sharded; find the parameters before fully_shard")


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


def _each_tensor(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same lists, tuples and mappings with every tensor changed; other things as they are."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, Mapping):
        return {key: _each_tensor(value, change) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        items = [_each_tensor(item, change) for item in x]
        return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
    return x


def _tensors(x: Any) -> Iterator[Tensor]:
    """The floating-point tensors of an output, complex ones as pairs of real numbers."""
    if isinstance(x, Tensor):
        if x.is_complex() or x.is_floating_point():
            yield torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    elif isinstance(x, Mapping):
        for value in x.values():
            yield from _tensors(value)
    elif isinstance(x, (tuple, list)):
        for value in x:
            yield from _tensors(value)
    elif is_dataclass(x) and not isinstance(x, type):
        for field in fields(x):
            yield from _tensors(getattr(x, field.name))
