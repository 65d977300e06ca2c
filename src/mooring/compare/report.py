"""``report.html`` and ``report.md``: everything a comparison found, in one file each, rebuilt from the folder alone."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mooring.compare import metrics
from mooring.compare.equal_cost import views
from mooring.compare.plots.gallery import render
from mooring.compare.plots.style import THEME, looks
from mooring.compare.repeat import command_for
from mooring.compare.results import Results
from mooring.compare.statistics import ALPHA, BOOTSTRAP_FROM, compare_paired
from mooring.compare.tables import (
    build_table,
    cost_table,
    headline_metrics,
    shift_metrics,
    show_p,
    spread_rows,
    test_rows,
)
from mooring.compare.verdict import judge
from mooring.finetune.files import write_text
from mooring.finetune.methods import METHODS
from mooring.finetune.spec import TrainSpec
from mooring.finetune.task_spec import OwnTaskSpec, TaskSpec
from mooring.finetune.tasks.registry import task_info

REPORT = "report.html"
MARKDOWN = "report.md"


@dataclass(frozen=True)
class MethodCard:
    """How one method was configured, and what its step does in order."""

    label: str
    optimizer: str
    options: str
    rules: str
    perturb: str
    pipeline: str
    description: str
    paper: str


@dataclass(frozen=True)
class Failure:
    """A trial that failed, its traceback without the user's folders."""

    method: str
    seed: int
    summary: str
    details: str


