"""What each process of the sharded telemetry test does."""

from __future__ import annotations

import math
from typing import Any

import torch.distributed as dist

from tests.optim.table import ROWS, OptimizerRow
from tests.sharding.sides import full
from tests.sharding.workers import build, groups, shard, train

STEPS, EVERY = 9, 2


def compare(row: OptimizerRow) -> dict[str, Any]:
    """Recorded and unrecorded sharded trainings, and a recorded one on one process."""
    models = {"single": build(), "on": shard(build()), "off": shard(build())}
    optimizers = {name: row.build(groups(model), row.remembering) for name, model in models.items()}
    optimizers["single"].record(EVERY, drift=True)
    optimizers["on"].record(EVERY, drift=True)
    worst, keys, calls = 0.0, True, dict[str, set[int]]()
    for step in range(STEPS):
        for name, model in models.items():
            with Counted() as counted:
                optimizers[name].register_step_pre_hook(counted.begin)
                train(model, optimizers[name], step, 1)
                optimizers[name]._optimizer_step_pre_hooks.clear()
            recorded = name == "on" and optimizers[name].recorded
            calls.setdefault("recorded" if recorded else name, set()).add(counted.calls)
        ours, theirs = optimizers["on"].telemetry(True), optimizers["single"].telemetry(True)
        keys = keys and list(ours) == list(theirs)
        for key, expected in theirs.items():
            worst = max(worst, abs(ours[key] - expected) / max(abs(expected), 1e-9))
    pairs = zip(models["on"].parameters(), models["off"].parameters())
    same = all(full(p.detach()).equal(full(q.detach())) for p, q in pairs)
    return {
        "bitwise": same,
        "same names": keys,
        "numbers": len(theirs),
        "finite": all(math.isfinite(v) for v in ours.values()),
        "error": worst,
        "calls": {name: max(found) for name, found in calls.items()},
    }


class Counted:
    """Collectives from the beginning of a step on; those of the forward and backward pass do not count."""

    def __enter__(self) -> Counted:
        self.calls = 0
        self.reduce = dist.all_reduce
        return self

    def begin(self, *_: Any) -> None:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.reduce(*args, **kwargs)

        dist.all_reduce = counting

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self.reduce


def every_row() -> dict[str, Any]:
    return {row.name: compare(row) for row in ROWS}
