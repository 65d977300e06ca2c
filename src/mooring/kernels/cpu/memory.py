"""Tensors as Numba sees them: addresses, and blocks of elements in the compute type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

ENTRY: dict[str, Any] = {"error_model": "numpy", "nogil": True}
"""How kernels are compiled: IEEE division, without Python's lock. No option reorders or fuses arithmetic, so a formula
gives the same bits wherever it stands."""

OPTIONS: dict[str, Any] = {**ENTRY, "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""The same for all that is called inside: it allocates nothing, so nothing counts references, and neither Python nor C
calls it, so it needs no wrappers, which take as long to compile as the rest."""

SAME, BFLOAT16, FLOAT16 = 0, 1, 2
"""How elements are stored: in the compute type, or narrower and widened to it."""

WORDS = np.empty(1, np.uint16)
_INTEGERS = np.empty(1, np.int32)
SHORTS = np.empty(1, np.int16)
_HALF_MIN_NORMAL_EXPONENT = -14
_HALF_DIGITS = 10


@intrinsic
def view(typingctx: Any, address: Any, n: Any, like: Any) -> Any:
    """``n`` elements at an address, as an array of the type of ``like``; nobody owns the memory."""
    array = types.Array(like.dtype, 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, n, _ = arguments
        data = context.get_data_type(array.dtype)
        item = context.get_constant(types.intp, context.get_abi_sizeof(data))
        out = make_array(array)(context, builder)
        pointer = builder.inttoptr(address, data.as_pointer())
        populate_array(out, data=pointer, shape=[n], strides=[item], itemsize=item, meminfo=None)
        return out._getvalue()

    return array(types.int64, types.int64, like), codegen


@intrinsic
def matrix(typingctx: Any, address: Any, rows: Any, columns: Any, like: Any) -> Any:
    """The same in two dimensions."""
    array = types.Array(like.dtype, 2, "C")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, rows, columns, _ = arguments
        data = context.get_data_type(array.dtype)
        item = context.get_constant(types.intp, context.get_abi_sizeof(data))
        out = make_array(array)(context, builder)
        strides = [builder.mul(columns, item), item]
        pointer = builder.inttoptr(address, data.as_pointer())
        populate_array(out, data=pointer, shape=[rows, columns], strides=strides, itemsize=item, meminfo=None)
        return out._getvalue()

    return array(types.int64, types.int64, types.int64, like), codegen


@intrinsic
def widen_half(typingctx: Any, bits: Any) -> Any:
    """float16, given as its bits, as float32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def widen_brain(typingctx: Any, bits: Any) -> Any:
    """bfloat16, given as its bits, as float32: it is the upper half of it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        upper = builder.shl(builder.zext(arguments[0], word), ir.Constant(word, 16))
        return builder.bitcast(upper, ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def bits_of(typingctx: Any, x: Any) -> Any:
    """A float32's bits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def number_of(typingctx: Any, bits: Any) -> Any:
    """The float32 that has these bits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def narrow_half(typingctx: Any, x: Any) -> Any:
    """float32 rounded to the nearest float16, ties to even, as its bits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def added(typingctx: Any, total: Any, x: Any) -> Any:
    """``total + x`` in a sum whose order is free: lanes of the processor may each add their share.

    The one operation that the compiler may reorder. Only such sums can be made by many lanes at once.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=("reassoc",))

    return total(total, x), codegen


@intrinsic
def address_of(typingctx: Any, array: Any) -> Any:
    """Where an array's elements begin. The caller keeps the array alive."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(array)(context, builder, arguments[0]).data
        return builder.ptrtoint(data, cgutils.intp_t)

    return types.int64(array), codegen


@njit(inline="always", **OPTIONS)  # what returns an array must not be called
def load(address, first, n, stored, like, scratch):
    """``n`` elements from ``first`` on, in the compute type: the memory itself, or widened into ``scratch``."""
    if stored == SAME:
        return view(address + first * like.itemsize, n, like)
    words = view(address + 2 * first, n, WORDS)
    out = view(scratch, n, like)
    if stored == BFLOAT16:
        for i in range(n):
            out[i] = widen_brain(words[i])
    else:
        for i in range(n):
            out[i] = widen_half(words[i])
    return out


# One element into bfloat16, the upper half of float32; see ``kernels/rounding.py``. Numba's integers grow to 64 bits
# with every operation, so each is cast back.
_I, _U = np.int32, np.uint32
_EXPONENT, _HALF, _UPPER = _I(0x7F800000), _I(0x8000), _I(-0x10000)
_NAN = np.uint16(0x7FC0)


@njit(inline="always", **OPTIONS)
def upper(bits):
    """The bfloat16 that is the upper half of a float32's bits."""
    return np.uint16(_U(bits) >> _U(16))


@njit(inline="always", **OPTIONS)
def nearest_brain(x):
    """Rounded to nearest, ties to even."""
    bits = bits_of(x)
    rounded = _I(bits + _I(0x7FFF) + (_I(bits >> _I(16)) & _I(1)))
    return upper(rounded) if x == x else _NAN


@njit(inline="always", **OPTIONS)
def stochastic_brain(x, drawn):
    """Rounded up with the probability that keeps the mean; ``drawn``: sixteen random bits."""
    bits = bits_of(x)
    finite = (bits & _EXPONENT) != _EXPONENT
    rounded = upper(_I(bits + _I(drawn)) if finite else bits)
    return rounded if x == x else _NAN


@njit(inline="always", **OPTIONS)
def joined_brain(word, rest):
    """The float32 that a number and its compensation are together."""
    bits = bits_of(widen_brain(word))
    finite = (bits & _EXPONENT) != _EXPONENT
    return number_of(_I(bits + _I(rest)) if finite else bits)


@njit(inline="always", **OPTIONS)
def compensated_brain(x):
    """A number and what it cannot hold."""
    bits = bits_of(x)
    finite = (bits & _EXPONENT) != _EXPONENT
    nearest = _I(_I(bits + _HALF) & _UPPER) if finite else bits
    return upper(nearest) if x == x else _NAN, np.int16(_I(bits - nearest))


@njit(inline="always", **OPTIONS)  # what returns an array must not be called
def join(address, rest, first, n, stored, like, scratch):
    """The float32 weights that a narrow weight and its compensation are together; see ``kernels/rounding.py``."""
    out = load(address, first, n, stored, like, scratch)
    shorts = view(rest + 2 * first, n, SHORTS)
    if stored == BFLOAT16:
        words = view(address + 2 * first, n, WORDS)
        for i in range(n):
            out[i] = joined_brain(words[i], shorts[i])
    else:
        whole = view(scratch, n, _INTEGERS)
        for i in range(n):
            if np.isfinite(out[i]):
                out[i] += np.float32(shorts[i]) * (_half_unit(whole[i]) / np.float32(65536))
    return out


@njit(**OPTIONS)
def store(address, first, n, stored, values):
    """Round to nearest, ties to even."""
    words = view(address + 2 * first, n, WORDS)
    if stored == BFLOAT16:
        for i in range(n):
            words[i] = nearest_brain(np.float32(values[i]))
    else:
        for i in range(n):
            words[i] = narrow_half(values[i])


@njit(**OPTIONS)
def store_stochastic(address, bits, first, n, stored, values):
    """Round up with the probability that keeps the mean; ``bits``: where theirs lie. See ``kernels/rounding.py``."""
    words = view(address + 2 * first, n, WORDS)
    drawn = view(bits, n, _INTEGERS)
    if stored == BFLOAT16:
        for i in range(n):
            words[i] = stochastic_brain(np.float32(values[i]), drawn[i])
        return
    for i in range(n):
        x = np.float32(values[i])
        if np.isfinite(x):
            unit = _half_unit(bits_of(x))
            scaled = x / unit
            below = np.floor(scaled)
            if np.float32(drawn[i]) / np.float32(65536) < scaled - below:
                below += np.float32(1)
            x = below * unit
        words[i] = narrow_half(x)


@njit(**OPTIONS)
def store_compensated(address, rest, first, n, stored, values):
    """Write a narrow number and what it cannot hold; see ``kernels/rounding.py``."""
    words = view(address + 2 * first, n, WORDS)
    shorts = view(rest + 2 * first, n, SHORTS)
    if stored == BFLOAT16:
        for i in range(n):
            words[i], shorts[i] = compensated_brain(np.float32(values[i]))
        return
    for i in range(n):
        x = np.float32(values[i])
        rounded = narrow_half(x)
        wide = widen_half(rounded)
        words[i] = rounded
        left = np.rint((x - wide) / _unit_of(wide) * np.float32(65536))
        if np.isnan(left):
            left = np.float32(0)
        shorts[i] = np.int16(min(max(left, np.float32(-32768)), np.float32(32767)))


@njit(**OPTIONS)
def _half_unit(whole):
    """The distance of float16's numbers at a float32 number that is given as its bits."""
    exponent = ((whole >> np.int32(23)) & np.int32(255)) - np.int32(127)
    exponent = max(exponent, np.int32(_HALF_MIN_NORMAL_EXPONENT)) - np.int32(_HALF_DIGITS)
    return np.float32(2.0) ** exponent


@njit(**OPTIONS)
def _unit_of(x):
    """The same of the number itself, by comparison of its powers of two."""
    _, exponent = math.frexp(x)  # x = m * 2^e with 0.5 <= m < 1
    smallest = np.int32(_HALF_MIN_NORMAL_EXPONENT)
    whole = smallest if x == 0 else max(np.int32(exponent - 1), smallest)
    return np.float32(2.0) ** (whole - np.int32(_HALF_DIGITS))
