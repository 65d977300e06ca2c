"""Named tensors on disk: safetensors files, the local Hugging Face cache, torch.distributed.checkpoint's folders."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.anchors import distributed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def resolve(anchor: str) -> list[Path]:
    """The files behind a path or hub id; the first is the index where there are several.

    Raises:
        ValueError: if there is no such file or folder, and no such model in the local cache.
    """
    path = Path(anchor).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        if not any((path / name).is_file() for name in (SINGLE, INDEX)) and (path / distributed.METADATA).is_file():
            return _all_there(anchor, distributed.files(path))
        return _in_folder(anchor, lambda name: path / name)
    hub_id, _, revision = anchor.partition("@")
    why = "and no such model is in the local Hugging Face cache"
    try:
        hub: Any = import_module("huggingface_hub")
    except ImportError:
        why = 'and hub ids need the package huggingface_hub (pip install "huggingface_hub")'
    else:
        try:
            hits = {n: hub.try_to_load_from_cache(hub_id, n, revision=revision or None) for n in (SINGLE, INDEX)}
        except ValueError:  # not the form of a hub id
            hits = {}
        if any(isinstance(hit, str) for hit in hits.values()):

            def cached(name: str) -> Path:
                hit = hub.try_to_load_from_cache(hub_id, name, revision=revision or None)
                return Path(hit) if isinstance(hit, str) else Path(name)

            return _in_folder(anchor, cached)
        if hits:
            why += f" (fetch it once: hf download {hub_id})"
    raise ValueError(
        f"anchor must be 'capture', 'zero', None, or a safetensors file, a folder of them or of "
        f"torch.distributed.checkpoint, or a hub id, got {anchor!r}: there is no such file or folder, {why}"
    )


def _in_folder(anchor: str, find: Callable[[str], Path]) -> list[Path]:
    if find(SINGLE).is_file():
        return [find(SINGLE)]
    if not find(INDEX).is_file():
        raise ValueError(
            f"anchor={anchor!r}: the folder must hold {SINGLE} or {INDEX}, or the {distributed.METADATA} of "
            "torch.distributed.checkpoint"
        )
    parts = sorted(set(json.loads(find(INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    return _all_there(anchor, [find(INDEX), *(find(part) for part in parts)])


def _all_there(anchor: str, files: list[Path]) -> list[Path]:
    for file in files:
        if not file.is_file():
            raise ValueError(f"anchor={anchor!r}: {files[0].name} names {file.name}, which is missing")
    return files


class SafetensorsFiles:
    """The tensors of safetensors files, opened and memory-mapped.

    Args:
        files: one, or an index and what it names.
    """

    mapped = True

    def __init__(self, files: Sequence[Path]) -> None:
        self._where: dict[str, Any] = {}
        # Of tied tensors save_model keeps one and notes the others' names in the metadata.
        self._alias: dict[str, str] = {}
        for file in files[1:] or files:
            handle = _open(file)
            self._where.update(dict.fromkeys(handle.keys(), handle))
            self._alias.update({k: v for k, v in (handle.metadata() or {}).items() if isinstance(v, str)})
        self._alias = {k: v for k, v in self._alias.items() if v in self._where and k not in self._where}

    @property
    def keys(self) -> list[str]:
        """All names."""
        return [*self._where, *self._alias]

    def shape(self, key: str) -> torch.Size:
        """The shape of a tensor, from the header alone."""
        key = self._alias.get(key, key)
        return torch.Size(self._where[key].get_slice(key).get_shape())

    def read(self, key: str, part: tuple[slice, ...] | None = None) -> Tensor:
        """A tensor, or a part of it, mapped and not copied."""
        key = self._alias.get(key, key)
        if part is None or not part:
            value: Tensor = self._where[key].get_tensor(key)
        else:
            value = self._where[key].get_slice(key)[part]
        return value


class Source:
    """Named tensors in files; nothing is read before it is asked for.

    Args:
        anchor: a path or hub id, as the group option.

    Raises:
        ValueError: for files that are missing or damaged.
        ImportError: without the package safetensors, where that is what they are.
    """

    def __init__(self, anchor: str) -> None:
        self.anchor = anchor
        self.files = resolve(anchor)
        self._stamps = self._stat()
        self._digest: str | None = None
        self._tensors: SafetensorsFiles | distributed.SavedShards
        if self.files[0].name == distributed.METADATA:
            self._tensors = distributed.SavedShards(self.files[0].parent)
        else:
            self._tensors = SafetensorsFiles(self.files)

    @property
    def mapped(self) -> bool:
        """Whether what is read are mapped pages of the files, and no copy."""
        return self._tensors.mapped

    @property
    def keys(self) -> list[str]:
        """All names."""
        return self._tensors.keys

    def shape(self, key: str) -> torch.Size:
        """The shape of a tensor; reads no data."""
        return self._tensors.shape(key)

    def read(self, key: str, part: tuple[slice, ...] | None = None) -> Tensor:
        """A tensor, or a part of it; never to be written on."""
        return self._tensors.read(key, part)

    def digest(self) -> str:
        """sha256 of the file; of the files' digests where there are several. Reads all of it, once."""
        if self._digest is None:
            self._digest = digest(self.files)
        return self._digest

    def stale(self) -> bool:
        """Whether the files were replaced or written on since they were opened.

        Raises:
            ValueError: if one is missing.
        """
        return self._stat() != self._stamps

    def verify(self, expected: str | None) -> str:
        """The digest, compared with what a group remembers.

        Raises:
            ValueError: if the files are not what they were.
        """
        found = self.digest()
        if expected is not None and found != expected:
            raise ValueError(
                f"anchor: {self.anchor!r} has changed: its sha256 is {found[:16]}…, this training is anchored to "
                f"{expected[:16]}…. Give the path of the file that it began with; to anchor to this one from here on, "
                "set the group's anchor_hash to None"
            )
        return found

    def _stat(self) -> list[tuple[int, int, int]]:
        try:
            stats = [file.stat() for file in self.files]
        except OSError as error:
            raise ValueError(f"anchor={self.anchor!r}: {error.filename} is missing") from error
        return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in stats]


