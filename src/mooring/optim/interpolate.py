"""Weights between the anchor and the fine-tuned model: WiSE-FT, Wortsman et al., CVPR 2022 (arXiv 2109.01903)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mooring.optim.base import Optimizer
from mooring.step.batch import compute_dtype


def interpolate(
    model: nn.Module | Mapping[str, Any],
    anchor: nn.Module | Mapping[str, Any] | torch.optim.Optimizer,
    alpha: float,
    *,
    free: str | Iterable[str] = (),
) -> dict[str, Any]:
    """A state dict between the anchor and the fine-tuned weights: ``(1 - alpha) * anchor + alpha * model``.

    WiSE-FT (Wortsman et al., CVPR 2022). 0 is the anchor, 1 the fine-tuned model, both to the bit; formed as
    ``anchor + alpha * (model - anchor)`` in float32 (float64 for float64), so weights that did not move stay as they
    are. As in the authors' code every floating-point entry is interpolated, running statistics of batch norm too;
    those are not the statistics of the interpolated network, so update them
    (``torch.optim.swa_utils.update_bn``) where batch norm matters. Integer entries are the model's unless alpha is 0.

    An optimizer gives the anchors that it has, in its state or in a file. Then buffers and weights without an anchor,
    such as a new head or what was frozen, are the model's, and groups with ``anchor="zero"`` are scaled by alpha. Of
    LoRA that scales both factors, so their product by alpha squared: merge them into the weights first.

    Nothing given is changed, and the result shares no memory with it. Costs one copy of the weights.

    Args:
        model: the fine-tuned model, or its state dict.
        anchor: the pretrained model, its state dict, or an optimizer that has captured anchors.
        alpha: from 0 to 1.
        free: names, or prefixes of names, that the anchor need not have, such as a new head; they are the model's.

    Returns:
        Name -> tensor, for ``model.load_state_dict``.

    Raises:
        TypeError: for an optimizer together with a state dict, which does not say which parameter is which.
        ValueError: for alpha out of range, an entry that the anchor lacks and ``free`` does not name, another shape, a
            name in ``free`` that names nothing, or an optimizer that has none yet.

    Example:
        >>> import copy, torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> pretrained = copy.deepcopy(model.state_dict())
        >>> opt = mo.AdamW(model.parameters(), lr=0.1)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> opt.step()
        >>> model.load_state_dict(mo.interpolate(model, pretrained, alpha=0.5))
        <All keys matched successfully>
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha!r}")
    tuned = dict(_state_dict(model))
    prefixes = (free,) if isinstance(free, str) else tuple(free)
    for prefix in prefixes:
        if not any(_under(name, prefix) for name in tuned):
            raise ValueError(f"free={prefix!r} names nothing of the model")
    by_name = not isinstance(anchor, torch.optim.Optimizer)
    start = _state_dict(anchor) if by_name else _held(model, anchor)  # type: ignore[arg-type]
    out: dict[str, Any] = {}
    for name, value in tuned.items():
        is_free = any(_under(name, prefix) for prefix in prefixes)
        if name in start and not is_free:
            out[name] = _between(name, start[name], value, alpha)
        elif is_free or not by_name or not isinstance(value, Tensor):
            out[name] = value.detach().clone() if isinstance(value, Tensor) else value
        else:
            known = ", ".join(list(start)[:3])
            raise ValueError(f"anchor: it has no {name!r} (it has {known}, ...); name what is new in free=")
    return out


def _between(name: str, start: Any, end: Any, alpha: float) -> Any:
    if not isinstance(start, Tensor) or not isinstance(end, Tensor):
        return end
    if start.shape != end.shape:
        raise ValueError(
            f"anchor: {name!r} has shape {tuple(start.shape)} and in the model {tuple(end.shape)}; "
            "name it in free= if it was made anew"
        )
    start, end = start.detach().to(end.device), end.detach()
    if alpha in (0, 1) or not (end.is_floating_point() or end.is_complex()):
        return (start if alpha == 0 else end).to(end.dtype, copy=True)
    wide = end.dtype if end.is_complex() else compute_dtype(end.dtype)
    between = torch.lerp(start.to(wide), end.to(wide), alpha).to(end.dtype)
    return torch.where(start == end, end, between)  # infinities, such as those of a mask, have no difference


def _held(model: nn.Module | Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The anchors of an optimizer by the names of the model."""
    if not isinstance(model, nn.Module):
        raise TypeError("model: with an optimizer as anchor it must be the module, whose parameters the optimizer has")
    anchors: dict[Tensor, Tensor] = {}
    for group in optimizer.param_groups:
        kind = group.get("anchor")
        for p in group["params"] if kind is not None else ():
            if kind == "zero":
                anchors[p] = torch.zeros_like(p)
            elif (kept := _anchor_of(optimizer, p)) is not None:
                anchors[p] = kept
            elif p.requires_grad:
                raise ValueError(
                    f"anchor: {type(optimizer).__name__} holds no anchor yet for a parameter of shape "
                    f"{tuple(p.shape)} (anchor={kind!r}); give the pretrained state dict"
                )
    if not anchors:
        raise ValueError(f"anchor: {type(optimizer).__name__} holds no anchors; give the pretrained state dict")
    found = {name: anchors[p] for name, p in model.named_parameters(remove_duplicate=False) if p in anchors}
    if not found:
        raise ValueError(f"anchor: {type(optimizer).__name__} steps none of this model's parameters")
    return found


def _anchor_of(optimizer: torch.optim.Optimizer, p: Tensor) -> Tensor | None:
    """In the state, or where a file holds it."""
    return optimizer.anchor_of(p) if isinstance(optimizer, Optimizer) else optimizer.state.get(p, {}).get("anchor")


def _state_dict(x: nn.Module | Mapping[str, Any]) -> Mapping[str, Any]:
    return x.state_dict() if isinstance(x, nn.Module) else x


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
