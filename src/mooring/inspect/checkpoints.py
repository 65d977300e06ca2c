"""Weights on disk: a file of tensors, a trial of ``mooring compare``, a Hugging Face folder. Nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mooring.finetune.errors import SpecError
from mooring.finetune.spec import TrialSpec
from mooring.finetune.trial import MODEL

Kind = Literal["file", "trial", "folder"]
_NESTED = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Checkpoint:
    """What was found at a path.

    Attributes:
        path: as it was given.
        kind: a ``"file"`` of tensors, a ``"trial"`` of ``mooring compare``, or a Hugging Face ``"folder"``.
        tensors: by name, on the CPU.
        spec: of the trial.
    """

    path: Path
    kind: Kind
    tensors: dict[str, Tensor]
    spec: TrialSpec | None = None


def load_checkpoint(path: Path, what: str = "checkpoint") -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: a ``.safetensors`` file; another file, which ``torch.load(weights_only=True)`` reads; a trial's folder; a
            folder with ``config.json`` and safetensors files.
        what: what to call it in messages.

    Raises:
        SpecError: There is none, or it cannot be read.
    """
    if not path.exists():
        raise SpecError(f"there is no {what} {str(path)!r}")
    if path.is_file():
        return Checkpoint(path, "file", _file(path, what))
    if (path / "spec.json").is_file():
        return _trial(path, what)
    files = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not files:
        raise SpecError(
            f"the {what} {str(path)!r} is neither a trial of mooring compare (no spec.json) nor a Hugging Face folder "
            "(config.json and *.safetensors); a single file of tensors can be named too"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _file(file, what)
    return Checkpoint(path, "folder", tensors)


def _trial(path: Path, what: str) -> Checkpoint:
    if not (path / MODEL).is_file():
        raise SpecError(
            f"the trial {str(path)!r} has no {MODEL}: it has not finished, or ran before trials kept their weights; "
            "run its comparison again with --overwrite"
        )
    try:
        spec = TrialSpec.model_validate_json((path / "spec.json").read_text(encoding="utf-8"))
    except ValidationError as error:
        raise SpecError(
            f"the {what} {str(path)!r} has a spec.json of another version: {error.errors()[0]['msg']}"
        ) from None
    return Checkpoint(path, "trial", _file(path / MODEL, what), spec)


def _file(path: Path, what: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused anyway
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise SpecError(
            f"the {what} {str(path)!r} holds more than tensors, or is no file of torch.save; such a pickle can run "
            "code and is not loaded. Save its state_dict, best as safetensors"
        ) from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise SpecError(f"the {what} {str(path)!r} cannot be read: {str(error).splitlines()[0]}") from None
    for name in _NESTED:  # where trainers put it beside the optimizer's state
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise SpecError(f"the {what} {str(path)!r} holds a {type(content).__name__}, not tensors by name")
    tensors = {str(name): x for name, x in content.items() if isinstance(x, Tensor)}
    if not tensors:
        raise SpecError(f"the {what} {str(path)!r} holds no tensors by name")
    return tensors


def architecture(path: Path) -> str:
    """The class that a Hugging Face folder names.

    Raises:
        SpecError: It names none.
    """
    try:
        found: Any = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(f"{str(path / 'config.json')!r} is no JSON: {error}") from None
    names = found.get("architectures") if isinstance(found, dict) else None
    if not names:
        raise SpecError(f"{str(path / 'config.json')!r} names no architectures; give --model package.module:factory")
    return str(names[0])
