"""Flip the sign of every rule, one at a time, in a copy of the library: a reproduction must turn red each time.

    python tests/reproduce/flip_signs.py            all of them, some minutes on two cores
    python tests/reproduce/flip_signs.py sam nso    those whose name contains a word
    python tests/reproduce/flip_signs.py --green    where the unchanged library has just been found green

Each line names what is flipped, the source line before and after, and the experiment that is expected to notice, which
runs in its quick form. First the experiments run on the unchanged library, where they must be green. Exit code 1 where
a flip stays unnoticed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "mooring"


@dataclass(frozen=True)
class Flip:
    """One wrong sign."""

    name: str
    file: str
    right: str
    wrong: str
    experiment: str


CAPPED = "x.per_slice(torch.clamp(shrink, max=1.0))"
FLIPS = (
    Flip("radial projection", "rules/radial_projection.py", "-x.move.beta * radial", "x.move.beta * radial", "toy-2d"),
    Flip(
        "decay of SGDP", "rules/radial_projection.py", "return 1 / (1 - x.option(\"momentum\"))",
        "return -1 / (1 - x.option(\"momentum\"))", "digits-norm-growth",
    ),
    Flip("coupled decay", "step/batch.py", 'vectors[rule.couples], self.host_options("weight_decay")',
         'vectors[rule.couples], [-c for c in self.host_options("weight_decay")]', "digits-decay-grid"),
    Flip("decoupled decay", "rules/decay.py", f"add(self.writes, {CAPPED})", f"add(self.writes, -{CAPPED})",
         "noisy-quadratic"),
    Flip("stable decay", "rules/stable_decay.py", "        return x.stable_scale()", "        return -x.stable_scale()",
         "noisy-quadratic"),
    Flip("selective projection", "step/move.py", 'add("d", amount)', 'add("d", -amount)',
         "two-layer-drift"),
    Flip("selective projection: the test", "rules/selective_projection.py", "(-gd < 0)", "(gd < 0)", "two-layer-drift"),
    Flip("selective projection: the displacement", "rules/selective_projection.py", "ss - 2 * sd", "ss + 2 * sd",
         "two-layer-drift"),
    Flip("trust ratio", "rules/trust_ratio.py", "x.move.scale(x.per_slice(", "x.move.scale(-x.per_slice(",
         "trust-ratio"),
    Flip("NSO: the second point", "perturb/nso.py", "signs = (1.0, -1.0)", "signs = (1.0, 1.0)", "variance-orders"),
    Flip("SAM, ASAM and RSAM: the ascent", "perturb/sam.py", '(float(member.group["rho"]) / (norm',
         '(-float(member.group["rho"]) / (norm', "digits-sharpness"),
    Flip("USAM: the ascent", "perturb/sam.py", 'climbed = g * float(member.group["rho"])',
         'climbed = g * -float(member.group["rho"])', "digits-sharpness"),
)  # fmt: skip


def reproduce(source: Path, experiment: str, output: Path) -> tuple[int, str]:
    """The exit code of an experiment run with this copy of the library, and the first figure that was missed."""
    command = [sys.executable, "-m", "mooring", "reproduce", experiment, "--quick", "--quiet", "--jobs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "MOORING_BACKEND": "eager"}
    done = subprocess.run(
        [*command, "--output-dir", str(output)], env=environment, capture_output=True, text=True, check=False
    )
    path = output / experiment / "result.json"
    if not path.is_file():
        return done.returncode, done.stderr.strip()[-300:]
    result = json.loads(path.read_text(encoding="utf-8"))
    missed = [f"{c['figure']}: {c['ours']}" for c in result["checks"] if not c["ok"]]
    return done.returncode, result["error"] or "; ".join(missed[:1])


def notice(flip: Flip, folder: Path) -> tuple[bool, str]:
    """Flip in a copy; whether the experiment turned red, and how."""
    copy = folder / flip.name.replace(" ", "_").replace(":", "")
    shutil.copytree(SOURCE, copy / "mooring", ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "mooring" / flip.file
    text = file.read_text(encoding="utf-8")
    if text.count(flip.right) != 1:
        raise SystemExit(f"{flip.file} holds {flip.right!r} {text.count(flip.right)} times, expected once")
    file.write_text(text.replace(flip.right, flip.wrong), encoding="utf-8")
    code, why = reproduce(copy, flip.experiment, copy / "out")
    return code == 1, why


def main(words: list[str]) -> int:
    """Run; 0 where every flip was noticed."""
    known_green = "--green" in words
    words = [word for word in words if word != "--green"]
    flips = [flip for flip in FLIPS if not words or any(word.lower() in flip.name.lower() for word in words)]
    unnoticed = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        folder = Path(name)
        experiments = [] if known_green else list(dict.fromkeys(flip.experiment for flip in flips))
        for experiment, (code, why) in zip(
            experiments, pool.map(lambda e: reproduce(SOURCE.parent, e, folder / "right"), experiments), strict=True
        ):
            print(f"unchanged: {experiment} is {'green' if code == 0 else 'RED: ' + why}", flush=True)
            if code != 0:
                unnoticed.append(experiment)
        for flip, (red, why) in zip(flips, pool.map(lambda f: notice(f, folder), flips), strict=True):
            print(f"{flip.name}: {flip.experiment} {'turned red: ' + why if red else 'STAYED GREEN'}", flush=True)
            if not red:
                unnoticed.append(flip.name)
    print(f"{len(flips) - len(unnoticed)} of {len(flips)} flips were noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
