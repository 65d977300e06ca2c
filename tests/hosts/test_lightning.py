"""Lightning drives AdamSPD through a closure, accumulates, stops, and resumes from its checkpoint.

Lightning's checkpoint does not hold torch's random state, so these runs use no dropout and a fixed order of rows;
with those the resumed run is bitwise the uninterrupted one.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import mooring as mo

pytestmark = pytest.mark.hosts

EPOCHS, STOP = 6, 2


def module(net: torch.nn.Module) -> Any:
    import lightning

    class FineTune(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.losses: list[float] = []
            self.steps = 0

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            self.steps += 1
            loss = cross_entropy(self.net(batch["input_ids"]), batch["labels"])
            self.losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = mo.AdamSPD(self.net.parameters(), lr=1e-2, strength=1.0)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * 4)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return FineTune()


def fit(host: Any, rows: Any, folder: Path, accumulate: int = 1, epochs: int = EPOCHS, ckpt: Path | None = None) -> Any:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(host, torch.utils.data.DataLoader(rows, batch_size=16), ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_stop_and_resume_is_bitwise(
    accumulate: int, rows: Any, token_net: Any, snapshot: Any, strangers: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = token_net(dropout=0.0)
    other = strangers(net)
    before = snapshot(net)
    whole = module(net)
    trainer = fit(whole, rows, tmp_path, accumulate)
    assert sum(whole.losses[-4:]) < sum(whole.losses[:4])
    assert whole.steps == EPOCHS * 4, "the closure runs once per batch, never skipped, never twice"
    before.assert_anchors(net, trainer.optimizers[0])

    resumed = module(other)
    trainer = fit(resumed, rows, tmp_path, accumulate, ckpt=tmp_path / f"epoch={STOP - 1}.ckpt")
    assert resumed.steps == (EPOCHS - STOP) * 4
    before.assert_anchors(other, trainer.optimizers[0])
    snapshot(other).assert_equal(snapshot(net))


def test_lightning_and_a_plain_loop_take_the_same_steps(
    rows: Any, token_net: Any, snapshot: Any, tmp_path: Path
) -> None:
    """The closure adds nothing: the same weights, bit for bit, as a loop that calls `backward` and `step` itself."""
    torch.manual_seed(0)
    net = token_net(dropout=0.0)
    plain = copy.deepcopy(net)
    fit(module(net), rows, tmp_path)

    optimizer = mo.AdamSPD(plain.parameters(), lr=1e-2, strength=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * 4)
    for _ in range(EPOCHS):
        for batch in torch.utils.data.DataLoader(rows, batch_size=16):
            optimizer.zero_grad()
            cross_entropy(plain(batch["input_ids"]), batch["labels"]).backward()
            optimizer.step()
            schedule.step()
    snapshot(plain).assert_equal(snapshot(net))
