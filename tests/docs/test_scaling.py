"""docs/scaling.md says what benchmarks/scaling.py prints, and the formulas of that are those of their sources."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "scaling.py"
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def table(name: str) -> list[list[str]]:
    body = PAGE.split(f"<!-- {name} -->\n")[1].split("<!-- end -->")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.strip().splitlines()[2:]]


def test_the_tables_are_what_the_command_prints(script: ModuleType) -> None:
    """The smallest model's rows as printed; the larger ones' bytes are in proportion to their tensors, and their other
    columns follow from the bytes.
    """
    smallest, *others = script.MODELS
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    call = [sys.executable, str(SCRIPT), "--models", smallest, "--ranks", "64"]
    printed = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300)
    assert printed.returncode == 0, printed.stderr
    rows = [line for line in printed.stdout.splitlines() if line.startswith(f"| {smallest}")]
    assert len(rows) == 1 + len(script.METHODS) + len(script.METHODS) - 1  # AdamW has nothing to time
    for line in rows:
        assert f"{line}\n" in PAGE, "run python benchmarks/scaling.py --write"

    found: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for model, method, count, each, *_ in table("bytes"):
        sizes = [int(size.replace(" ", "")) for size in each.split(", ")] if each != "—" else []
        assert len(sizes) == int(count)
        found.setdefault(model, {})[method] = [(size, 64) for size in sizes]
    assert list(found) == list(script.MODELS)
    for model in others:
        ratio = len(script.MODELS[model].shapes()) / len(script.MODELS[smallest].shapes())
        for method, sizes in found[model].items():
            assert [size for size, _ in sizes] == pytest.approx([size * ratio for size, _ in found[smallest][method]])
    for name, lines in {
        "fsdp": script.fsdp_table(list(script.MODELS)),
        "bytes": script.bytes_table(found),
        "times": script.time_table(found),
    }.items():
        assert "\n".join(["", *lines, ""]) in PAGE, name


def test_the_models_are_the_published_ones(script: ModuleType) -> None:
    published = {"Llama 3.2 1B": 1_235_814_400, "Llama 2 7B": 6_738_415_616, "Llama 2 70B": 68_976_648_192}
    assert {name: model.parameters() for name, model in script.MODELS.items()} == published


def test_fsdp_sends_what_its_collectives_send_one_by_one(script: ModuleType) -> None:
    """A ring gathers and scatters (n - 1) / n of a tensor from each process, and averages with twice that."""
    for layout, n in (("FSDP2", 64), ("HSDP", 64), ("FSDP2", 8)):
        inside = n if layout == "FSDP2" else 8
        copies = n // inside
        total = 0.0
        for shape in script.MODELS["Llama 3.2 1B"].shapes():
            size = 1
            for side in shape:
                size *= side
            part = size / inside
            total += 2 * (inside - 1) * part * 2 + (inside - 1) * part * 4
            total += 2 * (copies - 1) * (part / copies) * 4
        assert script.fsdp_bytes("Llama 3.2 1B", layout, n) == pytest.approx(total, rel=1e-12)


def test_times_are_those_of_a_walk_along_the_tree_and_the_ring(script: ModuleType) -> None:
    """Hop by hop, without the formulas' counting; and what the page says of the inputs."""
    for nodes in (1, 2, 16, 128):
        n = 8 * nodes
        slower = 1.8 if nodes > 1 else 1.0
        ring = [i % 8 == 7 and nodes > 1 for i in range(n)][: n - 1]  # of n - 1 hops those that leave a machine
        walked = 3.6 + sum(2 * (2.7 if leaves else 0.47 * slower) for leaves in ring)
        assert script.all_reduce(0, n, nodes, "ring LL") == pytest.approx(walked, rel=1e-12)
        height, machines = 0, nodes
        while machines > 1:
            height, machines = height + 1, machines // 2
        up = sum([0.52 * slower] * 7) + sum([5.0] * height)
        assert script.all_reduce(0, n, nodes, "tree LL") == pytest.approx(4.4 + 2 * up, rel=1e-12)
        gathered = 8.4 + sum(9.6 if leaves else 3.4 for leaves in ring)
        assert script.gather_or_scatter(0, n, nodes) == pytest.approx(gathered, rel=1e-12)
    speed = [
        1e6 / (script.all_reduce(1e6, 8 * m, m, "tree LL") - script.all_reduce(0, 8 * m, m, "tree LL")) for m in (2, 4)
    ]
    assert [f"{s / 1e3:.1f} GB/s" for s in (speed[1],)] == ["10.5 GB/s"] and f"{speed[0] / 1e3:.1f}" == "14.5"
    assert script.all_reduce(100.0, 1, 1, "ring Simple") == 0


def test_the_page_s_summary_is_its_tables(script: ModuleType) -> None:
    shares = [float(cells[-1]) for cells in table("bytes")]
    assert f"The most is {max(shares) * 1e6:.1f} millionths" in PAGE
    percent = [float(p) for cells in table("times") for p in re.findall(r"\(([\d.e-]+) %\)", " ".join(cells))]
    assert len(percent) == 7 * len(table("times")) and max(percent) < 0.2, "the picture's text says 0.2 %"
