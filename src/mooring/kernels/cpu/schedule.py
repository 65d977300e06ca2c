"""What threads do when: tensors cut into pieces, pieces into units, and units dealt out in stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from mooring.kernels.cpu.tables import PIECE

WHOLE = 1 << 15
"""Up to so many elements, a tensor is observed, decided and moved by one thread, in whose cache it stays meanwhile."""
CHUNK = 1 << 15
"""Elements of a larger tensor that one thread takes at a time, where pieces are not longer."""
WAVE = 1 << 18
"""Elements per thread of larger tensors that go through their stages together, so that the cache that threads share
still holds what one stage read when the next one comes."""
_CLAIM = 1 << 16
_EACH = 512
"""What a unit costs beside its elements, in elements."""


class Cut:
    """A batch's slices, cut.

    Args:
        rows: slices of each tensor.
        lengths: elements of each slice, by tensor.

    Attributes:
        pieces: (pieces, 4): tensor, slice, first element, elements; at most PIECE of one slice.
        tensors: (tensors that have elements, 3): tensor, its first piece, one past its last.
        small: those of up to WHOLE elements.
        waves: the others, those that go through their stages together, in groups.
        most_slices: of one tensor.
    """

    def __init__(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        pieces: list[np.ndarray] = []
        tensors = np.zeros((len(rows), 3), np.int64)
        at = at_slice = 0
        for t, (n, length) in enumerate(zip(rows, lengths)):
            each = max(1, -(-length // PIECE))
            which, part = np.divmod(np.arange(n * each), each)
            first = which * length + part * PIECE
            count = np.minimum(PIECE, length - part * PIECE)
            pieces.append(np.stack([np.full_like(which, t), at_slice + which, first, count], 1))
            tensors[t] = t, at, at + len(which)
            at += len(which)
            at_slice += n
        self.pieces = np.concatenate(pieces).astype(np.int64) if pieces else np.zeros((0, 4), np.int64)
        self.tensors = tensors[np.array([n * length > 0 for n, length in zip(rows, lengths)], bool)]
        self.most_slices = max(rows, default=1)
        self._ends = np.concatenate([[0], np.cumsum(self.pieces[:, 3])])
        sizes = self.elements(self.tensors)
        self.small, large = self.tensors[sizes <= WHOLE], self.tensors[sizes > WHOLE]
        number = (np.cumsum(sizes[sizes > WHOLE]) - 1) // (WAVE * torch.get_num_threads())
        self.waves = np.split(large, np.flatnonzero(np.diff(number)) + 1) if len(large) else []

    def elements(self, units: np.ndarray) -> np.ndarray:
        """Of each unit."""
        sizes: np.ndarray = self._ends[units[:, 2]] - self._ends[units[:, 1]]
        return sizes

    def chunks(self, tensors: np.ndarray) -> np.ndarray:
        """Units of about CHUNK elements, each of one tensor."""
        out = []
        for (t, begin, end), size in zip(tensors, self.elements(tensors)):
            number = (self._ends[begin + 1 : end + 1] - self._ends[begin] - 1) // CHUNK if size > CHUNK else np.zeros(1)
            cuts = np.flatnonzero(np.diff(number)) + 1
            out += [(t, a, b) for a, b in pairwise([begin, *(begin + cuts), end])]
        return np.array(out, np.int64).reshape(-1, 3)


class Schedule:
    """Stages, one after the other.

    Args:
        cut: whose units are dealt out.

    Attributes:
        units: (units, 3): tensor, its first piece, one past its last.
        claims: (claims, 2): what a thread takes at a time: its first unit, one past the last.
        stages: (stages, 3): what is done, the first claim, one past the last.
        threads: how many can be busy.
    """

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self.units, self.claims = np.zeros((0, 3), np.int64), np.zeros((0, 2), np.int64)
        self.stages = np.zeros((0, 3), np.int64)
        self.threads = 0

    def add(self, what: int, units: np.ndarray, claim: int = _CLAIM) -> Schedule:
        """A stage.

        Args:
            what: see tables.py.
            units: (units, 3).
            claim: the cost of what a thread takes at a time, in elements.
        """
        if not len(units):
            return self
        number = (np.cumsum(self._cut.elements(units) + _EACH) - 1) // claim
        edges = len(self.units) + np.array([0, *(np.flatnonzero(np.diff(number)) + 1), len(units)], np.int64)
        first = len(self.claims)
        self.claims = np.concatenate([self.claims, np.stack([edges[:-1], edges[1:]], 1)])
        self.units = np.concatenate([self.units, units])
        self.stages = np.concatenate([self.stages, [[what, first, len(self.claims)]]])
        self.threads = max(self.threads, len(self.claims) - first)
        return self
