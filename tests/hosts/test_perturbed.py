"""NSO and SAM in the Hugging Face Trainer and in Lightning: the steps of a plain loop over the passes, and resumes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hosts.test_transformers import pretrained
from tests.sharding.processes import run
from torch.nn.functional import cross_entropy

import mooring as mo

pytestmark = pytest.mark.hosts

STEPS, STOP = 6, 3
Make = Callable[[torch.nn.Module], Any]

METHODS: dict[str, Make] = {
    "NSO": lambda net: mo.NSO(mo.AdamW(net.named_parameters(), lr=5e-3), sigma=0.02, k=2, clean=0.3, seed=4, model=net),
    "SAM": lambda net: mo.SAM(torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9), rho=0.05),
    "RSAM": lambda net: mo.RSAM(mo.AdamP(net.named_parameters(), lr=5e-3), rho=0.05, seed=4, model=net),
}
every_method = pytest.mark.parametrize("method", METHODS)


def with_norm(dropout: float) -> torch.nn.Module:
    """Running statistics and dropout, in the shape that the Trainer wants."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(32, 4)
            self.norm = torch.nn.BatchNorm1d(32)
            self.dropout = torch.nn.Dropout(dropout)
            self.head = torch.nn.Linear(32, 2)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            logits = self.head(self.dropout(torch.tanh(self.norm(self.embedding(input_ids).flatten(1)))))
            loss = cross_entropy(logits, labels) if labels is not None else logits.sum() * 0
            return {"loss": loss, "logits": logits}

    torch.manual_seed(1)
    return Net()


def plain_loop(
    net: torch.nn.Module, optimizer: Any, batches: list[list[dict[str, torch.Tensor]]], clip: float, decay: bool = True
) -> list[float]:
    """What both trainers have to do, written once more: passes over all micro-batches, one clip, one step."""
    optimizer.attach(net)
    losses = []
    lr = [group["lr"] for group in optimizer.param_groups]
    for t, micro in enumerate(batches):
        for group, start in zip(optimizer.param_groups, lr):
            group["lr"] = start * (1 - t / len(batches)) if decay else start
        optimizer.zero_grad()
        seen = []
        for pass_ in optimizer.passes():
            with pass_:
                total = 0.0
                for batch in micro:
                    loss = net(batch["input_ids"], labels=batch["labels"])["loss"] / len(micro)
                    if pass_.gradient:
                        loss.backward()
                    total += float(loss.detach())
                if pass_.gradient:
                    seen.append((pass_.stage.place is None, total))
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        clean = [x for at_weights, x in seen if at_weights]
        losses.append(clean[0] if clean else sum(x for _, x in seen) / len(seen))
    return losses


# --- Hugging Face ------------------------------------------------------------------------------------------------


def trainer(net: torch.nn.Module, optimizer: Any, rows: Any, folder: Path, **arguments: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    from mooring.integrations.transformers import PerturbedTraining

    class InOrder(PerturbedTraining, Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    options: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.2,
        "save_steps": STOP,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **arguments,
    }
    args = TrainingArguments(output_dir=str(folder), **options)
    return InOrder(model=net, args=args, train_dataset=rows, optimizers=(optimizer, None))


def logged(host: Any) -> list[float]:
    return [row["loss"] for row in host.state.log_history if "loss" in row]


@every_method
def test_the_trainer_takes_the_steps_of_a_plain_loop(method: str, rows: Any, snapshot: Any, tmp_path: Path) -> None:
    """Accumulating, clipping, with running statistics; each step's loss is logged once."""
    net = with_norm(dropout=0.0)
    other = copy.deepcopy(net)
    host = trainer(net, METHODS[method](net), rows, tmp_path)
    host.train()
    batches = [[rows[slice((16 * t + at) % 64, (16 * t + at) % 64 + 8)] for at in (0, 8)] for t in range(STEPS)]
    losses = plain_loop(other, METHODS[method](other), batches, clip=0.2)
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-6, msg=name)
    torch.testing.assert_close(dict(net.named_buffers()), dict(other.named_buffers()), rtol=1e-5, atol=1e-6)
    assert len(logged(host)) == STEPS
    for ours, theirs in zip(logged(host), losses):
        assert ours == pytest.approx(theirs, abs=2e-4)  # the Trainer rounds what it logs


