"""The command line: parse, call, print. Importing it imports neither torch nor what a command alone needs."""

from __future__ import annotations

from mooring.cli.app import main

__all__ = ["main"]
