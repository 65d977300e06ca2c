"""``mooring inspect``: what it reads, what it measures and writes, what it says to what it cannot read."""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from mooring.cli.stages import stages
from mooring.finetune.methods import resolve
from mooring.finetune.metrics import load_predictions
from mooring.finetune.spec import TaskSpec, TrainSpec, TrialSpec
from mooring.finetune.tasks.starts import load_start
from mooring.finetune.trial import run_trial
from mooring.inspect.picture import layer_bars
from mooring.inspect.results import Results
from mooring.measure import Hessian, drift

from .conftest import Mooring

OWN = ("a.safetensors", "--model", "mine:model", "--data", "data.npz")
QUICK = ("--probes", 4, "--top", 2, "--density", 6, "--sigma", "0.01,0.02")


@pytest.fixture(scope="module")
def trial(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial") / "seed_1"
    spec = TrialSpec(
        method=resolve({"name": "adamw", "lr": 1e-3}),
        task=TaskSpec(name="synthetic-spurious", starts=2),
        train=TrainSpec(steps=10, eval_every=10),
        seed=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOORING_CACHE", str(cache))
        run_trial(spec, folder)
    return folder


@pytest.fixture(scope="module")
def start(trial: Path, cache: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOORING_CACHE", str(cache))
        return load_start(TaskSpec(name="synthetic-spurious", starts=2), 1)


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def test_a_trial_needs_nothing_but_its_folder(mooring: Mooring, trial: Path, start: Any, tmp_path: Path) -> None:
    code, out, err = mooring("inspect", trial, "--output-dir", "out", *QUICK, "--json")
    assert code == 0, err
    assert [line.split("  ", 2)[-1].strip() for line in err.splitlines()][:3] == [
        "loading", "distance from the anchor, per layer", "trace of the Hessian",
    ]  # fmt: skip
    found = json.loads(out)
    assert json.loads(Path("out/inspect.json").read_text()) == found
    assert {path.name for path in Path("out").iterdir()} == {"inspect.json", "layers.csv", "inspect.png"}
    assert png_size(Path("out/inspect.png"))[0] == 1200

    final = json.loads((trial / "final.json").read_text())
    assert found["loss"] == pytest.approx(final["train/nll"], rel=1e-6)
    assert found["drift"]["distance"] == pytest.approx(final["drift/l2"], rel=1e-12)
    assert found["calibration"]["data"] == "id" and found["calibration"]["ece"] == pytest.approx(final["id/ece"])
    assert found["calibration"]["accuracy"] == final["id/accuracy"]
    assert found["gap"]["loss"] == pytest.approx(final["id/nll"] - final["train/nll"])
    assert load_predictions(trial / "predictions.npz")["id"].labels.shape == (found["calibration"]["count"],)

    start.model.load_state_dict(load_file(trial / "model.safetensors"))
    train = start.data.train
    hessian = Hessian(
        start.model, start.task.loss, [train.rows(torch.arange(0, 256)), train.rows(torch.arange(256, 300))], [256, 44]
    )
    assert found["hessian"]["trace"]["value"] == pytest.approx(hessian.trace(4).value, rel=1e-4)
    assert found["hessian"]["top"][0] == pytest.approx(hessian.top(1)[0], rel=1e-2)
    assert found["hessian"]["method"] == "double_backward"
    positive = hessian.density(6, 4).trace_of(lambda x: x.clamp(min=0)).value
    assert found["hessian"]["positive_trace"]["value"] == pytest.approx(positive, rel=1e-3)
    assert found["flatness_bound"] == pytest.approx(math.sqrt(positive * final["drift/l2"] ** 2 / 300), rel=1e-3)
    assert [row["sigma"] for row in found["noise"]] == [0.01, 0.02]
    assert [one["direction"] for one in found["slices"]] == ["filter", "filter", "random", "gradient"]
    assert all(min(one["losses"][9:12]) == pytest.approx(found["loss"], rel=0.5) for one in found["slices"])

    with Path("out/layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    moved = {row.name: row for row in drift(start.model, load_start_state(start)).layers}
    assert [row["name"] for row in rows] == list(moved)
    for row in rows:
        assert float(row["distance"]) == pytest.approx(moved[row["name"]].distance)
        assert float(row["angle"]) == pytest.approx(moved[row["name"]].angle)
        assert row["top"] == ""
    assert sum(float(row["trace"]) for row in rows) == pytest.approx(found["hessian"]["trace"]["value"])


def load_start_state(start: Any) -> dict[str, torch.Tensor]:
    return dict(start.state)


def test_the_table_says_what_the_file_says(mooring: Mooring, trial: Path) -> None:
    code, out, _ = mooring(
        "inspect", trial, "--output-dir", "out", *QUICK, "--measures", "drift,blocks,block-top,trace,gap"
    )
    found = json.loads(Path("out/inspect.json").read_text())
    assert code == 0
    assert f"{found['loss']:.5g}" in out and f"{found['drift']['distance']:.4g}" in out
    assert f"{found['hessian']['trace']['value']:.4g} ± {found['hessian']['trace']['error']:.2g}" in out
    assert f"{found['layers'][0]['top']:.3g}" in out and "hidden.0.weight" in out
    assert "noise" not in found and "density" not in found["hessian"] and "top" not in found["hessian"]
    assert out.rstrip().endswith("everything measured: out")
    _, out, err = mooring("inspect", trial, "--measures", "drift", "--quiet")
    (folder,) = Path("runs").iterdir()
    assert out == f"{folder}\n" and err == "" and folder.name.endswith("-inspect-seed_1")


class Factory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(torch.tanh(self.one(x)))
        return out


MODULE = """
import torch
from tests.cli.test_inspect import Factory as model
def batches():
    g = torch.Generator().manual_seed(0)
    for n in (5, 3):
        yield torch.randn(n, 4, generator=g), torch.randint(3, (n,), generator=g)
def floats():
    return [(torch.randn(4, 4), torch.randn(4, 3))]
def wrong():
    return [torch.ones(2)]
def broken():
    raise RuntimeError("no disk")
"""


@pytest.fixture
def own() -> None:
    """A module in the working folder, checkpoints of its model, and data files."""
    Path("mine.py").write_text(MODULE)
    sys.modules.pop("mine", None)
    model = Factory()
    save_file(dict(model.state_dict()), "a.safetensors")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    torch.save({"step": 3, "model": {f"module.{k}": v for k, v in model.state_dict().items()}}, "b.pt")
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 4, generator=g), torch.randint(3, (40,), generator=g)
    np.savez("data.npz", inputs=x.numpy().astype(np.float64), labels=y.numpy().astype(np.int32))
    save_file({"inputs": x, "labels": y}, "data.safetensors")


@pytest.mark.usefixtures("own")
def test_ones_own_model_data_and_anchor(mooring: Mooring) -> None:
    base = ("inspect", "b.pt", "--model", "mine:model", "--anchor", "a.safetensors", *QUICK, "--json")
    found = {}
    for name in ("data.npz", "data.safetensors", "mine:batches"):
        code, out, err = mooring(*base, "--data", name, "--output-dir", Path(name).stem.replace(":", "-"))
        assert code == 0, err
        found[name] = json.loads(out)
    assert found["data.npz"]["loss"] == pytest.approx(found["data.safetensors"]["loss"])
    one = found["mine:batches"]
    assert one["data"] == {"name": "mine:batches", "examples": 8, "available": 8}
    assert one["drift"]["relative"] == pytest.approx(0.1, rel=1e-5) and one["drift"]["angle"] < 1e-6
    assert one["calibration"]["count"] == 8 and "gap" not in one
    code, out, _ = mooring(
        *base, "--data", "data.npz", "--max-examples", 10, "--test-data", "mine:batches", "--output-dir", "c"
    )
    some = json.loads(out)
    assert some["data"] == {"name": "data.npz", "examples": 10, "available": 40}
    assert some["calibration"]["data"] == "mine:batches" and some["gap"]["loss"] != 0
    code, out, _ = mooring(*base, "--data", "mine:floats", "--measures", "drift,trace", "--output-dir", "d")
    assert code == 0 and "calibration" not in json.loads(out)  # cross-entropy with probabilities; no classes to count


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no checkpoint 'nowhere'"),
        (["."], "neither a trial of mooring compare (no spec.json) nor a Hugging Face folder"),
        (["a.safetensors", "--data", "data.npz"], "give --task NAME or --model package.module:factory"),
        (["a.safetensors", "--model", "mine:model"], "--data is missing"),
        (["a.safetensors", "--model", "mine:modl", "--data", "data.npz"], "no 'modl' (did you mean 'model'?)"),
        (["a.safetensors", "--model", "mine:batches", "--data", "data.npz"], "must return a torch.nn.Module"),
        (["a.safetensors", "--model", "mine:model", "--data", "dat.npz"], "there is no data file 'dat.npz'"),
        (["a.safetensors", "--model", "mine:model", "--data", "train"], "unknown data 'train': without a task"),
        (["a.safetensors", "--model", "mine:model", "--data", "mine:wrong"], "a batch must be a pair of tensors"),
        (["a.safetensors", "--model", "mine:model", "--data", "mine:broken"], "failed: no disk"),
        ([*OWN, "--measures", "gap"], "needs test data; give"),
        ([*OWN, "--measures", "bound"], "needs an anchor; give"),
        (["a.safetensors", "--measures", "trac"], "unknown measure 'trac' (did you mean 'trace'?)"),
        (["a.safetensors", "--sigma", "0.1,no"], "--sigma must be numbers above 0 separated by commas"),
        (["a.safetensors", "--probes", "0"], "--probes must be at least 1, got 0"),
        (["a.safetensors", "--task", "synthetic-spurious", "--model", "mine:model"],
         "give --task or --model, not both"),
        (["a.safetensors", "--task", "synthetic-spurous"], "did you mean 'synthetic-spurious'?"),
        (["a.safetensors", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["evil.pt", "--model", "mine:model", "--data", "data.npz"], "holds more than tensors"),
        (["renamed.safetensors", "--model", "mine:model", "--data", "data.npz"],
         "it has no 'two.weight' (did you mean 'too.weight'?) and has 'too.weight', which the model does not"),
        (["shape.safetensors", "--model", "mine:model", "--data", "data.npz"],
         "'one.bias' has shape (4,), the model's has (5,)"),
        ([*OWN, "--anchor", "shape.safetensors"],
         "the anchor does not fit: 'one.bias' has shape (5,), its anchor has shape (4,)"),
        (["a.safetensors", "--model", "mine:model", "--data", "wide.npz"],
         "the model cannot take the loss of the data 'wide.npz'"),
        (["a.safetensors", "--model", "mine:model", "--data", "lone.npz"], "has no 'labels'; it has 'inputs'"),
        ([*OWN, "--output-dir", "a.safetensors"], "is a file"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_with_one_sentence(mooring: Mooring, arguments: list[str], said: str) -> None:
    state = load_file("a.safetensors")
    Path("evil.pt").write_bytes(pickle.dumps({"a": Path("x")}))
    save_file({k.replace("two.weight", "too.weight"): v for k, v in state.items()}, "renamed.safetensors")
    save_file({**state, "one.bias": torch.zeros(4)}, "shape.safetensors")
    np.savez("wide.npz", inputs=np.zeros((4, 9)), labels=np.zeros(4, dtype=np.int64))
    np.savez("lone.npz", inputs=np.zeros((4, 4)))
    before = set(Path.cwd().iterdir())
    code, out, err = mooring("inspect", *arguments, "--quiet")
    assert code == 2 and out == ""
    assert err.startswith("mooring: ") and said in err and err.count("\n") == 1
    assert {path for path in Path.cwd().iterdir() if path.name != "__pycache__"} == before


@pytest.mark.usefixtures("own")
def test_a_loss_that_is_not_finite_is_a_failure(mooring: Mooring) -> None:
    save_file({k: v / 0 for k, v in load_file("a.safetensors").items()}, "inf.safetensors")
    code, _, err = mooring("inspect", "inf.safetensors", "--model", "mine:model", "--data", "data.npz", "--quiet")
    assert code == 1 and "the loss over 'data.npz' is nan; there is nothing to measure" in err


def test_a_trial_without_its_weights_says_why(mooring: Mooring, trial: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "spec.json").write_text((trial / "spec.json").read_text())
    code, _, err = mooring("inspect", "old")
    assert code == 2 and "has no model.safetensors" in err and "--overwrite" in err


def test_many_layers_are_drawn_by_their_modules() -> None:
    names = [f"layers.{i}.{part}.weight" for i in range(12) for part in ("a", "b")] + ["head.weight"]
    results = Results({}, 0.0, 25, [(name, 1) for name in names])
    anchor = {name: torch.ones(1) for name in names}
    results.drift = drift({name: torch.full((1,), 1.3) for name in names}, anchor)
    bars = layer_bars(results)
    assert [bar.name for bar in bars] == [f"layers.{i}" for i in range(12)] + ["head.weight"]
    assert all(bar.relative == pytest.approx(0.3) for bar in bars) and math.isnan(bars[0].trace)
    deep = Results({}, 0.0, 60, [(f"part{i}.weight", i + 1) for i in range(60)])
    assert [bar.name for bar in layer_bars(deep)] == [f"part{i}" for i in range(42, 60)]


def test_a_terminal_sees_a_bar_of_its_own_for_each_measure() -> None:
    file = io.StringIO()
    with stages(Console(file=file, force_terminal=True, width=100), False) as show:
        show("first", 3, 24)
        show("second", None, None)
        show("second", 7, None)
    assert "7/?" in file.getvalue().split("second")[-1]  # drawn at the end at the latest


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from mooring.cli import main; code = main(['inspect', '--help'])\n"
        "assert code == 0 and not {'torch', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert main(['inspect', 'nowhere', '--measures', 'trac']) == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--test-data" in done.stdout
