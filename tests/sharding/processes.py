"""Run a function in several processes joined by gloo, and bring back what it returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]


def run(function: str, ranks: int, timeout: float = 300, backend: str = "eager", **arguments: Any) -> list[Any]:
    """Call ``module:function(**arguments)`` on every rank; the return values, as JSON, in the order of ranks.

    Steps are eager's unless asked otherwise: loading the kernels takes each process more than most of these tests do.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = os.pathsep.join([str(ROOT), *sys.path[1:]])
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "MOORING_BACKEND": backend}
        environment = {**os.environ, **own}
        logs = [Path(folder, f"{rank}.log") for rank in range(ranks)]
        call = [sys.executable, "-m", "tests.sharding.processes", function, json.dumps(arguments), folder, str(ranks)]
        processes = [
            subprocess.Popen([*call, str(rank)], stderr=log.open("w"), cwd=ROOT, env=environment)
            for rank, log in enumerate(logs)
        ]
        try:
            for process in processes:
                process.wait(timeout)
        finally:
            for process in processes:
                process.kill()
        results = [Path(folder, f"{rank}.json") for rank in range(ranks)]
        missing = [rank for rank, path in enumerate(results) if not path.exists()]
        assert not missing, "\n".join(f"rank {rank} failed:\n{logs[rank].read_text()[-4000:]}" for rank in missing)
        return [json.loads(path.read_text()) for path in results]


def run_once(function: str, ranks: int, **arguments: Any) -> list[Any]:
    """:func:`run` for several tests: where they are spread over processes of pytest, only the first runs it."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if session is None:
        return run(function, ranks, **arguments)
    folder = Path(tempfile.gettempdir(), "mooring-tests")
    folder.mkdir(exist_ok=True)
    file = folder / f"{session}-{function.replace(':', '.')}.json"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            file.write_text(json.dumps(run(function, ranks, **arguments)))
        found: list[Any] = json.loads(file.read_text())
        return found


def _worker(function: str, arguments: dict[str, Any], folder: str, ranks: int, rank: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    module, name = function.split(":")
    result = getattr(import_module(module), name)(**arguments)
    partial = Path(folder, f"{rank}.partial")
    partial.write_text(json.dumps(result))
    partial.rename(Path(folder, f"{rank}.json"))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads outlive the interpreter and would abort it on the way out


if __name__ == "__main__":
    _worker(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
