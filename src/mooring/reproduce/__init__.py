"""The papers' claims as experiments that anyone can run: ``mooring reproduce``.

An experiment is one file in ``experiments`` that reads like an example: it uses the public library, returns figures
with what was published beside them, and draws a picture. ``registry`` lists them, ``outcome`` is what they return,
``run`` is what they are given, ``driver`` runs them and writes everything down.
"""

from mooring.reproduce.outcome import Check, Outcome, Row
from mooring.reproduce.run import Run

__all__ = ["Check", "Outcome", "Row", "Run"]
