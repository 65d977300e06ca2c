"""Checkpoints of one training: model, optimizer, random states and position, saved on N processes and loaded on M.

A checkpoint is a folder ``checkpoint-STEP``. Its tensors are in the format of `torch.distributed.checkpoint`, every
process writing what it holds; everything else is in ``state.json``. The folder is filled under another name,
``state.json`` is written last, and the folder is renamed when all of it is there: an interrupted process leaves nothing
that could be taken for a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.finetune.errors import TrialError
from mooring.finetune.files import write_text
from mooring.finetune.team import Team, lost_contact
from mooring.step.shards import is_sharded

STATE = "state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_OWN = "own"  # what begins so belongs to one process


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk.

    Attributes:
        path: Its folder.
        step: How many steps had been taken.
        processes: How many processes wrote it.
        content: What it was given, without the tensors.
    """

    path: Path
    step: int
    processes: int
    content: Any = field(repr=False)


def find_checkpoints(folder: Path) -> list[Saved]:
    """The complete checkpoints of a training, oldest first."""
    found = []
    for path in folder.glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            if match is not None:
                found.append(Saved(path, int(match[1]), int(state["processes"]), state["content"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not complete, or not one of ours
    return sorted(found, key=lambda saved: saved.step)


class Checkpoints:
    """The checkpoints that one training writes and continues from.

    Args:
        folder: Of the training; on several machines it has to be the same for all of them.
        every: Steps between two checkpoints; 0 writes one only when the training is asked to stop.
        keep: How many are kept, the newest ones.
    """

    def __init__(self, folder: Path, every: int, keep: int = 2) -> None:
        self.folder, self.every, self.keep = folder, every, keep

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after this step."""
        return bool(self.every) and step % self.every == 0

    def newest(self) -> Saved | None:
        """The checkpoint to continue from."""
        found = find_checkpoints(self.folder)
        return found[-1] if found else None

    def save(self, team: Team, step: int, model: Mapping[str, Tensor], content: Any, own: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint; every process calls it at the same step.

        Args:
            team: The processes.
            step: How many steps have been taken.
            model: Tensors by name, split or the same on every process.
            content: Mappings, lists, numbers and texts, with tensors among them of which the same holds.
            own: Tensors of this process alone.

        Raises:
            TrialError: ``content`` holds something else, or what another process has written cannot be seen here.
        """
        from torch.distributed import checkpoint as dcp  # slow to import, and most trials have no checkpoints

        tensors = {f"model.{name}": x for name, x in model.items()}
        tensors |= {f"{_OWN}.{team.rank}.{name}": x for name, x in own.items()}
        tree = _without_tensors(content, "content", tensors)
        partial, final = self.folder / f".checkpoint-{step}", self.folder / f"checkpoint-{step}"
        if team.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        team.wait()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as it should be
                metadata = dcp.save(  # type: ignore[attr-defined]
                    tensors, checkpoint_id=partial, no_dist=team.size == 1
                )
        except dcp.api.CheckpointException as error:  # of any process; no Exception by itself
            raise TrialError(f"the checkpoint {str(final)!r} cannot be written: {_last_line(error)}") from error
        if team.first:
            files = {partial / stored.relative_path for stored in (metadata.storage_data or {}).values()}
            unseen = sorted(file.name for file in files if not file.is_file())
            if unseen:
                raise TrialError(
                    f"{len(unseen)} of {len(files)} files of the checkpoint, {unseen[0]} for one, cannot be seen in "
                    f"{str(partial)!r}: on several machines --output-dir has to be a folder that all of them share"
                )
            write_text(partial / STATE, json.dumps({"step": step, "processes": team.size, "content": tree}) + "\n")
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync(self.folder)
            for old in find_checkpoints(self.folder)[: -self.keep]:
                shutil.rmtree(old.path, ignore_errors=True)
        team.wait()
        return final

    def load(self, team: Team, saved: Saved, model: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Loaded:
        """Read a checkpoint that any number of processes wrote.

        Args:
            team: The processes, all of which call this.
            saved: Which.
            model: The model's tensors, which are filled in place.
            like: For names that begin so, a tensor that those of its shape are split like.

        Raises:
            TrialError: It cannot be read, or is that of another model.
        """
        from torch.distributed import checkpoint as dcp

        try:
            reader = dcp.FileSystemReader(saved.path)  # type: ignore[attr-defined]
            stored = reader.read_metadata().state_dict_metadata
            into = {f"model.{name}": x for name, x in model.items()}
            own = f"{_OWN}.{team.rank}."
            for name, about in stored.items():
                if name.startswith("content.") or (name.startswith(own) and saved.processes == team.size):
                    into[name] = _room(name, about, like, team)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
                dcp.load(into, storage_reader=reader, no_dist=team.size == 1)  # type: ignore[attr-defined]
        except (Exception, dcp.api.CheckpointException) as error:
            if lost_contact(error):
                raise
            raise TrialError(
                f"the checkpoint {str(saved.path)!r} cannot be read: {_last_line(error)}. Delete its folder to "
                "continue from the one before it, if there is one"
            ) from error
        mine = {name.removeprefix(own): x for name, x in into.items() if name.startswith(own)}
        return Loaded(_with_tensors(saved.content, into), mine)


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint held beside the model.

    Attributes:
        content: As it was given.
        own: The tensors of this process alone; empty where another number of processes wrote the checkpoint.
    """

    content: Any
    own: dict[str, Tensor]


def _room(name: str, about: Any, like: Mapping[str, Tensor], team: Team) -> Tensor:
    size, dtype = about.size, about.properties.dtype
    whose = next((x for prefix, x in like.items() if name.startswith(prefix)), None)
    if whose is None or not is_sharded(whose) or len(size) == 0 or size != whose.shape:
        return torch.empty(size, dtype=dtype)
    from torch.distributed.tensor import empty

    return empty(size, dtype=dtype, device_mesh=whose.device_mesh, placements=whose.placements)  # type: ignore[attr-defined]


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, its tensors put aside under their places' names."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        items = [[key, _without_tensors(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        if all(isinstance(key, (str, int)) for key in value):
            return {"dict": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_without_tensors(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TrialError(
        f"the state of the optimizer holds a {type(value).__name__} ({name}): checkpoints hold tensors, numbers, "
        "texts, lists and mappings; --checkpoint-every 0 trains without them"
    )


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "dict":
        return {key: _with_tensors(item, tensors) for key, item in inside}
    items = [_with_tensors(item, tensors) for item in inside]
    return items if kind == "list" else tuple(items)


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _sync(folder: Path) -> None:
    # A rename is in the folder, which has to reach the disk as the files have.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