@every_method
def test_the_trainer_stops_and_resumes_bitwise(
    method: str, rows: Any, snapshot: Any, strangers: Any, tmp_path: Path
) -> None:
    """With dropout, whose masks both passes share, and rows that are shuffled."""
    from transformers import Trainer, TrainingArguments

    from mooring.integrations.transformers import PerturbedTraining

    class Shuffled(PerturbedTraining, Trainer):
        pass

    net = with_norm(dropout=0.3)
    other = strangers(net)
    for model, resume in ((net, None), (other, str(tmp_path / f"checkpoint-{STOP}"))):
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            save_steps=STOP,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        host = Shuffled(model=model, args=args, train_dataset=rows, optimizers=(METHODS[method](model), None))
        host.train(resume_from_checkpoint=resume)
        assert host.state.global_step == STEPS
    snapshot(other).assert_equal(snapshot(net))
    for (name, ours), theirs in zip(net.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_language_model_trains_under_bfloat16_autocast(rows: Any, tmp_path: Path) -> None:
    net = pretrained()
    nso = mo.NSO(mo.AdamW(net.named_parameters(), lr=5e-3), sigma=0.01)
    host = trainer(net, nso, rows, tmp_path, bf16=True, max_steps=24)
    host.train()
    losses = logged(host)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert nso.param_groups[0]["noise_draws"] == 24


def test_accelerates_scaler_is_undone_and_skips(rows: Any, tmp_path: Path) -> None:
    """Accelerate scales on accelerators alone, so its scaler is put in by hand; USAM's ascent has to divide it out."""
    nets = [with_norm(dropout=0.0).double() for _ in range(2)]
    for net, scale in zip(nets, (None, 2.0**8)):
        usam = mo.USAM(torch.optim.SGD(net.named_parameters(), lr=0.1), rho=0.05)
        host = trainer(net, usam, rows, tmp_path, max_grad_norm=0.0)
        if scale is not None:
            host.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        host.train()
    for p, q in zip(*(net.parameters() for net in nets)):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    net = with_norm(dropout=0.0)
    before = [p.detach().clone() for p in net.parameters()]
    net.head.weight.register_hook(lambda g: g * float("inf"))  # type: ignore[union-attr]
    host = trainer(net, mo.SAM(torch.optim.SGD(net.named_parameters(), lr=0.1)), rows, tmp_path, max_grad_norm=0.0)
    host.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    host.train()
    assert host.accelerator.scaler.get_scale() == 2.0 ** (8 - STEPS)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before))


def test_accelerate_hands_a_closure_through(rows: Any, snapshot: Any) -> None:
    """Its loop of passes too, inside ``accumulate``."""
    from accelerate import Accelerator

    nets = [with_norm(dropout=0.0) for _ in range(3)]
    batches = [[rows[slice(8 * t, 8 * t + 8)]] for t in range(3)]
    for net, way in zip(nets, ("closure", "passes")):
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(net, METHODS["NSO"](net))
        for [batch] in batches:
            if way == "closure":

                def closure(model: Any = model, batch: Any = batch, a: Any = accelerator, o: Any = optimizer) -> Any:
                    o.zero_grad()
                    loss = model(**batch)["loss"]
                    a.backward(loss)
                    return loss

                optimizer.step(closure)
            else:
                with accelerator.accumulate(model):
                    for pass_ in optimizer.optimizer.passes(scaler=accelerator.scaler):
                        with pass_:
                            loss = model(**batch)["loss"]
                            if pass_.gradient:
                                accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
    optimizer = METHODS["NSO"](nets[2])
    plain_loop(nets[2], optimizer, batches, clip=float("inf"), decay=False)
    snapshot(nets[0]).assert_equal(snapshot(nets[1]))
    snapshot(nets[0]).assert_equal(snapshot(nets[2]))


