"""Hugging Face `Trainer` fine-tunes a tiny BERT with AdamSPD, stops, resumes from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mooring as mo

pytestmark = pytest.mark.hosts

STEPS, STOP = 24, 14


def pretrained() -> torch.nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=2,
    )
    return BertForSequenceClassification(config)  # dropout .1, on purpose: a resume must restore the random state


def trainer(model: torch.nn.Module, rows: Any, folder: Path, options: dict[str, Any], **arguments: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=16,
            save_strategy="steps",
            save_steps=STOP,
            logging_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **arguments,
        ),
        train_dataset=rows,
        optimizer_cls_and_kwargs=(mo.AdamSPD, options),
    )


def optimizer_of(host: Any) -> torch.optim.Optimizer:
    """The AdamSPD inside the wrapper that the Trainer's Accelerator puts around it."""
    return getattr(host.optimizer, "optimizer", host.optimizer)


def losses(host: Any) -> list[float]:
    return [row["loss"] for row in host.state.log_history if "loss" in row]


def test_stop_and_resume_is_bitwise(rows: Any, snapshot: Any, strangers: Any, tmp_path: Path) -> None:
    """Stops in the middle of an epoch (4 batches each), with dropout on and a schedule that starts at lr 0."""
    options = {"lr": 5e-3, "strength": 1.0}
    model = pretrained()
    before = snapshot(model)
    whole = trainer(model, rows, tmp_path, options, warmup_steps=3)
    whole.train()
    assert isinstance(optimizer_of(whole), mo.AdamSPD)
    early, late = sum(losses(whole)[:4]), sum(losses(whole)[-4:])
    assert late < early
    before.assert_anchors(model, optimizer_of(whole))

    resumed_model = strangers(model)
    resumed = trainer(resumed_model, rows, tmp_path, options, warmup_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STOP}"))
    assert resumed.state.global_step == STEPS
    before.assert_anchors(resumed_model, optimizer_of(resumed))
    snapshot(resumed_model).assert_equal(snapshot(model))


def test_the_anchor_is_what_the_weights_are_when_the_first_step_moves_them(
    rows: Any, snapshot: Any, tmp_path: Path
) -> None:
    """Warm-up starts with lr 0: that step moves nothing, and weights loaded after it still become the anchor."""
    from transformers import TrainerCallback

    model = pretrained()
    before = snapshot(model)
    late: list[Any] = []

    class LoadAfterTheFirstStep(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not late:
                before.assert_equal(snapshot(model))
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(1.5)
                late.append(snapshot(model))

    host = trainer(model, rows, tmp_path, {"lr": 5e-3}, warmup_steps=3)
    host.add_callback(LoadAfterTheFirstStep())
    host.train()
    late[0].assert_anchors(model, optimizer_of(host))


def test_weight_decay_of_the_trainer_pulls_toward_the_anchor(rows: Any, tmp_path: Path) -> None:
    """The Trainer writes `weight_decay` into its groups: it must shrink the drift, not the weights, and say so once."""
    drift = {}
    for decay in (0.0, 50.0):
        model = pretrained()
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        host = trainer(model, rows, tmp_path / str(decay), {"lr": 5e-3, "strength": 0.0}, weight_decay=decay)
        if decay:
            with pytest.warns(UserWarning, match="anchor"):
                host.train()
        else:
            host.train()
        assert {group["weight_decay"] for group in optimizer_of(host).param_groups} == {decay, 0.0}
        drift[decay] = {
            name: float((value.detach() - before[name]).norm())
            for name, value in model.named_parameters()
            if value.ndim > 1 and "embeddings" not in name
        }
    for name in drift[0.0]:
        assert drift[50.0][name] < drift[0.0][name]


def test_free_head_with_own_groups(rows: Any, snapshot: Any, strangers: Any, tmp_path: Path) -> None:
    """`optimizers=` takes a ready optimizer: the new head has no anchor, and stays without one after a resume."""
    from transformers import Trainer, TrainingArguments, get_linear_schedule_with_warmup

    def run(model: Any, resume: str | None) -> mo.AdamSPD:
        head = list(model.classifier.parameters())
        body = [p for n, p in model.named_parameters() if not n.startswith("classifier.")]
        optimizer = mo.AdamSPD([{"params": body}, {"params": head, "anchor": None}], lr=5e-3)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=16,
            save_steps=STOP,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        schedule = get_linear_schedule_with_warmup(optimizer, 0, STEPS)
        host = Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, schedule))
        host.train(resume_from_checkpoint=resume)
        return optimizer

    model = pretrained()
    again = strangers(model)
    for net, resume in ((model, None), (again, str(tmp_path / f"checkpoint-{STOP}"))):
        optimizer = run(net, resume)
        anchored = {n for n, p in net.named_parameters() if "anchor" in optimizer.state[p]}
        assert anchored == {n for n, _ in net.named_parameters() if not n.startswith("classifier.")}
    snapshot(again).assert_equal(snapshot(model))
