"""Glosses and usage examples of WordNet 3.0, by lexicographer's file, from Debian's package ``wordnet-base``.

A line of ``data.noun`` or ``data.verb`` holds the synset, with the number of its lexicographer's file in the second
column, and after a bar its gloss: a definition, and behind it usage examples in quotation marks (wndb(5WN)).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mooring.finetune.errors import SpecError

FOLDER = Path("/usr/share/wordnet")
CLASSES = {  # files that exist for nouns and for verbs
    "body": (8, 29),
    "cognition": (9, 31),
    "communication": (10, 32),
    "emotion": (12, 37),
    "food": (13, 34),
    "possession": (21, 40),
}


@dataclass(frozen=True)
class Texts:
    """Definitions and usage examples of one part of speech, with the number of their class."""

    definitions: tuple[tuple[str, int], ...]
    examples: tuple[tuple[str, int], ...]


def read(part: str, folder: Path = FOLDER) -> Texts:
    """The texts of `CLASSES`, each once, in the file's order; a text that occurs in two classes is left out.

    Args:
        part: ``"noun"`` or ``"verb"``.
        folder: Where ``data.noun`` and ``data.verb`` are.

    Raises:
        SpecError: There is no such file.
    """
    path = folder / f"data.{part}"
    if not path.is_file():
        raise SpecError(f"{path} is missing: install WordNet 3.0, on Debian the package wordnet-base")
    numbers = {files[part == "verb"]: label for label, files in enumerate(CLASSES.values())}
    definitions: dict[str, set[int]] = {}
    examples: dict[str, set[int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        columns, bar, gloss = line.partition(" | ")
        if line.startswith(" ") or not bar or (label := numbers.get(int(columns.split(" ", 2)[1]))) is None:
            continue
        # Definitions hold no quotation marks of their own but for a handful, which are left out with their tails.
        definition, *quoted = gloss.strip().split('"')
        definitions.setdefault(definition.strip(" ;"), set()).add(label)
        for example in quoted[::2]:
            examples.setdefault(example.strip(), set()).add(label)
    return Texts(_single(definitions), _single(examples))


def _single(texts: dict[str, set[int]]) -> tuple[tuple[str, int], ...]:
    return tuple((text, min(labels)) for text, labels in texts.items() if len(labels) == 1 and text)