def write_report(results: Results) -> Path:
    """Write the report, its Markdown twin and the figures; the same folder gives the same bytes."""
    folder = results.folder.path
    plots = folder / "plots"
    if plots.is_dir():
        shutil.rmtree(plots)  # figures of methods or metrics that are no longer there
    figures = render(results, plots)
    templates = Environment(
        loader=PackageLoader("mooring.compare"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["together"] = together
    context = _context(results)
    inlined, names = defaultdict(list), defaultdict(list)  # a section without figures has an empty list
    for section, panels in figures.items():
        inlined[section] = [Markup(svg) for _, svg in panels]
        names[section] = [name for name, _ in panels]
    write_text(folder / REPORT, templates.get_template("report.html.j2").render(**context, figures=inlined))
    write_text(folder / MARKDOWN, templates.get_template("report.md.j2").render(**context, figures=names))
    return folder / REPORT


def together(text: str) -> Markup:
    """Escaped text in which no interval is broken over two lines."""
    return Markup(re.sub(r"\[[^\]]*\]", r'<span class="together">\g<0></span>', str(escape(text))))


def _context(results: Results) -> dict[str, Any]:
    config = results.config
    headline = headline_metrics(results)
    shifts = shift_metrics(results)
    look = looks(results.labels)
    return {
        "config": config,
        "task": task_info(config.task.name),
        "baseline": results.baseline,
        "verdict": judge(results),
        "headline": build_table(results, headline),
        "shifts": build_table(results, shifts),
        "cost": cost_table(results),
        "equal_cost": views(results),
        "tests": test_rows(results, [*headline, *shifts]),
        "spread": spread_rows(results),
        "colours": {label: f"var({THEME[found.colour]})" for label, found in look.items()},
        "shapes": {label: Markup(_SHAPES[found.marker]) for label, found in look.items()},
        "methods": _cards(results),
        "failures": _failures(results),
        "missing": results.with_status("missing"),
        "done": len(results.with_status("done")),
        "planned": len(results.trials),
        "fairness": _fairness(results),
        "statistics": _statistics(results),
        "environment": results.environment,
        "command": command_for(config),
        "has_retention": results.has(metrics.RETENTION),
        "has_shifts": bool(results.kinds),
    }


def _cards(results: Results) -> list[MethodCard]:
    known = {(info.spec.optimizer, *info.spec.perturb): info for info in METHODS.values()}
    cards = []
    for method in results.config.compare.methods:
        info = (
            known.get((method.optimizer, *method.perturb)) if not method.rules else None
        )  # a recipe is not what its base alone is
        optimizer = method.optimizer.replace(":", ".")
        cards.append(
            MethodCard(
                label=method.label,
                optimizer=f"wrap({optimizer})" if method.wrap else optimizer,
                options=", ".join(f"{key}={value!r}" for key, value in method.options.items())
                or "the class's defaults",
                rules=f"rules=[{method.rules_text}]" if method.rules else "",
                perturb=method.perturb_text,
                pipeline=" → ".join(results.pipeline(method.label)),
                description=info.description if info else "",
                paper=info.paper if info else "",
            )
        )
    return cards


def _failures(results: Results) -> list[Failure]:
    found = []
    for trial in results.with_status("failed"):
        text = without_private_paths(trial.error)
        summary, _, details = text.partition("\n")
        found.append(Failure(trial.method, trial.seed, summary, details.strip()))
    return found


def without_private_paths(text: str) -> str:
    """A traceback whose paths begin at the package: a report may be published, and a home folder has a name in it."""

    def shortened(match: re.Match[str]) -> str:
        parts = re.split(r"[\\/]", match[1])
        first = parts.index("site-packages") + 1 if "site-packages" in parts else len(parts) - 1
        if "mooring" in parts[:-1]:
            first = len(parts) - 1 - parts[::-1].index("mooring")
        return f'File "{"/".join(parts[first:])}"'

    return re.sub(r'File "([^"\n]+)"', shortened, text).replace(str(Path.home()), "~")


def _fairness(results: Results) -> list[str]:
    task = results.config.task
    starts = min(task.starts, len(results.config.seeds))
    checked = " (the checksums that the trials recorded agree)" if results.shared_starts() else ""
    jobs = results.environment.get("jobs", 1)
    gradients = {value for by_seed in results.values(metrics.GRADIENTS).values() for value in by_seed.values()}
    effort = (
        f"{gradients.pop():.0f} gradient evaluations"
        if len(gradients) == 1
        else "but not the same number of gradient evaluations: see the cost table"
    )
    side_by_side = f"; {jobs} trials ran side by side, so times carry each other's disturbance" if jobs > 1 else ""
    retention = (
        "Retention, the accuracy on the pretraining source, is a column of its own and no part of OOD: standing still "
        "would win it."
    )
    threads = results.config.compare.threads
    return [
        (
            f"A seed fixes what is held out, the order and augmentation of the training examples and which of {starts} "
            f"draws of the weights that are not pretrained is used; all methods share them, bit for bit{checked}."
            if isinstance(task, OwnTaskSpec)
            else "A seed fixes the training, validation and test examples, the order of the batches and which of "
            f"{starts} pretrained start{'s' if starts > 1 else ''} is used; all methods share them, bit for "
            f"bit{checked}."
        ),
        _budget(results, effort),
        _tuning(results),
        "Every number is that of the last step. Nothing was selected on ID test or OOD data, and nothing was stopped "
        "early.",
        f"Each trial had a process and {'one thread' if threads == 1 else f'{threads} threads'} of its own"
        f"{side_by_side}. Training time excludes evaluation.",
        *([retention] if results.has(metrics.RETENTION) else []),
    ]


def _budget(results: Results, effort: str) -> str:
    config, train = results.config, results.config.train
    schedule = f"{train.schedule} schedule after a warm-up over {train.warmup:.0%} of the steps."
    steps = {method.label: config.train_of(method).steps for method in config.compare.methods}
    fewer = {label: count for label, count in steps.items() if count != train.steps}
    if not fewer:
        return (
            f"Every method takes {train.steps} steps of {train.batch_size} examples, {effort}, with the same {schedule}"
        )
    listed = ", ".join(f"{label} {count}" for label, count in fewer.items())
    return (
        f"Every method takes as many gradient evaluations as {train.steps} steps of one gradient need, rounded down to "
        f"whole steps ({listed}), on batches of {train.batch_size} examples; each has the whole {schedule}"
    )


def _tuning(results: Results) -> str:
    if results.config.task.name != TaskSpec.model_fields["name"].default:
        return (
            "No method was tuned on this task: each ran with the options listed under “Methods”. Other learning rates "
            "can change the order."
        )
    built_in = {info.spec.label: info.spec for info in METHODS.values()}
    given = [method.label for method in results.config.compare.methods if built_in.get(method.label) != method]
    text = (
        "Built-in options were chosen once for this task with equal effort: the same number of Halton points for every "
        f"method, {TrainSpec().steps} steps, ID validation alone, other seeds than 0–9 "
        "(benchmarks/tune_defaults.py; all its rows are kept)."
    )
    untuned = [m.label for m in results.config.compare.methods if m.label not in given and not METHODS[m.label].tuned]
    if untuned:
        text += (
            f" Not so {', '.join(untuned)}: adamw's options and the papers' defaults for the perturbation, not tuned."
        )
    if given:
        text += f" {', '.join(given)} ran with the options given, which had no such search."
    return text


def _statistics(results: Results) -> str:
    found = compare_paired(results.values(results.primary), results.baseline)
    attainable = ""
    if found:
        smallest = min(comparison.p_attainable for comparison in found.values())
        attainable = f"; the smallest adjusted p-value these seeds can give is {show_p(smallest)}"
    return (
        "The seed is the unit: differences are taken within each seed, and their mean gets a 95 % interval (Student's "
        f"t below {BOOTSTRAP_FROM} seeds, BCa bootstrap from then on; not widened for the number of comparisons). "
        "A difference counts as resolved only if its interval excludes zero and the exact paired sign-flip test, "
        f"adjusted by Holm's method over the methods compared on that metric, gives p ≤ {ALPHA}{attainable}."
    )


_SHAPES = {
    "o": '<circle cx="8" cy="8" r="5"/>',
    "s": '<rect x="3.5" y="3.5" width="9" height="9"/>',
    "^": '<path d="M8 2.5 13.5 12.5h-11z"/>',
    "v": '<path d="M8 13.5 2.5 3.5h11z"/>',
    "<": '<path d="M2.5 8 12.5 2.5v11z"/>',
    ">": '<path d="M13.5 8 3.5 2.5v11z"/>',
    "D": '<path d="M8 2 14 8 8 14 2 8z"/>',
    "d": '<path d="M8 2 11.5 8 8 14 4.5 8z"/>',
    "P": '<path d="M6 3h4v3h3v4h-3v3H6v-3H3V6h3z"/>',
    "X": '<path d="M5 2.5 8 5.5l3-3L13.5 5l-3 3 3 3-2.5 2.5-3-3-3 3L2.5 11l3-3-3-3z"/>',
    "p": '<path d="M8 2.2 13.8 6.4 11.6 13.2H4.4L2.2 6.4z"/>',
    "h": '<path d="M8 2 13.2 5v6L8 14 2.8 11V5z"/>',
    "8": '<path d="M5.6 2.5h4.8l3.1 3.1v4.8l-3.1 3.1H5.6l-3.1-3.1V5.6z"/>',
}
