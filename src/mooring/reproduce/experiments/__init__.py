"""One file per experiment. Each has a function ``run(run: Run) -> Outcome`` and reads as an example of the library."""