def test_without_the_mixin_the_trainer_says_what_is_missing(rows: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    net = with_norm(dropout=0.0)
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    host = Trainer(model=net, args=args, train_dataset=rows, optimizers=(METHODS["SAM"](net), None))
    with pytest.raises(RuntimeError, match=r"mixins of mooring\.integrations"):
        host.train()


def test_the_mixin_leaves_other_optimizers_alone(rows: Any, snapshot: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    net, other = with_norm(dropout=0.0), with_norm(dropout=0.0)
    trainer(net, mo.AdamW(net.parameters(), lr=1e-2), rows, tmp_path).train()
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        max_grad_norm=0.2, use_cpu=True, report_to="none", disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    Trainer(
        model=other, args=args, train_dataset=rows, optimizers=(mo.AdamW(other.parameters(), lr=1e-2), None)
    ).train()
    snapshot(net).assert_equal(snapshot(other))


# --- Lightning ---------------------------------------------------------------------------------------------------


def module(net: torch.nn.Module, make: Make, **attributes: Any) -> Any:
    import lightning

    from mooring.integrations.lightning import PerturbedTraining

    class FineTune(PerturbedTraining, lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.calls = 0
            for name, value in attributes.items():
                setattr(self, name, value)

        def loss_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            self.calls += 1
            loss: torch.Tensor = self.net(batch["input_ids"], labels=batch["labels"])["loss"]
            self.log("loss", loss.detach(), on_step=False, on_epoch=True)
            self.log("calls", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            return loss

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = make(self.net)
            if attributes.get("constant"):
                return {"optimizer": optimizer}
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: max(1 - t / 6, 0.0))
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    return FineTune()


def fit(
    host: Any, rows: Any, folder: Path, epochs: int, ckpt: Path | None = None, batch_size: int = 8, **options: Any
) -> Any:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    host_trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **options},
    )
    host_trainer.fit(host, torch.utils.data.DataLoader(rows, batch_size=batch_size), ckpt_path=ckpt)
    return host_trainer


@every_method
def test_lightning_takes_the_steps_of_a_plain_loop(method: str, rows: Any, tmp_path: Path) -> None:
    """8 batches an epoch in steps of 3, 3 and 2; clipped, with a schedule by step and statistics; logged once."""
    net = with_norm(dropout=0.0)
    other = copy.deepcopy(net)
    host = module(net, METHODS[method], accumulate_grad_batches=3, gradient_clip_val=0.2)
    lightning_trainer = fit(host, rows, tmp_path, epochs=2)
    eight = [rows[slice(8 * i, 8 * i + 8)] for i in range(8)]
    steps = [eight[:3], eight[3:6], eight[6:]] * 2
    losses = plain_loop(other, METHODS[method](other), steps, clip=0.2)
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-6, msg=name)
    torch.testing.assert_close(dict(net.named_buffers()), dict(other.named_buffers()), rtol=1e-5, atol=1e-6)
    assert lightning_trainer.global_step == 6
    assert float(lightning_trainer.callback_metrics["calls"]) == 8  # each batch of the epoch once, not once per pass
    if method == "SAM":  # its first pass is at the true weights
        expected = (3 * losses[3] + 3 * losses[4] + 2 * losses[5]) / 8
        assert float(lightning_trainer.callback_metrics["loss"]) == pytest.approx(expected, rel=1e-4)


