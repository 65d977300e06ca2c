"""What a step sends to other processes, on 8 to 1024 of them: bytes from the step's own account, times from a model.

    pip install -c constraints.txt -e ".[plot]"        # for the picture, with --write
    python benchmarks/scaling.py                       # print the tables of docs/scaling.md
    python benchmarks/scaling.py --write               # renew them and docs/images/scaling.png
    python benchmarks/scaling.py --measure             # time small reductions between 2 and 4 processes of this machine

Bytes: `mo.communication` takes the step of every method on decoder models without values, sharded over a world of 1024
processes of which this is the first (torch's fake process group: nothing is sent). Times: a formula and constants, all
of them below; nothing is timed.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

import mooring as mo
from mooring.optim.traffic import Collective

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
PICTURE = ROOT / "docs" / "images" / "scaling.png"
RANKS = (8, 64, 256, 1024)
NODE = 8  # processes that share a machine


@dataclass(frozen=True)
class Decoder:
    """A decoder of the Llama family: the numbers of its published configuration.

    Attributes:
        tied: whether the output layer is the embedding.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    def layer(self) -> list[tuple[int, ...]]:
        """The shapes of one layer: attention, the gated MLP, two norms."""
        kv = self.width // self.heads * self.kv_heads
        square, mlp = (self.width, self.width), (self.inner, self.width)
        return [square, (kv, self.width), (kv, self.width), square, mlp, mlp, mlp[::-1], (self.width,), (self.width,)]

    def rest(self) -> list[tuple[int, ...]]:
        """The shapes outside the layers."""
        table = (self.vocabulary, self.width)
        return [table, (self.width,), *([] if self.tied else [table])]

    def shapes(self) -> list[tuple[int, ...]]:
        """All shapes."""
        return [*self.rest(), *(shape for _ in range(self.layers) for shape in self.layer())]

    def parameters(self) -> int:
        """How many numbers they are."""
        return sum(math.prod(shape) for shape in self.shapes())


MODELS = {
    "Llama 3.2 1B": Decoder(16, 2048, 8192, 32, 8, 128256, tied=True),
    "Llama 2 7B": Decoder(32, 4096, 11008, 32, 32, 32000),
    "Llama 2 70B": Decoder(80, 8192, 28672, 64, 8, 32000),
}
ALL = "Adam, projection, stable decay, SPD"
METHODS: dict[str, Callable[[Any], Any]] = {
    "AdamW": lambda p: mo.AdamW(p),
    "AdamW, clipped": lambda p: mo.AdamW(p, max_grad_norm=1.0),
    "AdamS": lambda p: mo.AdamS(p),
    "AdamSPD": lambda p: mo.AdamSPD(p),
    "AdamP": lambda p: mo.AdamP(p),
    ALL: lambda p: mo.Adam(
        p, rules=[mo.RadialProjection(), mo.StableDecay(5e-4, toward="anchor"), mo.SelectiveProjection()]
    ),
}
Account = list[tuple[int, int]]
"""Bytes and processes of every reduction of a step."""


# Bytes, from the step.


def mesh_of(layout: str, ranks: int) -> tuple[DeviceMesh, list[Placement]]:
    """FSDP2: all processes hold a part. HSDP: those of a machine hold a part, and the machines copies of it."""
    numbers = torch.arange(ranks)
    if layout == "FSDP2":
        return DeviceMesh("cpu", numbers), [Shard(0)]
    return DeviceMesh("cpu", numbers.view(-1, NODE)), [Replicate(), Shard(0)]


def sharded(shape: tuple[int, ...], mesh: DeviceMesh, placements: list[Placement]) -> nn.Parameter:
    """A parameter without values, of which this process holds its part."""
    here, _ = compute_local_shape_and_global_offset(shape, mesh, placements)
    part, whole = torch.empty(here, device="meta"), torch.empty(shape, device="meta")
    split = DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())
    return nn.Parameter(split)


def account(model: str, layout: str, ranks: int) -> dict[str, Account]:
    """By method."""
    mesh, placements = mesh_of(layout, ranks)
    params = [sharded(shape, mesh, placements) for shape in MODELS[model].shapes()]
    return {name: [(c.bytes, c.processes) for c in mo.communication(make(params))] for name, make in METHODS.items()}


