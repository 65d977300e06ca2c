"""Parameter groups by what a parameter is: which decay, which learning rate, which rows, which anchor."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from mooring.anchors import kinds
from mooring.anchors.held import check_shape
from mooring.anchors.names import first, match
from mooring.anchors.sources import Source

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h|stages?|resblocks|layer_?(?=\d))\.?(\d+)(?:\.|$)")
_LORA = re.compile(r"(?:^|\.)lora_(embedding_)?[AB](?:\.|$)")
# Added beside LoRA's factors but starting at a value that matters, such as DoRA's magnitudes.
_ADDED = re.compile(r"(?:^|\.)lora_")
_INPUT = re.compile(r"(?:^|\.)(?:\w*embed\w*|wte|wpe|cls_token|stem|conv1|conv_stem)(?:\.|$)")


class Kind(NamedTuple):
    """What decides a parameter's group."""

    decays: bool
    embedding: bool
    row_dim: int
    anchor: str | None
    layer: int | None
    invariant: str | None


class ParamGroups(list[dict[str, Any]]):
    """Groups for an optimizer; printed, they are a table."""

    def __repr__(self) -> str:
        header: tuple[str, ...] = ("group", "tensors", "elements", "weight_decay", "lr", "row_dim", "delta", "anchor")
        header += ("scale_invariant",) if any("scale_invariant" in group for group in self) else ()
        rows = [header]
        for group in self:
            elements = sum(p.numel() for _, p in group["params"])
            shown = ("-" if name not in group else str(group[name]) for name in header[3:])
            rows.append((group["name"], str(len(group["params"])), f"{elements:,}", *shown))
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def param_groups(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    lr: float | None = None,
    layer_decay: float | None = None,
    head: str | Iterable[str] = (),
    anchor: str | Mapping[str, Tensor] | None = "capture",
    lora: str = "zero",
    scale_invariant: Mapping[str, str] | None = None,
) -> ParamGroups:
    """Sort a model's trainable parameters into groups.

    - Tensors of fewer than two dimensions, and all parameters of normalisation layers (any class with ``norm`` in its
      name), get ``weight_decay`` 0.
    - Embeddings (also tokens and positions that a module with ``embed`` in its class's name holds) get ``delta`` 0:
      their rows are not projected.
    - Transposed convolutions and GPT-2's ``Conv1D`` get ``row_dim`` 1, where they keep their output channels.
    - Parameters under ``head`` get ``anchor`` None, LoRA factors ``"zero"``, all others ``anchor``.
    - Where ``anchor`` is a file or a state dict, parameters that it has no tensor for are a new head: they get None,
      and their names are logged (logger ``mooring``). It is an error if that would free more than half of the elements.
    - With ``layer_decay``, the learning rate of layer i of n is ``lr * layer_decay ** (n + 1 - i)``, the embeddings
      being layer 0 and everything after the last layer, with the head, layer n + 1 (Clark et al., ICLR 2020).
    - With ``scale_invariant``, the radial projection acts where that says so and nowhere else, and tests no cosine.

    Equal groups are merged and empty ones dropped; tied parameters appear once, under their first name. Options that
    an optimizer does not have are ignored by it, so one set of groups serves all of them.

    Args:
        model: the module; parameters with ``requires_grad=False`` are left out.
        weight_decay: for the parameters that decay; None leaves it to the optimizer, except for those that do not.
        lr: learning rate of the last layer; needed with ``layer_decay``.
        layer_decay: factor per layer, in (0, 1].
        head: names, or prefixes of names, of new parameters without a pretrained value.
        anchor: of all others: ``"capture"``, ``"zero"``, None, where the pretrained weights are (a safetensors file, a
            folder of them or of torch.distributed.checkpoint, a hub id), or a state dict, which must then be given to
            the optimizer with ``optimizer.anchor_to(state_dict)``.
        lora: ``"zero"`` anchors LoRA factors at zero; ``"init"`` at their values at the first real step, which for A is
            its random start. Costs one copy of the factors.
        scale_invariant: names of parameters and whether they are invariant by ``"row"`` or as a ``"tensor"``, as
            :func:`mooring.scale_invariant_parameters` finds them; all others are declared not to be.

    Raises:
        ValueError: for a head or a scale-invariant name that names no parameter, ``layer_decay`` out of range or
            without ``lr``, a model without trainable parameters, or a source that does not fit: missing, of other
            shapes or other names.

    Example:
        >>> import torch, mooring as mo
        >>> body, head = torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)
        >>> model = torch.nn.Sequential(body, torch.nn.LayerNorm(4), head)
        >>> groups = mo.param_groups(model, weight_decay=0.1, head="2")
        >>> opt = mo.AdamSPD(groups, lr=1e-4)
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay!r}")
    if layer_decay is not None and lr is None:
        raise ValueError("lr must be given with layer_decay: each group's learning rate is computed from it")
    if lora not in ("zero", "init"):
        raise ValueError(f"lora must be 'zero' or 'init', got {lora!r}")
    heads = (head,) if isinstance(head, str) else tuple(head)
    members = list(owned_parameters(model))
    if not members:
        raise ValueError("model has no parameter with requires_grad=True")
    for prefix in heads:
        if not any(_under(name, prefix) for name, _, _ in members):
            names = sorted({name.split(".")[0] for name, _, _ in members})
            raise ValueError(f"head={prefix!r} names no trainable parameter; the model has {', '.join(names)}")

    _check_invariance(model, scale_invariant)
    held = [(n, p) for n, p, _ in members if not _ADDED.search(n) and not any(_under(n, prefix) for prefix in heads)]
    named = {} if anchor is None else _sourced(model, held, anchor)
    kind_of_others = "given" if isinstance(anchor, Mapping) else anchor
    layers = {name: _layer(name) for name, _, _ in members}
    last = 1 + max((n for n in layers.values() if n is not None), default=0)
    by_kind: dict[Kind, list[tuple[str, Tensor]]] = {}
    for name, p, owner in members:
        is_head = any(_under(name, prefix) for prefix in heads)
        layer = layers[name]
        depth = None if layer_decay is None else last if is_head or layer is None else layer
        kind = Kind(
            decays=p.ndim >= 2 and "norm" not in type(owner).__name__.lower(),
            embedding=isinstance(owner, _EMBEDDINGS) or "embed" in type(owner).__name__.lower(),
            row_dim=row_dim_in(owner),
            anchor=None if is_head else _anchor(name, p, kind_of_others, lora, named),
            layer=depth,
            invariant=None if scale_invariant is None else scale_invariant.get(name, "none"),
        )
        # Only tensors of two dimensions have rows, so vectors need not split a group for them.
        kind = kind if p.ndim >= 2 else kind._replace(row_dim=0, embedding=False)
        by_kind.setdefault(kind, []).append((named.get(p) or name, p))
    return ParamGroups(
        _group(kind, params, weight_decay, lr, layer_decay, last)
        for kind, params in sorted(by_kind.items(), key=lambda item: _place(item[0]))
    )


def _anchor(name: str, p: Tensor, others: str | None, lora: str, named: Mapping[Tensor, str]) -> str | None:
    if others is None:
        return None
    if _ADDED.search(name):
        return "zero" if lora == "zero" and _LORA.search(name) else "capture"
    return others if p in named else None


def _sourced(
    model: nn.Module, members: list[tuple[str, Tensor]], anchor: str | Mapping[str, Tensor]
) -> dict[Tensor, str]:
    """The parameters that the source of the anchor has a tensor for, under that of their names which it knows."""
    if isinstance(anchor, Mapping):
        label, shapes = "state dict", {key: value.shape for key, value in anchor.items()}
    elif kinds.is_source({"anchor": anchor}):
        kinds.check({"anchor": anchor})
        source = Source(anchor)
        label, shapes = anchor, {key: source.shape(key) for key in source.keys}
    else:
        return {p: name for name, p in members}
    # A tied parameter has several names, and a file may hold it under any of them.
    names: dict[Tensor, list[str]] = {p: [] for _, p in members}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in names:
            names[parameter].append(name)
    found = match([name for every in names.values() for name in every], shapes, label)
    known = {p: name for p, every in names.items() for name in reversed(every) if name in found}
    for p, name in known.items():
        check_shape(name, tuple(p.shape), tuple(shapes[found[name]]), label)
    free = [name for name, p in members if p not in known]
    elements = sum(p.numel() for _, p in members)
    if 2 * sum(p.numel() for _, p in members if p not in known) > elements:
        raise ValueError(
            f"anchor={label!r} has no tensor for more than half of the model: the model has {first(free)}, the source "
            f"{first(sorted(shapes))}. Is it another model, or are the names different?"
        )
    if free:
        logging.getLogger("mooring").warning("not in %s, so without an anchor: %s", label, ", ".join(free))
    return known


def _group(
    kind: Kind,
    params: list[tuple[str, Tensor]],
    weight_decay: float | None,
    lr: float | None,
    layer_decay: float | None,
    last: int,
) -> dict[str, Any]:
    group: dict[str, Any] = {"name": _title(kind), "params": params, "row_dim": kind.row_dim, "anchor": kind.anchor}
    if not kind.decays:
        group["weight_decay"] = 0.0
    elif weight_decay is not None:
        group["weight_decay"] = weight_decay
    if kind.embedding:
        group["delta"] = 0.0
    if kind.invariant is not None:
        group["scale_invariant"] = kind.invariant
    if lr is not None:
        group["lr"] = lr if layer_decay is None or kind.layer is None else lr * layer_decay ** (last - kind.layer)
    return group


def _title(kind: Kind) -> str:
    words = ["embeddings" if kind.embedding else "weights" if kind.decays else "norms and biases"]
    if kind.row_dim:
        words.append("transposed")
    if kind.anchor is None:
        words.append("free")
    elif kind.anchor == "zero":
        words.append("anchored at zero")
    if kind.invariant not in (None, "none"):
        words.append(f"scale invariant by {kind.invariant}")
    if kind.layer is not None:
        words.append(f"layer {kind.layer}")
    return ", ".join(words)


def _place(kind: Kind) -> tuple[Any, ...]:
    return (
        kind.layer or 0,
        kind.anchor is None,
        not kind.embedding,
        not kind.decays,
        kind.row_dim,
        str(kind.anchor),
        str(kind.invariant),
    )


def row_dim_in(owner: nn.Module) -> int:
    """The dimension along which a module's weights are stacked by output channel."""
    return 1 if isinstance(owner, _TRANSPOSED) or type(owner).__name__ == "Conv1D" else 0


def owned_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """(name, parameter, module it belongs to) of every trainable parameter, each once.

    What a parametrization (weight norm, say) keeps belongs to the module that it parametrizes.
    """
    seen: set[Tensor] = set()
    for prefix, module in model.named_modules():
        inside = isinstance(module, ParametrizationList)
        owner = model.get_submodule(prefix.rpartition("parametrizations")[0].rstrip(".")) if inside else module
        for name, p in module.named_parameters(prefix, recurse=False):
            if p.requires_grad and p not in seen:
                seen.add(p)
                yield name, p, owner


def _check_invariance(model: nn.Module, scopes: Mapping[str, str] | None) -> None:
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)} if scopes else set()
    for name, scope in (scopes or {}).items():
        if name not in names:
            raise ValueError(f"scale_invariant[{name!r}] names no parameter of the model")
        if scope not in ("row", "tensor", "none"):
            raise ValueError(f"scale_invariant[{name!r}] must be 'row', 'tensor' or 'none', got {scope!r}")


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _layer(name: str) -> int | None:
    """0 for what feeds the first layer, i + 1 for layer i, None for what comes after."""
    found = _LAYER.search(name)
    if found:
        return int(found[1]) + 1
    return 0 if _INPUT.search(name) else None
