"""The model that a checkpoint's tensors are put into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mooring.anchors.names import plain
from mooring.finetune.errors import SpecError, suggestion
from mooring.finetune.importing import load
from mooring.inspect.checkpoints import architecture

_SHOWN = 3


def from_factory(name: str) -> nn.Module:
    """What ``package.module:factory`` returns.

    Raises:
        SpecError: It cannot be imported or called, or returns no module.
    """
    if ":" not in name:
        raise SpecError(f"--model must be package.module:factory, got {name!r}")
    factory = load(name, "--model")
    try:
        model = factory()
    except Exception as error:
        raise SpecError(f"--model {name}: calling it without arguments failed: {error}") from error
    if not isinstance(model, nn.Module):
        raise SpecError(f"--model {name}: must return a torch.nn.Module, returned {type(model).__name__}")
    return model


def from_folder(path: Path) -> nn.Module:
    """The model of a Hugging Face folder, with its weights, in float32.

    Raises:
        SpecError: Without transformers (extra ``models``), or where it does not know the model.
    """
    try:
        import transformers
    except ImportError as error:
        raise SpecError(f'a Hugging Face folder needs transformers: pip install "mooring[models]" ({error})') from None
    name = architecture(path)
    cls = getattr(transformers, name, None)
    if cls is None:
        raise SpecError(f"transformers {transformers.__version__} has no {name!r}; give --model package.module:factory")
    try:
        model: nn.Module = cls.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise SpecError(f"{str(path)!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    return model


def put_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, frozen_too: bool = True) -> None:
    """Load tensors into a model, all of them and in their shapes; segments that wrappers insert in names are ignored.

    Args:
        model: the module.
        tensors: by name.
        path: where they are from, for messages.
        frozen_too: whether parameters that are not trained must be among them.

    Raises:
        SpecError: It names the tensors that are missing, left over or of another shape. The model is then unchanged.
    """
    ours = model.state_dict()
    by_plain = {plain(name): name for name in ours}
    given = {by_plain.get(plain(name), name): x for name, x in tensors.items()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and not frozen_too}
    missing = [name for name in ours if name not in given and name not in frozen]
    extra = [name for name in given if name not in ours]
    if missing or extra:
        said = []
        if missing:
            hint = suggestion(missing[0], extra)
            said.append(f"has no {_some(missing)}{hint}")
        if extra:
            said.append(f"has {_some(extra)}, which the model does not")
        raise SpecError(f"{str(path)!r} does not fit the model: it {' and '.join(said)}")
    for name, x in given.items():
        if x.shape != ours[name].shape:
            raise SpecError(
                f"{str(path)!r} does not fit the model: {name!r} has shape {tuple(x.shape)}, "
                f"the model's has {tuple(ours[name].shape)}"
            )
    model.load_state_dict({**ours, **given})


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + rest
