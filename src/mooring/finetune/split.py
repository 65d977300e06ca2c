"""A model split among processes with FSDP2: which of its modules are gathered one at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from mooring.finetune.norms import normalise_over

_LISTS = (nn.ModuleList, nn.Sequential)


def units(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered for their own work alone: the elements of the outermost lists and sequences.

    Those that hold no matrix are left to the whole model's own group, and so are those that share a parameter with
    something outside of them, as tied embeddings do: two groups cannot both own it.
    """
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found: list[nn.Module] = []

    def own(module: nn.Module) -> bool:
        inside = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
        return all(uses[key] == count for key, count in inside.items())

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, _LISTS) and own(child) and any(p.ndim > 1 for p in child.parameters()):
                found.append(child)
            else:
                visit(child)

    visit(model)
    return found


def split(model: nn.Module, mesh: Any, methods: tuple[str, ...] = ()) -> nn.Module:
    """Split the model's parameters over the processes of a mesh, in place; they become DTensors under the same names.

    Batch normalization is taken over the examples of all processes (`mooring.finetune.norms`).

    Args:
        model: The same on every process, on the CPU or on the mesh's device.
        mesh: One dimension of processes.
        methods: Methods of the model beside ``forward`` that are called from outside and use its parameters.

    Raises:
        SpecError: See `normalise_over`.
    """
    normalise_over(model, mesh.get_group())
    for unit in units(model):
        fully_shard(unit, mesh=mesh)
    # Without it the root keeps its gathered weights after a forward pass without gradients, and what moves the shards
    # (a step, a perturbation) would not be seen by the next pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for method in methods:
        register_fsdp_forward_method(model, method)
    return model
