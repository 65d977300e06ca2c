"""Fine-tuning one pretrained model on one task: what a trial is, how it is run, what it measures.

``spec``, ``methods`` and the registry of tasks import no torch, so the command line can list and check things
quickly; ``trial`` runs one trial.
"""
