"""Accelerate: `prepare`, gradient accumulation, `save_state` and `load_state` around AdamSPD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import mooring as mo

pytestmark = pytest.mark.hosts

EPOCHS, STOP = 8, 3


class Run:
    """One Accelerate program: what `prepare` returned, and a loop that accumulates two micro-batches per step."""

    def __init__(self, model: torch.nn.Module, rows: Any) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        optimizer = mo.AdamSPD(model.parameters(), lr=1e-2, strength=1.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * 4)
        loader = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True)
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model, optimizer, loader, schedule
        )

    def epochs(self, first: int, last: int) -> list[float]:
        """The mean loss of each epoch in `range(first, last)`."""
        means = []
        for epoch in range(first, last):
            self.loader.set_epoch(epoch)
            total = 0.0
            for batch in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = cross_entropy(self.model(batch["input_ids"]), batch["labels"])
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.schedule.step()
                    self.optimizer.zero_grad()
                    total += float(loss.detach())
            means.append(total / len(self.loader))
        return means


def test_stop_and_resume_is_bitwise(rows: Any, token_net: Any, snapshot: Any, strangers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = token_net(dropout=0.2)
    other = strangers(model)
    before = snapshot(model)
    whole = Run(model, rows)
    losses = whole.epochs(0, STOP)
    whole.accelerator.save_state(str(tmp_path))
    losses += whole.epochs(STOP, EPOCHS)
    assert losses[-1] < losses[0]
    before.assert_anchors(model, whole.optimizer.optimizer)

    torch.manual_seed(99)  # the random state must come from the checkpoint
    resumed = Run(other, rows)
    resumed.accelerator.load_state(str(tmp_path))
    before.assert_anchors(other, resumed.optimizer.optimizer)
    resumed.epochs(STOP, EPOCHS)
    snapshot(other).assert_equal(snapshot(model))


def test_only_the_last_micro_batch_of_a_step_moves_the_weights(rows: Any, token_net: Any, snapshot: Any) -> None:
    torch.manual_seed(0)
    model = token_net(dropout=0.0)
    run = Run(model, rows)
    before = snapshot(model)
    moved = []
    for batch in list(run.loader)[:4]:
        with run.accelerator.accumulate(run.model):
            run.accelerator.backward(cross_entropy(run.model(batch["input_ids"]), batch["labels"]))
            run.optimizer.step()
            run.optimizer.zero_grad()
        now = snapshot(model)
        moved.append(any(not torch.equal(value, before.values[name]) for name, value in now.values.items()))
        before = now
    assert moved == [False, True, False, True]