def pretend() -> None:
    """Be the first of 1024 processes, none of which is there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=max(RANKS), store=FakeStore())


# What FSDP itself moves: formulas.

GATHERED, REDUCED = 2, 4  # bytes of an element: bfloat16 weights, float32 gradients, as mixed precision has them


def fsdp_bytes(model: str, layout: str, ranks: int) -> float:
    """Bytes that a process sends: weights gathered for forward and backward, gradients scattered, each in a ring.

    HSDP adds the averaging of gradient shards over the copies. Where gathering and scattering move equally much, as
    here, the total is that of FSDP2.
    """
    n = MODELS[model].parameters()
    inside = ranks if layout == "FSDP2" else NODE
    moved = (inside - 1) / inside * n * (2 * GATHERED + REDUCED)
    copies = ranks // inside
    return moved + 2 * (copies - 1) / copies * n / inside * REDUCED


# Times: NCCL's own model of its latencies and bandwidths (src/graph/tuning.cc at commit 01afd20), on machines of eight
# GPUs joined by NVLink, with one 25 GB/s link to the network for each. Microseconds; the protocol LL for what is small
# and Simple for what is large.

BASE = {"tree LL": 4.4, "ring LL": 3.6, "ring Simple": 8.4}
NVLINK = {"tree LL": 0.52, "ring LL": 0.47, "ring Simple": 3.4}
NETWORK = {"tree LL": 5.0, "ring LL": 2.7, "ring Simple": 9.6}
BANDWIDTH = 8 * 25e3  # bytes per microsecond that pass through a machine's links


def hop(kind: str, nodes: int) -> float:
    """Between two GPUs of a machine; the protocol LL is slower where the network takes part."""
    return NVLINK[kind] * (1.8 if nodes > 1 and kind.endswith("LL") else 1.0)


def all_reduce(size: float, ranks: int, nodes: int, kind: str) -> float:
    """Microseconds."""
    if ranks == 1:
        return 0.0
    if kind == "tree LL":
        up = (ranks // nodes - 1) * hop(kind, nodes) + int(math.log2(nodes)) * NETWORK[kind]
        speed = min(BANDWIDTH * 0.9, 80e3 if nodes > 2 else 110e3) / 3.8 / 2
        return BASE[kind] + 2 * up + size / speed
    steps, between = 2 * (ranks - 1), 2 * (nodes - 1)
    speed = BANDWIDTH / (4 if kind == "ring LL" else 1) * ranks / steps
    return BASE[kind] + (steps - between) * hop(kind, nodes) + between * NETWORK[kind] + size / speed


def gather_or_scatter(size: float, ranks: int, nodes: int) -> float:
    """Microseconds of an all-gather or a reduce-scatter of ``size`` bytes over all processes together."""
    kind = "ring Simple"
    inside, between = (ranks - 1) - (nodes - 1), nodes - 1
    return BASE[kind] + inside * NVLINK[kind] + between * NETWORK[kind] + size / (BANDWIDTH * ranks / (ranks - 1))


def step_time(found: Account, layout: str, ranks: int, kind: str = "best") -> float:
    """All reductions of a step, one after the other, each by the faster algorithm."""
    nodes = max(ranks // NODE, 1) if layout == "FSDP2" else 1
    kinds = ("tree LL", "ring LL") if kind == "best" else (kind,)
    return sum(min(all_reduce(size, processes, nodes, k) for k in kinds) for size, processes in found)


def fsdp_time(model: str, layout: str, ranks: int) -> float:
    """FSDP's collectives, one set for every layer and one for the rest, one after the other."""
    decoder = MODELS[model]
    inside, nodes = (ranks, max(ranks // NODE, 1)) if layout == "FSDP2" else (NODE, 1)
    copies = ranks // inside
    total = 0.0
    for shapes, times in ((decoder.layer(), decoder.layers), (decoder.rest(), 1)):
        n = sum(math.prod(shape) for shape in shapes)
        one = 2 * gather_or_scatter(GATHERED * n, inside, nodes) + gather_or_scatter(REDUCED * n, inside, nodes)
        total += times * (one + all_reduce(REDUCED * n / inside, copies, copies, "ring Simple"))
    return total


# Tables.


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def accounts(models: Sequence[str], layouts: Sequence[str], ranks: Sequence[int]) -> dict[str, dict[str, Account]]:
    """By model and method; sizes that depended on the number of processes or on copies would be an error.

    The first model takes every combination, the others those with the most processes.
    """
    found: dict[str, dict[str, Account]] = {}
    for model in models:
        ends = ranks if model == models[0] else {max(ranks)}
        for layout in layouts:
            for n in sorted(ends):
                for method, now in account(model, layout, n).items():
                    assert all(processes == (n if layout == "FSDP2" else NODE) for _, processes in now), (model, method)
                    known = found.setdefault(model, {}).setdefault(method, now)
                    assert [size for size, _ in known] == [size for size, _ in now], (model, method, layout, n)
    return found


def spread(sizes: Account, layout: str, ranks: int) -> Account:
    """The same reductions among another number of processes."""
    return [(size, ranks if layout == "FSDP2" else NODE) for size, _ in sizes]


def bytes_table(found: dict[str, dict[str, Account]]) -> list[str]:
    """What a process sends."""
    lines = [
        row("model", "method", "reductions", "bytes of each", "sends at 1024, kB", "of what FSDP2 sends"),
        row(*["---"] * 6),
    ]
    for model, methods in found.items():
        for method, sizes in methods.items():
            sent = sum(Collective(s, n).sent for s, n in spread(sizes, "FSDP2", max(RANKS)))
            share = sent / fsdp_bytes(model, "FSDP2", max(RANKS))
            each = ", ".join(f"{size:,}".replace(",", " ") for size, _ in sizes) or "—"
            lines.append(row(model, method, len(sizes), each, f"{sent / 1e3:.1f}", f"{share:.1e}" if sent else "0"))
    return lines


def fsdp_table(models: Sequence[str]) -> list[str]:
    """What FSDP sends, GB per process and step; HSDP sends as much, see :func:`fsdp_bytes`."""
    lines = [
        row("model", "parameters", "tensors", *(f"{n} processes" for n in RANKS)),
        row(*["---"] * 7),
    ]
    for model in models:
        decoder = MODELS[model]
        cells = [f"{fsdp_bytes(model, 'FSDP2', n) / 1e9:.2f}" for n in RANKS]
        count = f"{decoder.parameters():,}".replace(",", " ")
        lines.append(row(model, count, len(decoder.shapes()), *cells))
    return lines


def time_table(found: dict[str, dict[str, Account]]) -> list[str]:
    """Microseconds of a step's reductions, and their share of FSDP's."""
    lines = [
        row("model", "method", *(f"FSDP2, {n}" for n in RANKS), *(f"HSDP, {n}" for n in RANKS[1:])),
        row(*["---"] * 9),
    ]
    for model, methods in found.items():
        for method, sizes in methods.items():
            if not sizes:
                continue
            cells = []
            for layout, n in [*(("FSDP2", n) for n in RANKS), *(("HSDP", n) for n in RANKS[1:])]:
                t = step_time(spread(sizes, layout, n), layout, n)
                cells.append(f"{t:.0f} µs ({100 * t / fsdp_time(model, layout, n):.2g} %)")
            lines.append(row(model, method, *cells))
    return lines


def draw(found: dict[str, dict[str, Account]]) -> Any:
    """Time against the number of processes: of the methods on the largest model, and as a share of FSDP's."""
    from matplotlib.figure import Figure

    ranks = [2**k for k in range(3, 11)]
    figure = Figure(figsize=(9.6, 3.8), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    largest = list(found)[-1]
    shown = {"AdamP": ("AdamS, AdamSPD or AdamP", "#1f5fa8"), ALL: (ALL, "#8c2d5e")}
    for method, (label, colour) in shown.items():
        sizes = found[largest][method]
        for kind, style in (("best", "-"), ("ring LL", ":")):
            t = [step_time(spread(sizes, "FSDP2", n), "FSDP2", n, kind) for n in ranks]
            left.plot(ranks, t, style, color=colour, label=label if kind == "best" else None)
    left.set(title=f"reductions of a step, {largest}", ylabel="µs (dotted: in a ring)", xscale="log", yscale="log")
    for (model, methods), style in zip(found.items(), (":", "--", "-")):
        for layout, colour in (("FSDP2", "#1f5fa8"), ("HSDP", "#c96a00")):
            t = [step_time(spread(methods[ALL], layout, n), layout, n) / fsdp_time(model, layout, n) for n in ranks]
            right.plot(ranks, t, style, color=colour, label=f"{model}, {layout}")
    right.set(title="all of them together, against FSDP's own", ylabel="share of the time", xscale="log", yscale="log")
    right.set_ylim(bottom=2e-7)
    for axes in (left, right):
        axes.set_xticks(ranks, [str(n) for n in ranks])
        axes.minorticks_off()
        axes.set_xlabel("processes, eight on a machine")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    for axes in (left, right):
        axes.title.set_fontsize(10)
    return figure


# A measured point: the shape of the model, not its constants.


def one_of(ranks: int, rank: int, folder: str) -> None:
    """One process of the measurement; the first prints bytes, the fastest tenth and the median in µs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    for numbers in (1, 723, 723 * 5):
        x, times = torch.zeros(numbers, dtype=torch.float64), []
        for i in range(220):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(x)
            if i >= 20:
                times.append((time.perf_counter() - start) * 1e6)
        if rank == 0:
            print(numbers * 8, statistics.quantiles(times, n=10)[0], statistics.median(times), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads outlive the interpreter


def measure() -> None:
    """Print how a reduction's time grows with its bytes, and from 2 processes to 4; as ratios of the fastest tenths."""
    found: dict[int, list[list[float]]] = {}
    for ranks in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            call = [sys.executable, __file__, "--one-of", str(ranks), folder]
            running = [
                subprocess.Popen([*call, str(rank)], stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL)
                for rank in range(ranks)
            ]
            out = running[0].communicate()[0].decode()
            for process in running[1:]:
                process.wait()
        found[ranks] = [[float(word) for word in line.split()] for line in out.splitlines()]
        (_, least, _), *others = found[ranks]
        for size, fast, _ in others:
            print(f"{ranks} processes: {size:.0f} bytes take {fast / least:.2f} x the time of 8 bytes")
    for (size, two, _), (_, four, _) in zip(found[2], found[4]):
        print(
            f"{size:.0f} bytes: 4 processes take {four / two:.1f} x the time of 2; by steps, a ring 3 x and a tree 2 x"
        )
    print(f"gloo, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")


def write(tables: dict[str, list[str]]) -> None:
    """Put the tables between their marks in the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in tables.items():
        before, rest = text.split(f"<!-- {name} -->\n")
        after = rest.split("<!-- end -->\n", 1)[1]
        text = "\n".join([f"{before}<!-- {name} -->", *lines, "<!-- end -->", after])
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--write", action="store_true", help="renew docs/scaling.md and its picture")
    parser.add_argument(
        "--measure", action="store_true", help="time small reductions on this machine, and nothing else"
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument(
        "--ranks", nargs="+", type=int, choices=RANKS, default=RANKS, help="take steps with these alone"
    )
    parser.add_argument("--one-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_of:
        ranks, folder, rank = arguments.one_of
        one_of(int(ranks), int(rank), folder)
    if arguments.measure:
        measure()
        return
    if arguments.write and (len(arguments.models) < len(MODELS) or len(arguments.ranks) < len(RANKS)):
        parser.error("--write needs all models and ranks")
    pretend()
    found = accounts(arguments.models, ("FSDP2", "HSDP"), arguments.ranks)
    tables = {"fsdp": fsdp_table(arguments.models), "bytes": bytes_table(found), "times": time_table(found)}
    for name, lines in tables.items():
        print(f"{name}:", *lines, sep="\n")
    if arguments.write:
        write(tables)
        draw(found).savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
