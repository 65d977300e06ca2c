"""Named tensors in a folder that torch.distributed.checkpoint wrote: their pieces, read one by one.

What lies where is a pickle there (``.metadata``), and unpickling what somebody else wrote runs what it says. Here it is
read without that: whatever class or function it names, none is looked up, and an inert :class:`Record` stands in its
place. Of the data files each piece is read by ``torch.load`` with ``weights_only=True``.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

METADATA = ".metadata"


class Record:
    """What stands for an object of a pickle: the arguments it was to be made with, and its state."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Record:
        """Pickles make objects with and without calling ``__init__``."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Inert(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        return type(name, (Record,), {"module": module})


@dataclass
class Saved:
    """A tensor of the checkpoint.

    Attributes:
        shape: of the whole tensor.
        pieces: by where they begin, the file, and which bytes of it; shapes are in the pieces themselves.
    """

    shape: tuple[int, ...]
    pieces: dict[tuple[int, ...], Piece] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """A rectangle of a tensor, and where it is stored."""

    shape: tuple[int, ...]
    file: str
    start: int
    length: int


def read_metadata(path: Path) -> dict[str, Saved]:
    """Which tensors a checkpoint holds, by name, and where their pieces lie; runs nothing that the file says.

    Raises:
        ValueError: for a file that is no metadata of torch.distributed.checkpoint, names files elsewhere, or tells of
            pieces that were compressed.
    """
    try:
        with path.open("rb") as stream:
            metadata = _Inert(stream).load().state
        found: dict[str, Saved] = {}
        shapes: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}
        for name, entry in metadata["state_dict_metadata"].items():
            if "chunks" in entry.state:  # other entries are no tensors
                found[str(name)] = Saved(_numbers(entry.state["size"]))
                for chunk in entry.state["chunks"]:
                    shapes[name, _numbers(chunk.state["offsets"])] = _numbers(chunk.state["sizes"])
        for index, info in metadata["storage_data"].items():
            name, where = index.state["fqn"], index.state.get("offset")
            if name in found:
                if info.state.get("transform_descriptors"):
                    raise ValueError(
                        f"{name!r} was transformed when it was saved ({info.state['transform_descriptors']})"
                    )
                file, start, length = (info.state[key] for key in ("relative_path", "offset", "length"))
                if Path(file).name != file:
                    raise ValueError(f"it names {file!r}, which is not in this folder")
                offset = _numbers(where)
                found[name].pieces[offset] = Piece(shapes[name, offset], file, int(start), int(length))
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"anchor: {path} is not to be read as metadata of torch.distributed.checkpoint ({error})"
        ) from error
    return found


def _numbers(size: Any) -> tuple[int, ...]:
    """A ``torch.Size`` that was not made."""
    return tuple(int(n) for n in size.arguments[0]) if size.arguments else ()


class SavedShards:
    """The tensors of a checkpoint of torch.distributed.checkpoint. Nothing is read before it is asked for.

    Args:
        folder: where ``.metadata`` lies.
    """

    mapped = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved = read_metadata(folder / METADATA)

    @property
    def keys(self) -> list[str]:
        """All names."""
        return list(self._saved)

    def shape(self, key: str) -> torch.Size:
        """The shape of a whole tensor."""
        return torch.Size(self._saved[key].shape)

    def read(self, key: str, part: tuple[slice, ...] | None = None) -> Tensor:
        """A tensor, or a part of it, from the pieces that it meets; others are not read.

        Raises:
            ValueError: for pieces that are missing or damaged.
        """
        saved = self._saved[key]
        wanted = part or tuple(slice(0, n) for n in saved.shape)
        shape = [s.stop - s.start for s in wanted]
        out: Tensor | None = None
        filled = 0
        for here, inside, piece in _meeting(saved.pieces, wanted):
            value = self._load(key, piece)
            if tuple(value.shape) != piece.shape:
                raise ValueError(
                    f"anchor: a piece of {key!r} in {self._folder} has shape {tuple(value.shape)}, not {piece.shape}"
                )
            out = torch.empty(shape, dtype=value.dtype) if out is None else out
            out[here] = value[inside]
            filled += out[here].numel()
        if out is None and math.prod(shape) == 0:  # this process holds nothing of it
            out = torch.empty(shape)
        if out is None or filled != math.prod(shape):
            raise ValueError(f"anchor: {self._folder} does not hold all pieces of {key!r}")
        return out

    def _load(self, key: str, piece: Piece) -> Tensor:
        path = self._folder / piece.file
        try:
            with path.open("rb") as stream:
                stream.seek(piece.start)
                value = torch.load(io.BytesIO(stream.read(piece.length)), map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"anchor: the piece of {key!r} in {path} is damaged ({error})") from error
        if not isinstance(value, Tensor):
            raise ValueError(f"anchor: the piece of {key!r} in {path} is a {type(value).__name__}, not a tensor")
        return value


def files(folder: Path) -> list[Path]:
    """The metadata and the files with the pieces of tensors."""
    saved = read_metadata(folder / METADATA)
    names = sorted({piece.file for tensor in saved.values() for piece in tensor.pieces.values()})
    return [folder / METADATA, *(folder / name for name in names)]


Slices = tuple[slice, ...]


def _meeting(pieces: Mapping[tuple[int, ...], Piece], wanted: Slices) -> Iterator[tuple[Slices, Slices, Piece]]:
    """The pieces that meet a part: where in the part, which slice of the piece, the piece."""
    for offset, piece in pieces.items():
        starts = [max(o, w.start) for o, w in zip(offset, wanted)]
        stops = [min(o + n, w.stop) for o, n, w in zip(offset, piece.shape, wanted)]
        if all(a < b for a, b in zip(starts, stops)):
            here = tuple(slice(a - w.start, b - w.start) for a, b, w in zip(starts, stops, wanted))
            inside = tuple(slice(a - o, b - o) for a, b, o in zip(starts, stops, offset))
            yield here, inside, piece
