"""Callbacks and mixins for trainers; each module needs the trainer it is named after (extra: hosts)."""
