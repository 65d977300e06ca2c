"""How strongly a decay pulls should not depend on the gradient's noise: AdamW's does, stable decay's does not.

½ ‖θ - 1‖² from θ = 0, with gradient noise of size s in every dimension. Adam divides the gradient by √v, AdamW's decay
is not divided, so AdamW settles where (1 - θ) / √v = λ θ. Noise dominates v, which makes that 1 / (1 + λ s): the
noisier the gradient, the further the decay pulls. AdamS divides its decay by √v̄ as well and settles at 1 / (1 + λ)
whatever s is (Xie et al.).

θ is a mean over the dimensions and over the last half of the steps. The interval is 1 %, as wide as what the two
formulas leave out: v also holds (1 - θ)² and fluctuates by 1.5 (1 - β₂) = 0.15 %, and our mean has a standard error of
up to 0.3 % at the largest s.
"""

import torch
from torch import nn

import mooring as mo
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.picture import COLOURS, panels

DECAY, NOISES, POINTS = 0.1, (0.5, 1.0, 4.0, 10.0), 100


def thetas(problems: list[nn.Parameter], noises: list[float], optimizer: torch.optim.Optimizer, run: Run) -> list[Row]:
    """Train independent problems side by side: a row of means for each problem and hundredth of the steps."""
    steps = run.pick(6000, 15_000)
    generator = torch.Generator().manual_seed(0)
    every, rows = steps // POINTS, list[Row]()
    late = [torch.zeros(len(theta), dtype=torch.float64) for theta in problems]
    for step in range(1, steps + 1):
        xi = torch.randn(len(problems[0]), generator=generator)
        for theta, s in zip(problems, noises):
            theta.grad = torch.add(theta.detach() - 1, xi, alpha=s)
        optimizer.step()
        if step > steps // 2:
            torch._foreach_add_(late, [theta.detach() for theta in problems])
        if step % every == 0:
            rows += [{"noise": s, "step": step, "theta": float(p.detach().mean())} for p, s in zip(problems, noises)]
    for total, s in zip(late, noises):
        mean = total / (steps - steps // 2)
        rows.append({"noise": s, "settled": float(mean.mean()), "error": float(mean.std() / len(mean) ** 0.5)})
    return rows


def run(run: Run) -> Outcome:
    """AdamW with all four problems in one optimizer, AdamS with one each, because its mean is over all it holds."""
    dimensions = run.pick(4000, 2000)  # more where there are fewer steps to average over

    def group(s: float) -> dict[str, object]:
        return {"params": [nn.Parameter(torch.zeros(dimensions))], "lr": 2e-3 * max(1.0, s), "weight_decay": DECAY}

    found = dict[str, list[Row]](AdamW=[], AdamS=[])
    sets = [("AdamW", list(NOISES)), *(("AdamS", [s]) for s in NOISES)]
    for name, noises in run.track(sets, "training"):
        groups = [group(s) for s in noises]
        problems = [g["params"][0] for g in groups]  # type: ignore[index]
        # Of AdamS each θ is a whole model.
        optimizer = getattr(mo, name)(groups, betas=(0.9, 0.999), one_parameter=name == "AdamS")
        found[name] += thetas(problems, noises, optimizer, run)

    checks, (picture, (settled, way)) = list[Check](), panels(2, width=4.8)
    s = torch.logspace(-0.5, 1.2, 60)
    for name, law, colour in (
        ("AdamW", 1 / (1 + DECAY * s), COLOURS[0]),
        ("AdamS", 0 * s + 1 / (1 + DECAY), COLOURS[3]),
    ):
        last = [row for row in found[name] if "settled" in row]
        for row in last:
            wanted = 1 / (1 + DECAY * (row["noise"] if name == "AdamW" else 1.0))
            why = "within 1 %, what the formula leaves out"
            label = f"{name}, s = {row['noise']:g}: θ"
            checks.append(Check.near(label, row["settled"], round(wanted, 3), 0.01 * wanted, why, row["error"]))
        formula = "1 / (1 + λs)" if name == "AdamW" else "1 / (1 + λ)"
        settled.plot(s, law, color=colour, linewidth=1, label=f"{name} as published: {formula}")
        settled.errorbar([r["noise"] for r in last], [r["settled"] for r in last], [3 * r["error"] for r in last],
                         color=colour, fmt="o", capsize=3, label=f"{name}, ours, 3 standard errors")  # fmt: skip
    for colour, noise in zip(COLOURS[4:], NOISES):
        for name, line in (("AdamW", "-"), ("AdamS", "--")):
            rows = [r for r in found[name] if "theta" in r and r["noise"] == noise]
            way.plot([r["step"] for r in rows], [r["theta"] for r in rows], line, color=colour, linewidth=1,
                     label=f"s = {noise:g}" if name == "AdamW" else None)  # fmt: skip
    settled.set(title="where θ settles, λ = 0.1", xlabel="size s of the gradient's noise", ylabel="θ", xscale="log")
    settled.set_xticks(NOISES, [f"{s:g}" for s in NOISES])
    settled.set_xticks([], minor=True)
    settled.legend(frameon=False)
    way.set(title="the way there: AdamW —, AdamS - -", xlabel="step", ylabel="mean θ", ylim=(0, 1.05))
    way.legend(frameon=False)
    data = {kind: [{"optimizer": name, **r} for name, rows in found.items() for r in rows if key in r]
            for kind, key in (("settled", "settled"), ("path", "theta"))}  # fmt: skip
    return Outcome(checks, data, picture)
