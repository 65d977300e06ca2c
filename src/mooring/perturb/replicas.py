"""Which copy of the model a process works on, where data parallelism trains several."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mooring.step.shards import is_sharded


def replica(groups: list[dict[str, Any]], model: nn.Module | None) -> int:
    """The number of this process's copy of the weights, from 1; 0 without processes.

    Whole tensors: by the rank in DDP's process group, or in the default one. Sharded ones: by the place along those
    dimensions of the mesh along which every weight is replicated. A dimension that splits some weights and replicates
    others, as tensor parallelism does, is one along which processes work on one copy together.

    Args:
        groups: the parameter groups.
        model: the module, where it is known.

    Raises:
        ValueError: where no dimension replicates all sharded weights.
    """
    by_mesh: dict[Any, list[Tensor]] = {}
    for group in groups:
        for p in group["params"]:
            if is_sharded(p):
                by_mesh.setdefault(p.device_mesh, []).append(p)
    if not by_mesh:
        if not (dist.is_available() and dist.is_initialized()):
            return 0
        return 1 + dist.get_rank(model.process_group if isinstance(model, DistributedDataParallel) else None)
    # Weights that tensor parallelism leaves whole lie on a mesh of their own: copies are what all meshes agree on.
    lines = [_copies(mesh, weights) for mesh, weights in by_mesh.items()]
    common = [rank for rank in lines[0] if all(rank in line for line in lines)]
    if len(common) == 1 and max(map(len, lines)) > 1:
        raise ValueError(_message(list(by_mesh)))
    return 1 + common.index(dist.get_rank())


def _copies(mesh: Any, weights: list[Tensor]) -> list[int]:
    """The processes that hold what this one holds, in the mesh's order."""
    dims = [d for d in range(mesh.ndim) if all(p.placements[d].is_replicate() for p in weights)]  # type: ignore[attr-defined]
    if not dims:
        raise ValueError(_message([mesh]))
    here = mesh.get_coordinate()
    ranks: list[int] = (
        mesh.mesh[tuple(slice(None) if d in dims else here[d] for d in range(mesh.ndim))].flatten().tolist()
    )
    return ranks


def _message(meshes: list[Any]) -> str:
    shown = " and ".join(str(mesh) for mesh in meshes)
    return (
        "per_rank=True needs several copies of the model, each with noise of its own: DDP, or HSDP (fully_shard on a "
        f"mesh with a dimension of replicas before that of shards). On {shown} no dimension replicates every weight: "
        "the processes hold one copy together, which has one noise; for more draws raise k"
    )
