"""English and source code that every Python brings along, as numbers between 0 and 95.

Read at run time from the running Python, whose licence (PSF) allows it; nothing of it is kept in this package. The
language reference is the text behind ``help("with")``, `pydoc_data.topics`; docstrings and code are those of `MODULES`.
The texts change a little from one version of Python to the next, so numbers are comparable within one version.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from importlib.abc import InspectLoader

import torch
from torch import Tensor

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""96 characters; typographic ones become their plain relatives, and any other a question mark."""

# Well documented modules in pure Python that have been one file each from Python 3.11 to 3.13.
MODULES = ("_pydecimal", "argparse", "difflib", "ipaddress", "optparse", "random", "statistics", "textwrap")
_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "•": "*", "…": "...", "\t": "    "})


def encode(text: str) -> Tensor:
    """The characters' places in `ALPHABET`, ``(len(text),)`` as bytes."""
    places = {character: place for place, character in enumerate(ALPHABET)}
    return torch.tensor([places.get(c, places["?"]) for c in text.translate(_PLAIN)], dtype=torch.uint8)


def decode(codes: Tensor) -> str:
    """The text that `encode` was given, up to the characters it replaced."""
    return "".join(ALPHABET[code] for code in codes.tolist())


@cache
def reference() -> str:
    """The language reference of this Python: every paragraph once, for topics quote one another, in mixed order.

    The order goes by the paragraphs' hashes, so any long piece is about everything.
    """
    from pydoc_data.topics import topics

    parts = {part for text in topics.values() for part in text.strip().split("\n\n")}
    return "\n\n".join(sorted(parts, key=lambda part: hashlib.sha256(part.encode()).digest()))


@cache
def docstrings() -> str:
    """The docstrings of `MODULES`: English about the same things by other hands."""
    return "\n\n".join(text for module in _modules() for node in ast.walk(module) if (text := _docstring(node)))


@cache
def code() -> str:
    """The source of `MODULES` without docstrings and comments."""
    return "\n\n".join(ast.unparse(_bare(module)) for module in _modules())


def _modules() -> Iterator[ast.Module]:
    return (ast.parse(_source(name)) for name in MODULES)


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    source = spec.loader.get_source(name) if spec and isinstance(spec.loader, InspectLoader) else None
    if source is None:
        raise FileNotFoundError(f"this Python has no source of its module {name!r}, which this task reads")
    return source


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstring(node: ast.AST) -> str | None:
    return ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None


def _bare(module: ast.Module) -> ast.Module:
    for node in ast.walk(module):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.fix_missing_locations(module)
