"""Reading WordNet's data files, on a few lines in their format."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooring.finetune.errors import SpecError
from mooring.reproduce.wordnet import CLASSES, read

NOUNS = """\
  29 any associated documentation shall at all times remain with | Princeton
00000001 08 n 01 knee 0 001 @ 00000009 n 0000 | hinge joint in the leg; "he hurt his knee"; "on his knees"
00000002 13 n 01 soup 0 000 | liquid food
00000003 03 n 01 entity 0 000 | that which is perceived; "an entity"
00000004 09 n 01 idea 0 000 | said twice
00000005 10 n 01 word 0 000 | said twice; "a word | in two parts"
"""
VERBS = """\
00000006 29 v 01 breathe 0 000 01 + 02 00 | draw air in
00000007 08 v 01 x 0 000 01 + 02 00 | no verb's file
"""


def test_definitions_and_examples_go_to_their_classes(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS, encoding="utf-8")
    (tmp_path / "data.verb").write_text(VERBS, encoding="utf-8")
    order = list(CLASSES)
    body, food, talk = (order.index(name) for name in ("body", "food", "communication"))
    nouns = read("noun", tmp_path)
    assert nouns.definitions == (("hinge joint in the leg", body), ("liquid food", food))
    assert nouns.examples == (("he hurt his knee", body), ("on his knees", body), ("a word | in two parts", talk))
    assert read("verb", tmp_path).definitions == (("draw air in", body),)


def test_a_missing_file_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"data\.noun is missing.*wordnet-base"):
        read("noun", tmp_path)
