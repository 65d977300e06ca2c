"""Backends that do the work on tensors: eager torch, any device, is the reference for all of them."""