def _open(file: Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError('anchors in files need safetensors: pip install "mooring[anchors]"') from error
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"anchor: {file} is not a safetensors file ({error})") from error


def digest(files: Sequence[Path]) -> str:
    """sha256 of one file, as sha256sum prints it, or of the digests of several."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], whole: Callable[[Tensor], Tensor], keep: bool) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    A file that is there already stays if it says the same, as when a run starts again from the same weights, or when
    several processes of one run write the same weights.

    Args:
        path: the file.
        tensors: what to write, by name.
        whole: gives the complete tensor, on every process; may be a collective.
        keep: False on processes that only take part in the collectives.

    Raises:
        ValueError: if the file exists with other content.
    """
    # Wide types first, so that every tensor is aligned in the mapped file.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        t = tensors[name]
        if t.dtype not in _DTYPES:
            raise ValueError(f"anchor_store: {name!r} is {t.dtype}; files hold real floating point, use 'device'")
        start, end = end, end + t.numel() * t.dtype.itemsize
        header[name] = {"dtype": _DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pieces = (whole(tensors[name]) for name in order)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        if not keep:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for piece in pieces:
                t = piece.detach().to("cpu").contiguous()
                if t.numel():
                    stream.write((ctypes.c_ubyte * (t.numel() * t.dtype.itemsize)).from_address(t.data_ptr()))
            stream.flush()
            os.fsync(stream.fileno())
        if not path.exists():
            temporary.replace(path)
        elif digest([path]) != digest([temporary]):
            raise ValueError(
                f"anchor_file: {path} exists and holds other weights, to which another run may be anchored; delete "
                "it or give another path"
            )
    finally:
        for _ in pieces:  # a full disk here must not leave other processes waiting in a collective
            pass
        temporary.unlink(missing_ok=True)
