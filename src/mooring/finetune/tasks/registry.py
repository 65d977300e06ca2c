"""The tasks, one row each: those that are embedded, and those on data of one's own.

Importing this module does not import torch; a task's own module does.
"""

from __future__ import annotations

from dataclasses import dataclass

from mooring.finetune.errors import SpecError, suggestion


@dataclass(frozen=True)
class TaskInfo:
    """What can be said about a task without loading it."""

    name: str
    implementation: str
    description: str
    ood_kinds: tuple[str, ...] = ()
    pretrain_examples: int = 0
    pretrain_steps: int = 0
    likelihood: bool = False  # judged by it, where the share of right tokens says little


TASKS: dict[str, TaskInfo] = {
    row.name: row
    for row in (
        TaskInfo(
            name="vision-fonts2digits",
            implementation="mooring.finetune.tasks.fonts2digits:Fonts2Digits",
            description=(
                "Pretrained on digits printed in matplotlib's fonts, fine-tuned on 100 real handwritten digits; "
                "OOD is later handwriting in the file's writer-correlated order, and mild corruptions."
            ),
            ood_kinds=("later_rows", "noise", "contrast", "shift", "occlusion"),
            pretrain_examples=12_000,
            pretrain_steps=400,
        ),
        TaskInfo(
            name="synthetic-spurious",
            implementation="mooring.finetune.tasks.synthetic_spurious:SyntheticSpurious",
            description=(
                "A noisy core feature and a clean spurious one that agrees with the label in fine-tuning (95 %) "
                "and not out of distribution (5 % and 50 %); seconds, for tests."
            ),
            ood_kinds=("anti", "none"),
            pretrain_examples=4_000,
            pretrain_steps=300,
        ),
        TaskInfo(
            name="digits-retrieval",
            implementation="mooring.finetune.tasks.digits_retrieval:DigitsRetrieval",
            description=(
                "A normalised embedding trained on the digits 0-4 finds digits 5-9, which it never saw: accuracy is "
                "recall@1 (likelihood and calibration are of similarities); OOD is later handwriting, and corruptions."
            ),
            ood_kinds=("later_rows", "noise", "shift"),
            pretrain_examples=6_000,
            pretrain_steps=100,
        ),
        TaskInfo(
            name="text-characters",
            implementation="mooring.finetune.tasks.text_characters:TextCharacters",
            description=(
                "A small transformer, pretrained on the standard library's docstrings, learns to continue Python's "
                "language reference by characters: NLL / ln 2 is bits per character; OOD is source code."
            ),
            ood_kinds=("code",),
            pretrain_examples=20_000,
            pretrain_steps=500,
        ),
        TaskInfo(
            name="text-characters-weight-norm",
            implementation="mooring.finetune.tasks.text_characters:TextCharactersWeightNorm",
            description="text-characters with weight normalisation on every linear layer.",
            ood_kinds=("code",),
            pretrain_examples=20_000,
            pretrain_steps=500,
        ),
    )
}


OWN: dict[str, TaskInfo] = {
    row.name: row
    for row in (
        TaskInfo(
            name="image-folder",
            implementation="mooring.finetune.own.image_folder:ImageFolder",
            description="Your images: a folder per class, or lists of files; domains of their own are OOD.",
        ),
        TaskInfo(
            name="cifar",
            implementation="mooring.finetune.own.cifar:Cifar",
            description="CIFAR-10 or CIFAR-100 on your disk, in the binary version.",
        ),
        TaskInfo(
            name="language-model",
            implementation="mooring.finetune.own.language_model:LanguageModel",
            description="Your text files: the next token, in blocks of consecutive ones; perplexity is exp(NLL).",
            likelihood=True,
        ),
        TaskInfo(
            name="instructions",
            implementation="mooring.finetune.own.instructions:Instructions",
            description="Your instructions and answers in JSON: the answer's tokens, given the instruction.",
            likelihood=True,
        ),
    )
}


def task_info(name: str) -> TaskInfo:
    """The registry's row for ``name``; an unknown name is an error that suggests the nearest one."""
    rows = {**TASKS, **OWN}
    if name not in rows:
        raise SpecError(f"unknown task {name!r}{suggestion(name, rows)}; the tasks are {', '.join(rows)}")
    return rows[name]