@every_method
def test_lightning_stops_and_resumes_bitwise(
    method: str, rows: Any, snapshot: Any, strangers: Any, tmp_path: Path
) -> None:
    net = with_norm(dropout=0.0)
    other = strangers(net)
    fit(module(net, METHODS[method], accumulate_grad_batches=2), rows, tmp_path, epochs=3)
    resumed = module(other, METHODS[method], accumulate_grad_batches=2)
    fit(resumed, rows, tmp_path, epochs=3, ckpt=tmp_path / "epoch=0.ckpt")
    snapshot(other).assert_equal(snapshot(net))
    for (name, ours), theirs in zip(net.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_lightnings_scaler_is_undone_before_clipping_and_skips(rows: Any, tmp_path: Path) -> None:
    """In double precision without autocast, so that nothing but the scale differs."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    def make(net: torch.nn.Module) -> Any:
        return mo.USAM(torch.optim.SGD(net.named_parameters(), lr=0.1), rho=0.05)

    def scaled() -> Any:
        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8))
        plugin.autocast_context_manager = lambda: nullcontext()  # type: ignore[assignment, method-assign, return-value]
        return plugin

    nets = [with_norm(dropout=0.0).double() for _ in range(2)]
    for net, plugins in zip(nets, (None, scaled())):
        fit(module(net, make, gradient_clip_val=0.05), rows, tmp_path, epochs=1, plugins=plugins)
    for p, q in zip(*(net.parameters() for net in nets)):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)

    net = with_norm(dropout=0.0).double()
    before = [p.detach().clone() for p in net.parameters()]
    net.head.weight.register_hook(lambda g: g * float("inf"))  # type: ignore[union-attr]
    plugin = scaled()
    fit(module(net, make, gradient_clip_val=0.05), rows, tmp_path, epochs=1, plugins=plugin)
    assert plugin.scaler.get_scale() == 1.0
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before))


def test_a_lightning_module_without_its_loss_or_optimizer_says_so(rows: Any, tmp_path: Path) -> None:
    import lightning

    from mooring.integrations.lightning import PerturbedTraining

    class NoLoss(PerturbedTraining, lightning.LightningModule):
        def configure_optimizers(self) -> Any:
            return mo.SAM(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))

    with pytest.raises(TypeError, match="NoLoss must define loss_step"):
        fit(NoLoss(), rows, tmp_path, epochs=1)
    net = with_norm(dropout=0.0)
    with pytest.raises(TypeError, match=r"must return one NSO, SAM or other perturbing optimizer, got SGD"):
        fit(module(net, lambda n: torch.optim.SGD(n.parameters(), lr=0.1)), rows, tmp_path, epochs=1)


class Stop(Exception):
    """Ends a training between two micro-batches of its first step."""


def test_what_a_stopped_trainer_held_is_forgotten(rows: Any, snapshot: Any, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Stopping(TrainerCallback):
        def on_substep_end(self, *_: Any, **__: Any) -> None:
            raise Stop

    net, other = with_norm(dropout=0.0), with_norm(dropout=0.0)
    stopped = trainer(net, METHODS["SAM"](net), rows, tmp_path, max_steps=2)
    stopped.add_callback(Stopping)
    with pytest.raises(Stop):
        stopped.train()
    stopped.remove_callback(Stopping)
    stopped.train()
    trainer(other, METHODS["SAM"](other), rows, tmp_path, max_steps=2).train()
    snapshot(net).assert_equal(snapshot(other))


def test_what_a_stopped_lightning_module_held_is_forgotten(rows: Any, snapshot: Any, tmp_path: Path) -> None:
    net, other = with_norm(dropout=0.0), with_norm(dropout=0.0)
    stopped = module(net, METHODS["SAM"], accumulate_grad_batches=2)

    def stop(*_: Any) -> None:
        raise Stop

    stopped.on_train_batch_end = stop
    with pytest.raises(Stop):
        fit(stopped, rows, tmp_path, epochs=1)
    del stopped.on_train_batch_end
    fit(stopped, rows, tmp_path, epochs=1)
    fit(module(other, METHODS["SAM"], accumulate_grad_batches=2), rows, tmp_path, epochs=1)
    snapshot(net).assert_equal(snapshot(other))


def test_telemetry_finds_the_base(rows: Any, tmp_path: Path) -> None:
    from mooring.integrations.transformers import Telemetry

    net = with_norm(dropout=0.0)
    host = trainer(net, METHODS["NSO"](net), rows, tmp_path)
    Telemetry(every=1).attach(host)
    host.train()
    assert host.state.log_history[2]["model/step/number"] == 3


# --- Two processes -----------------------------------------------------------------------------------------------


@pytest.mark.sharding
def test_trainers_that_distribute_data_take_the_steps_of_one_process(tmp_path: Path) -> None:
    """With two micro-batches and clipping; and NSO averages gradients in the last pass of a step alone."""
    ranks = run("tests.hosts.perturbed_workers:trainers", ranks=2, folder=str(tmp_path))
    assert ranks[0] == ranks[1]
    assert len(ranks[0]) == 2 * len(METHODS)
    for name, found in ranks[0].items():
        assert found["error"] <= 1e-9, name
        assert found["averages"] == (1 if name.endswith("NSO") else 2), name
