"""``mooring inspect``: where a checkpoint is, what it is measured on, the measures together, and their picture."""
