"""Embedded tasks: a registry that imports no torch, and the pretrained starts they share."""
