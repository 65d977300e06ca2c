"""What each process does in the tests of trainers that distribute data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.hosts.conftest import Rows
from tests.hosts.test_perturbed import METHODS, fit, module, plain_loop, trainer, with_norm

STEPS = 3


def _environment() -> None:
    os.environ.update(
        RANK=str(dist.get_rank()),
        LOCAL_RANK=str(dist.get_rank()),
        WORLD_SIZE=str(dist.get_world_size()),
        LOCAL_WORLD_SIZE=str(dist.get_world_size()),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29511",
        TORCHELASTIC_RUN_ID="here",
        HF_HUB_OFFLINE="1",
    )


def without_norm() -> torch.nn.Module:
    net = with_norm(dropout=0.0)
    net.norm = torch.nn.Identity()
    return net.double()


def trainers(folder: str) -> dict[str, Any]:
    """Distance of each trainer's weights from a plain loop over all processes' batches; averages taken per step."""
    _environment()
    rows = Rows()
    found: dict[str, Any] = {}
    for method, make in METHODS.items():
        plain = without_norm()
        # 4 rows of each of 2 processes, 2 micro-batches
        batches = [[rows[slice(16 * t + at, 16 * t + at + 8)] for at in (0, 8)] for t in range(STEPS)]
        plain_loop(plain, make(plain), batches, clip=0.2, decay=False)
        for name in ("transformers", "lightning"):
            net = without_norm()
            with _Reductions() as reductions:
                if name == "transformers":
                    host = trainer(
                        net, make(net), rows, Path(folder), max_steps=STEPS, per_device_train_batch_size=4,
                        save_strategy="no", lr_scheduler_type="constant", ddp_backend="gloo",
                        ddp_find_unused_parameters=False,
                    )  # fmt: skip
                    host.train()
                else:
                    mine = [i for i in range(16 * STEPS) if i // 4 % 2 == dist.get_rank()]
                    part = torch.utils.data.Subset(rows, mine)  # Lightning's own sampler shuffles
                    lit = module(net, make, accumulate_grad_batches=2, gradient_clip_val=0.2, constant=True)
                    options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
                    fit(lit, part, Path(folder), epochs=1, batch_size=4, **options)
            error = max(float((p - q).detach().abs().max()) for p, q in zip(net.parameters(), plain.parameters()))
            found[f"{name} {method}"] = {"error": error, "averages": reductions.count / STEPS}
    return found


class _Reductions:
    """Counts the gradients that DDP averages, in passes over the model: its hooks see every bucket."""

    def __enter__(self) -> _Reductions:
        from torch.nn.parallel import DistributedDataParallel

        self.count = 0
        self.made = DistributedDataParallel.__init__
        counter = self

        def hook(_, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
            counter.count += 1
            work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

        def init(model: Any, *args: Any, **kwargs: Any) -> None:
            counter.made(model, *args, **kwargs)
            model.register_comm_hook(None, hook)

        DistributedDataParallel.__init__ = init  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        from torch.nn.parallel import DistributedDataParallel

        DistributedDataParallel.__init__ = self.made  # type: ignore[method-assign]
