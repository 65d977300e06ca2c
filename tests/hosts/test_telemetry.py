"""Telemetry in the logs of Hugging Face Trainer, Lightning and TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import mooring as mo

pytestmark = pytest.mark.hosts


def test_the_trainer_logs_telemetry(rows: Any, token_net: Any, tmp_path: Path) -> None:
    """In the log history, and in what a logger's callback gets that was there before."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from mooring.integrations.transformers import Telemetry

    class Logger(TrainerCallback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.seen.append(dict(logs))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = token_net(dropout=0.0)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(input_ids)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    logger = Logger()
    trainer = Trainer(
        model=Net(),
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=8,
            per_device_train_batch_size=16,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        optimizer_cls_and_kwargs=(mo.AdamSPD, {"lr": 1e-2}),
        callbacks=[logger],
    )
    Telemetry(every=3).attach(trainer)
    trainer.train()
    name = "model/drift/relative"
    history = {row["step"]: row[name] for row in trainer.state.log_history if name in row}
    assert list(history) == [1, 4, 7]
    assert [row[name] for row in logger.seen if name in row] == list(history.values())
    optimizer = trainer.optimizer.optimizer
    assert history[7] == optimizer.telemetry()[name] > history[1] > 0
    assert not any(key.startswith("group0/") for row in logger.seen for key in row)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning_logs_telemetry(accumulate: int, rows: Any, token_net: Any) -> None:
    import lightning

    from mooring.integrations.lightning import Telemetry

    class FineTune(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = token_net(dropout=0.0)
            self.logged: list[dict[str, Any]] = []

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            return cross_entropy(self.net(batch["input_ids"]), batch["labels"])

        def log_dict(self, values: dict[str, Any], **kwargs: Any) -> None:
            self.logged.append(dict(values))
            super().log_dict(values, **kwargs)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return mo.AdamP(self.net.parameters(), lr=1e-2)

    module = FineTune()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        callbacks=[Telemetry(every=2, groups=True)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=16))
    steps = 8 if accumulate == 1 else 4  # four batches an epoch
    assert [row["model/step/number"] for row in module.logged] == list(range(1, steps + 1, 2))
    assert float(trainer.logged_metrics["group0/weights/norm"]) > 0
    [optimizer] = trainer.optimizers
    assert module.logged[-1]["model/weights/norm"] == optimizer.telemetry()["model/weights/norm"]


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    p = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = mo.AdamSPD([p], lr=1e-2)
    optimizer.record(every=2)
    told = {}
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(5):
            p.grad = torch.randn_like(p)
            optimizer.step()
            if mo.log_to(writer, optimizer, 10 + step):
                told[10 + step] = optimizer.telemetry()["group0/drift/distance"]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("group0/drift/distance")}
    assert list(found) == [10, 12, 14]
    assert found == pytest.approx(told, rel=1e-6)
