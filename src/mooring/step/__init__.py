"""The step: scan, observe, reduce, decide, apply."""
