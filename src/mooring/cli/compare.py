"""``mooring compare`` and ``mooring report``: run, then write and print what came out."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mooring.compare.config import ConfigError, RunConfig, build_config
from mooring.compare.driver import PreparationError, run_missing
from mooring.compare.environment import describe_environment, usable_cores
from mooring.compare.progress import LineProgress, LiveProgress, Progress
from mooring.compare.request import Request, folder_for, resolve_request
from mooring.compare.store import RunFolder

if TYPE_CHECKING:
    from mooring.compare.results import Results

OK, FAILED, INTERRUPTED = 0, 1, 130


def run_compare(request: Request, *, jobs: int | None, quiet: bool, as_json: bool) -> int:
    """Run what is missing, then report; the exit code says how it went."""
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {jobs}")
    asked = resolve_request(request).identified()
    on_cpu = asked.compare.device == "cpu"
    jobs = jobs or (max(1, usable_cores() // asked.compare.threads) if on_cpu else 1)
    errors = Console(stderr=True)
    with folder_for(request, asked) as folder:
        environment = {**describe_environment(), "jobs": jobs}
        opened = folder.open(asked, environment, overwrite=request.overwrite)
        with _progress(opened.config, jobs, errors, quiet) as progress:
            for note in opened.notes:
                progress.message(note)
            try:
                ran = run_missing(folder, opened.config, jobs, progress)
            except KeyboardInterrupt:
                ran = None
            except PreparationError as error:
                errors.print(f"mooring: the task could not be prepared: {error}", markup=False, highlight=False)
                return FAILED
        if ran is None:
            _say_how_to_continue(errors, folder, progress)
            return INTERRUPTED
        results = _finish(folder, opened.config)
    _show(results, quiet=quiet, as_json=as_json)
    return FAILED if ran.failed else OK


def run_report(path: Path, *, baseline: str | None, quiet: bool, as_json: bool) -> int:
    """Rebuild the report of a folder."""
    folder = RunFolder(path)
    config = folder.stored_config()
    if baseline is not None:
        content = config.model_dump(mode="json")
        content["compare"]["baseline"] = baseline
        config = build_config(content)
    try:
        results = _finish(folder, config)
    except OSError as error:
        raise ConfigError(f"cannot write the report in {str(path)!r}: {error.strerror or error}") from None
    _show(results, quiet=quiet, as_json=as_json)
    return FAILED if results.with_status("failed") else OK


def _progress(config: RunConfig, jobs: int, console: Console, quiet: bool) -> Progress:
    if quiet:
        return Progress(config.labels, config.seeds, jobs)
    if console.is_terminal:
        return LiveProgress(config.labels, config.seeds, jobs, console)
    return LineProgress(config.labels, config.seeds, jobs, console)


def _say_how_to_continue(console: Console, folder: RunFolder, progress: Progress) -> None:
    command = shlex.join(["mooring", "compare", "--output-dir", str(folder.path)])
    console.print(
        f"Interrupted. {progress.finished} of {len(progress.state)} trials are finished and kept. "
        f"Continue with:\n  {command}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _finish(folder: RunFolder, config: RunConfig) -> Results:
    # Only now: scipy and matplotlib take longer to import than a second start that finds nothing to do.
    from mooring.compare.report import write_report
    from mooring.compare.results import Results

    results = Results(folder, config)
    results.write_csv_files()
    write_report(results)
    return results


def _show(results: Results, *, quiet: bool, as_json: bool) -> None:
    from mooring.compare.report import REPORT

    path = results.folder.path / REPORT
    if as_json:
        from mooring.compare.summary import summary

        print(json.dumps(summary(results), indent=2, ensure_ascii=False))
        return
    if quiet:
        print(path)
        return
    from mooring.compare.terminal import print_results

    # A file or a pipe has no width of its own.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print()
    print_results(console, results)
    console.print()
    console.print(f"Report: {path}", markup=False, highlight=False, soft_wrap=True)
