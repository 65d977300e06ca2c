"""With a trust ratio a layer turns by the same angle however large its weights are.

LAMB (You et al., ICLR 2020) makes the step of every tensor as long as its weights times the learning rate. The two
hidden layers below feed batch normalization, so multiplying their weights by c changes no output. Under Adam the larger
weights then turn by 1/c of the angle and train c times slower; under LAMB training is the same function, step by step,
for every c. Here c is 1, 3 and 10 on real digits, no decay.

LAMB's curves are equal to the rounding of float64, which training amplifies: `ROUNDING` is far above it and far below
anything that a learning rate could do. Adam's loss at c = 10 must be the higher one; LAMB must learn.
"""

import math

import torch
from torch import nn

import mooring as mo
from mooring.finetune.data import Split
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.digits import EARLY, handwritten, loss, train
from mooring.reproduce.picture import COLOURS, panels

SCALES, STEPS, ROUNDING = (1.0, 3.0, 10.0), 60, 1e-6
TINY = 1e-30  # an eps that keeps 0 / 0 away and changes no other number


def network(scale: float) -> nn.Module:
    """Two normalised layers whose weights are ``scale`` times as large."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64, eps=TINY), nn.ReLU()]
        layers += [nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64, eps=TINY), nn.ReLU(), nn.Linear(64, 10)]
        model = nn.Sequential(*layers).double()
    for name in ("1.weight", "4.weight"):
        model.get_parameter(name).data.mul_(scale)
    return model


def curve(name: str, scale: float) -> list[float]:
    """The loss on all training rows after every step."""
    model = network(scale)
    rules = [mo.TrustRatio()] if name == "LAMB" else []
    # Adam's eps is not scale free: without it LAMB's direction is the same for every c. Vectors keep Adam's own step.
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizers = [mo.Adam(matrices, lr=0.02 if rules else 2e-3, eps=TINY, rules=rules), mo.Adam(vectors, lr=2e-3)]
    digits = handwritten()
    examples = Split(digits.inputs[EARLY].double(), digits.labels[EARLY])
    losses = [float(loss(model, examples).detach())]

    def each(step: int) -> None:
        optimizers[1].step()
        optimizers[1].zero_grad()
        with torch.no_grad():
            losses.append(float(loss(model, examples)))

    train(model, optimizers[0], examples, STEPS, seed=0, batch_size=100, schedule="constant", each=each)
    return losses


def run(run: Run) -> Outcome:
    """Adam and LAMB at three scales."""
    keys = [(name, scale) for name in ("Adam", "LAMB") for scale in SCALES]
    curves = dict(zip(keys, run.map(curve, keys, "training"), strict=True))
    reference = curves["LAMB", 1.0]
    checks = []
    for scale in SCALES[1:]:
        apart = max(abs(a - b) for a, b in zip(curves["LAMB", scale], reference))
        what = f"LAMB, weights {scale:g} times as large: largest change of the loss"
        checks.append(Check.below(what, apart, ROUNDING, "float64 rounding over the steps", "none"))
    gain, own = (math.log(curves[k][0] / curves[k][-1]) for k in (("LAMB", 1.0), ("Adam", 1.0)))
    checks.append(Check.above("LAMB: log of the factor by which the loss fell", gain, 1.0, "it trains"))
    held = math.log(curves["Adam", 10.0][-1] / curves["Adam", 1.0][-1])
    why = "larger weights turn by smaller angles; the sign is the claim"
    checks.append(Check.above("Adam, weights 10 times as large: log of the factor of the loss", held, 0.0, why))
    picture, axes = panels(2)
    data: list[Row] = []
    for (name, scale), losses in curves.items():
        panel = axes[name == "LAMB"]
        i = SCALES.index(scale)
        panel.plot(
            losses, color=COLOURS[i], label=f"weights × {scale:g}", linewidth=3 - i, linestyle=("-", "--", ":")[i]
        )
        panel.set(title=name, xlabel="step", ylabel="training loss", yscale="log", ylim=(0.02, 4))
        data += [{"method": name, "scale": scale, "step": t, "loss": value} for t, value in enumerate(losses)]
    axes[0].legend(frameon=False)
    return Outcome(
        checks,
        {"curves": data},
        picture,
        [f"At × 1 the loss fell by e^{own:.2f} under Adam and by e^{gain:.2f} under LAMB, at rates of their own."],
    )
