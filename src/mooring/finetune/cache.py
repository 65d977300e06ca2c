"""Tensors that are slow to make, kept on disk: written atomically, checked by SHA-256, made by one process only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors.torch import load, save
from torch import Tensor

from mooring.finetune.errors import SpecError
from mooring.finetune.files import write_atomic, write_json

Progress = Callable[[dict[str, Any]], None]


def silent(event: dict[str, Any]) -> None:
    """A progress or report callback that ignores everything."""


@dataclass(frozen=True)
class Entry:
    """Cached tensors, the checksum of their file, and what was noted when they were made."""

    tensors: dict[str, Tensor]
    sha256: str
    notes: dict[str, float]
    made_now: bool


def root() -> Path:
    """The cache folder: ``$MOORING_CACHE``, or the user's cache folder of this system."""
    chosen = os.environ.get("MOORING_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("mooring")


def fetch(
    folder: Path, name: str, make: Callable[[], tuple[dict[str, Tensor], dict[str, float]]], progress: Progress
) -> Entry:
    """The entry ``name`` of a folder; made by ``make`` if it is missing or damaged.

    ``make`` returns tensors and notes. Two processes that want the same entry make it once: the second waits for the
    first. The record ``<name>.json`` is written last and names the file of tensors and its checksum, so an interrupted
    process leaves nothing that could be taken for an entry.
    """
    found = _read(folder, name, progress)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            _tell(progress, f"another process is making {name} in {folder}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise SpecError(
            f"the cache folder {folder} cannot be written ({error}); set MOORING_CACHE to a folder that can"
        ) from error
    try:
        # Another process may have made it while this one waited.
        found = _read(folder, name, progress)
        if found is not None:
            return found
        tensors, notes = make()
        content = save(tensors)
        sha256 = hashlib.sha256(content).hexdigest()
        file = f"{name}-{sha256[:16]}.safetensors"
        write_atomic(folder / file, lambda path: path.write_bytes(content))
        write_json(folder / f"{name}.json", {"file": file, "sha256": sha256, "notes": notes})
        return Entry(tensors, sha256, notes, made_now=True)
    finally:
        lock.release()


def _read(folder: Path, name: str, progress: Progress) -> Entry | None:
    record_path = folder / f"{name}.json"
    if not record_path.is_file():
        return None
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        content = (folder / record["file"]).read_bytes()
        sha256, expected, notes = hashlib.sha256(content).hexdigest(), record["sha256"], record["notes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        _tell(progress, f"the cached {name} in {folder} cannot be read ({error}); it is made again")
        return None
    if sha256 != expected:
        _tell(progress, f"the cached {name} in {folder} does not match its SHA-256; it is made again")
        return None
    return Entry(load(content), sha256, notes, made_now=False)


def _tell(progress: Progress, text: str) -> None:
    progress({"event": "message", "text": text})
