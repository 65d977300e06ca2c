"""A run of the bench: what is asked for, in order, with progress; finished rows are kept when it is interrupted."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from mooring.bench import growth, perturbed, shapes
from mooring.bench.backends import backends, use
from mooring.bench.branches import Branch, Problem
from mooring.bench.measured import Baseline, Bench, prepared
from mooring.bench.memory import available
from mooring.bench.methods import METHODS, Method, installed, parse_methods, version
from mooring.bench.request import GIB, Request
from mooring.bench.results import Launch, Results, Size
from mooring.bench.shapes import LAUNCH, QUICK_LAUNCH, Model, parse_shapes
from mooring.bench.statistics import median_interval
from mooring.compare.environment import describe_environment, usable_cores
from mooring.finetune.devices import usable_device
from mooring.finetune.errors import SpecError, suggestion

Tell = Callable[[str, int | None, int | None], None]
"""Takes the name of a stage, how many parts of it are done, and how many there are."""
MEMORY = 7
COPIED, QUICK_COPIED = 1 << 29, 1 << 26


def bench(request: Request, tell: Tell) -> Results:
    """Measure what was asked for.

    Args:
        request: the options.
        tell: hears of every stage and every pair.

    Raises:
        SpecError: for a method, shape, backend or device that there is not.
    """
    methods = parse_methods(request.methods, quick=request.quick)
    names = parse_shapes(request.shapes, quick=request.quick)
    served = parse_backends(request.backend)
    device = usable_device(request.device)
    with _threads(request.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of our optimizers, about settings made for timing alone
        run = _Run(request, methods, names, served, device, tell)
        try:
            run.all()
        except KeyboardInterrupt:
            run.results.interrupted = True
        return run.results


def parse_backends(text: str | None) -> list[str]:
    """Names separated by commas, or ``all``; without a text the one that serves when nobody chooses.

    Raises:
        SpecError: for a backend that cannot serve here.
    """
    there = backends()
    if text is None:
        return there[:1]
    names = list(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    if names == ["all"]:
        return there
    for name in names:
        if name not in there:
            raise SpecError(
                f"--backend: {name!r} cannot serve here{suggestion(name, there)}; it can be {', '.join(there)}, or all"
            )
    if not names:
        raise SpecError(f"--backend names none: {text!r}; it can be {', '.join(there)}, or all")
    return names


def budget(request: Request, device: torch.device) -> float:
    """Bytes that may be taken."""
    if request.memory is not None:
        return request.memory * GIB
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()
    return MEMORY * GIB if free is None else min(MEMORY * GIB, 0.8 * free)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    def __init__(
        self,
        request: Request,
        methods: Sequence[Method],
        names: Sequence[str],
        served: Sequence[str],
        device: torch.device,
        tell: Tell,
    ) -> None:
        self.request, self.names, self.served, self.device = request, names, list(served), device
        self.tell = tell
        self.bytes = budget(request, device)
        self.stage = "copy bandwidth"
        tell(self.stage, None, None)
        bench = Bench(device, request.count, request.seed, 0.0, lambda done: tell(self.stage, done, request.count))
        size = QUICK_COPIED if request.quick else COPIED
        bench.copy = bench.clock.copy_bandwidth(device, size)
        self.read = bench.clock.read_bandwidth(device, size)
        self.bench = bench
        self.methods = [method for method in methods if installed(method)]
        self.results = Results(self._about())
        absent = dict.fromkeys(method.package for method in methods if not installed(method))
        self.results.left_out += [f"{package} is not installed" for package in absent]
        if not self.methods:
            raise SpecError(f"--methods: nothing is left to time; {'; '.join(self.results.left_out)}")

    def _about(self) -> dict[str, object]:
        packages = {method.package for method in self.methods} - {"mooring", "torch"}
        return {
            **describe_environment(),
            "device": str(self.device) if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "threads": torch.get_num_threads(),
            "vector": torch.backends.cpu.get_cpu_capability(),
            "backends": self.served,
            "pairs": self.request.count,
            "seed": self.request.seed,
            "quick": self.request.quick,
            "launch_tensors": QUICK_LAUNCH if self.request.quick else LAUNCH,
            "memory_bytes": int(self.bytes),
            "copy_bytes_per_second": self.bench.copy,
            "read_bytes_per_second": self.read,
            "implementations": {package: version(package) for package in sorted(packages)},
            "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "date": time.strftime("%Y-%m-%d"),
        }

    def all(self) -> None:
        for name in self.names:
            model = shapes.model(name, self.bytes)
            if model.needs > self.bytes:
                need, have = model.needs / GIB, self.bytes / GIB
                self.results.left_out.append(f"{model.title} takes about {need:.1f} GiB, and {have:.1f} may be taken")
                continue
            self.results.models[name] = Size(model.title, len(model.shapes), model.elements, model.note)
            self._steps(model)
        first = next((n for n in self.names if n in self.results.models), None)
        if first is not None and self.request.methods is None:
            self._perturbations(shapes.model(first, self.bytes))
        if first is not None:
            self._between(shapes.model(first, self.bytes))
        self._launches()
        if self.request.growth:
            self._growth()

    def _steps(self, model: Model) -> None:
        for method in self.methods:
            for backend in self.served if method.ours else [""]:
                self._say(f"{model.title}: {method.id}" + (f" ({backend})" if len(self.served) > 1 and backend else ""))
                self.results.rows.append(self.bench.row(method, backend, model))

    def _perturbations(self, model: Model) -> None:
        self._say(f"{model.title}: noise and moved weights")
        baseline = Baseline(self._plain(model.shapes))
        for backend in self.served:
            self.results.perturbations += perturbed.measure(self.bench, model, backend, baseline)

    def _plain(self, of: Sequence[shapes.Shape]) -> Problem:
        return Problem(of, Branch(), dtype=torch.float32, device=self.device)

    def _right(self) -> Iterator[tuple[Method, str]]:
        """Methods whose overhead is of interest, and whose step was found right."""
        right = {(row.method, row.backend) for row in self.results.rows if row.status == "timed"}
        for method in self.methods:
            for backend in self.served if method.ours else [""]:
                if method.launch and (method.id, backend) in right:
                    yield method, backend

    def _between(self, model: Model) -> None:
        for method, backend in self._right():
            self._say(f"after a matrix product: {method.id}")
            self.results.between.append(self.bench.between(method, backend, model))

    def _launches(self) -> None:
        """With nothing to compute there is no branch to take."""
        counts = (1, self.results.about["launch_tensors"])
        baselines = [Baseline(self._plain([(1,)] * count)) for count in counts]
        for method, backend in self._right():
            self._say(f"launch: {method.id}")
            seconds, ratios = [], []
            for count, baseline in zip(counts, baselines, strict=True):
                problem = Problem([(1,)] * count, method.branch, dtype=method.dtype, device=self.device)
                with use(backend):
                    pairs = self.bench.pairs(prepared(method, problem).step, baseline.step)
                seconds.append(statistics.median(pairs.candidate))
                ratios.append(median_interval(pairs.ratios))
            per_tensor = seconds[1] / counts[1]
            self.results.launches.append(Launch(method.id, backend, seconds[0], per_tensor, *ratios))

    def _growth(self) -> None:
        chosen = [m for m in self.methods if m.ours] if self.request.methods else [METHODS[n] for n in growth.METHODS]
        threads = self.request.threads or usable_cores()
        for place in growth.places(quick=self.request.quick, threads=threads if self.device.type == "cpu" else 1):
            self._say(f"growth with {place.curve}: {place.x:,}")
            for found in growth.measure(self.bench, place, chosen, self.served):
                if isinstance(found, str):
                    self.results.left_out.append(found)
                else:
                    self.results.points.append(found)

    def _say(self, stage: str) -> None:
        self.stage = stage
        self.tell(stage, None, None)
