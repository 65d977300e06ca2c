"""The commands of ``mooring``, their help, and the exit codes: 0 ok, 1 a trial failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

try:
    from cyclopts import App, CycloptsError, Parameter
except ModuleNotFoundError as missing:  # the optimizers alone were installed
    sys.exit(f"mooring's command line needs its extra: pip install 'mooring[cli]' ({missing})")

from mooring import __version__

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="mooring",
    version=__version__,
    help="Optimizers that fine-tune without drifting, compared on real data.",
    help_epilogue="Start with: mooring compare --quick",
)
Flag = Parameter(negative=())


@app.command
def compare(
    config: Path | None = None,
    /,
    *,
    methods: str | None = None,
    seeds: str | None = None,
    steps: int | None = None,
    task: str | None = None,
    data: str | None = None,
    model: str | None = None,
    baseline: str | None = None,
    budget: Annotated[Literal["steps", "gradients"] | None, Parameter(show_choices=False)] = None,
    output_dir: Path | None = None,
    jobs: int | None = None,
    device: str | None = None,
    quick: Annotated[bool, Flag] = False,
    overwrite: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Fine-tune one pretrained model with several methods over several seeds, and report which to use.

    Without any argument: five optimizers, ten seeds, real handwritten digits; minutes on two cores.

    Args:
        config: A YAML file with the sections task, train and compare; options given here win over it.
        methods: Names separated by commas; also torch.optim:NAdam, any module:Class, options as in
            adamp[lr=0.001,label=slow], and YAML files with recipes. [default: adamw,sgd,adamp,adams,adamspd]
        seeds: How many (10), which (0,3,7), or from-to (10-19). [default: 10]
        steps: Optimizer steps per trial. [default: 300]
        task: What to fine-tune on; see mooring tasks. [default: vision-fonts2digits]
        data: The folder of your own data, for a recipe or another file whose task reads one.
        model: A folder with config.json and model.safetensors, or a hub id: the pretrained model to start from.
        baseline: The method that the others are compared to. [default: adamw]
        budget: What every method gets alike: steps, or gradients (gradient evaluations, of which nso and sam take two
            per step: they then get half the steps, with the whole schedule over these). [default: steps]
        output_dir: Where to write; a folder from an earlier start is continued: finished trials are not run again,
            methods and seeds may be added. [default: runs/TIME-TASK]
        jobs: Trials that run at the same time, each on one thread. [default: the number of cores; 1 on a GPU]
        device: Where trials run: cpu, cuda or cuda:1. [default: cpu]
        quick: Three seeds, one start, 100 steps: under a minute, to see it work; too few seeds to resolve anything.
        overwrite: Delete what an earlier comparison wrote in the folder, and start anew.
        quiet: Print only the path of the report.
        json: Print the results as JSON on standard output; everything else goes to standard error.
    """
    from mooring.cli.compare import run_compare
    from mooring.compare.request import Request

    request = Request(
        config, task, methods, seeds, steps, baseline, quick, output_dir, overwrite, budget, data, model, device
    )
    return run_compare(request, jobs=jobs, quiet=quiet, as_json=json)


@app.command
def finetune(
    config: Path | None = None,
    /,
    *,
    method: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    task: str | None = None,
    data: str | None = None,
    model: str | None = None,
    output_dir: Path | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    resume: Annotated[bool, Flag] = False,
    device: str | None = None,
    threads: int | None = None,
    timeout: float = 600.0,
    overwrite: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Fine-tune with one method and one seed, with checkpoints; under torchrun on many processes, by FSDP2.

    torchrun --nproc-per-node 8 -m mooring finetune run.yaml --method adamspd --output-dir runs/mine

    With --output-dir the same command again continues from the newest checkpoint, on as many processes as it is given.

    Args:
        config: A YAML file as mooring compare takes; options given here win over it.
        method: One method: a label of the file, or whatever mooring compare takes in --methods. [default: the file's,
            where it has one]
        seed: Of split, start, order and noise. [default: 0]
        steps: Optimizer steps. [default: 300]
        task: What to fine-tune on; see mooring tasks. [default: vision-fonts2digits]
        data: The folder of your own data.
        model: A folder with config.json and model.safetensors, or a hub id: the pretrained model to start from.
        output_dir: Where to write; a folder from an earlier start is continued, and needs no other option. [default:
            runs/TIME-TASK-METHOD]
        checkpoint_every: Steps between checkpoints; 0: only when stopped. [default: a tenth of the steps]
        keep: How many checkpoints are kept, the newest.
        resume: Refuse to start from the beginning, where there is no checkpoint.
        device: cpu, cuda or cuda:1; under torchrun cpu or cuda, of which each process takes its own. [default: cpu]
        threads: torch's threads in each process. [default: 1]
        timeout: Seconds after which a process that does not answer is taken for lost.
        overwrite: Delete what an earlier start wrote in the folder, and begin anew.
        quiet: Print only the folder.
        json: Print the metrics as JSON on standard output; everything else goes to standard error.
    """
    from mooring.cli.finetune import Command, run_finetune
    from mooring.compare.single import SingleRequest

    request = SingleRequest(config, method, seed, steps, task, data, model, device, threads, output_dir, overwrite)
    return run_finetune(Command(request, checkpoint_every, keep, resume, timeout, quiet, json))


@app.command
def report(
    run_dir: Path,
    /,
    *,
    baseline: str | None = None,
    quiet: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Rebuild the tables, plots and report of a comparison from its folder, without training.

    It also shows a comparison that is unfinished or still running.

    Args:
        run_dir: The folder that mooring compare wrote.
        baseline: Compare to another method than the comparison did.
        quiet: Print only the path of the report.
        json: Print the results as JSON on standard output.
    """
    from mooring.cli.compare import run_report

    return run_report(run_dir, baseline=baseline, quiet=quiet, as_json=json)


@app.command
def reproduce(
    *names: str,
    quick: Annotated[bool, Flag] = False,
    output_dir: Path = Path("runs/reproduce"),
    jobs: int | None = None,
    overwrite: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Repeat the papers' experiments and ours, and show published figures beside ours; without a name, list them.

    The exit code is 1 where a figure was missed.

    Args:
        names: Experiments, or all.
        quick: Their short form: fewer seeds, dimensions or steps; the same claims.
        output_dir: Where to write: a folder for each experiment with its picture, data and figures, and a page.
        jobs: Processes at the same time. [default: the number of cores]
        overwrite: Run again what an earlier start has finished.
        quiet: Print only the path of the page.
        json: Print the results as JSON on standard output.
    """
    from mooring.cli.reproduce import run_reproduce

    return run_reproduce(
        names, quick=quick, output=output_dir, jobs=jobs, overwrite=overwrite, quiet=quiet, as_json=json
    )


@app.command
def inspect(
    checkpoint: Path,
    /,
    *,
    anchor: Path | None = None,
    data: str | None = None,
    test_data: str | None = None,
    task: str | None = None,
    model: str | None = None,
    measures: str | None = None,
    probes: int = 32,
    top: int = 5,
    density: int = 40,
    sigma: str | None = None,
    batch_size: int = 256,
    max_examples: int = 1000,
    device: str = "cpu",
    seed: int = 0,
    output_dir: Path | None = None,
    quiet: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Measure where a training ended: drift, curvature, stability under noise, calibration, generalisation gap.

    The folder of a trial of mooring compare needs nothing else: mooring inspect runs/RUN/trials/adamspd/seed_0

    Args:
        checkpoint: A trial's folder, a safetensors file, a file of torch.save that holds tensors alone, or a Hugging
            Face folder (extra models).
        anchor: What drift is measured from, of the same kinds. [default: the start of a trial]
        data: What the loss is taken over: a split of the task (train, id, ood.noise.2), a .safetensors or .npz file
            with inputs and labels, or package.module:function, which returns batches. [default: train, with a task]
        test_data: What calibration and the gap are taken on, likewise. [default: id, with a task]
        task: The embedded task whose model and splits these are; see mooring tasks. [default: a trial's own]
        model: package.module:factory, which returns the module that the tensors belong to.
        measures: Names separated by commas, out of drift, trace, top, blocks, block-top, density, noise, slices,
            calibration, gap, bound. [default: all but block-top that can be had]
        probes: Random vectors for the traces; half as many pairs of noise.
        top: Eigenvalues.
        density: Lanczos steps for the spectral density; 0 leaves it out.
        sigma: Noise on the weights, numbers separated by commas. [default: 0.001,0.002,0.005,0.01,0.02,0.05]
        batch_size: Examples at a time.
        max_examples: Of each data set, chosen at random where there are more.
        device: Where it runs.
        seed: Of probes, noise and directions; with --task, of its splits and start too.
        output_dir: Where to write inspect.json, layers.csv and inspect.png. [default: runs/TIME-inspect-NAME]
        quiet: Print only the folder.
        json: Print everything measured as JSON on standard output.
    """
    from mooring.cli.inspect import run_inspect
    from mooring.inspect.request import Request, parse_measures, parse_sigmas

    request = Request(
        checkpoint, anchor, data, test_data, task, model, parse_measures(measures), probes, top, density,
        parse_sigmas(sigma), batch_size, max_examples, device, seed, output_dir,
    )  # fmt: skip
    return run_inspect(request, quiet=quiet, as_json=json)


@app.command
def bench(
    *,
    methods: str | None = None,
    shapes: str | None = None,
    backend: str | None = None,
    pairs: int | None = None,
    threads: int | None = None,
    memory: float | None = None,
    device: str = "cpu",
    growth: Annotated[bool, Flag] = False,
    quick: Annotated[bool, Flag] = False,
    seed: int = 0,
    output_dir: Path | None = None,
    page: Path | None = None,
    quiet: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Verify, then time a step of every method beside torch's fused AdamW, and say what its memory traffic allows.

    Other implementations (adamp, pytorch_optimizer) take part where they are installed. The exit code is 1 where a
    step of ours was not the right one; a missed target is reported.

    Args:
        methods: Names separated by commas: of a row (adamp-tensor), a family (adamp), or a package (torch, mooring).
            [default: all]
        shapes: Out of resnet50, vit-b16, decoder-1b, small-3000, convnet, and COUNTxROWSxCOLUMNS such as 32x2048x2048.
            [default: the first four]
        backend: Which kernels serve ours, separated by commas, or all. [default: the ones that serve when nobody asks]
        pairs: Interleaved samples per row. [default: 31]
        threads: Of torch. [default: its own choice]
        memory: Gibibytes that may be taken; the decoder gets as many layers as fit. [default: 7, or 0.8 of what is
            free]
        device: Where it runs.
        growth: Also curves over size, rows, tensors and threads.
        quick: A small net and few pairs: under half a minute, to see it work; nothing to judge by.
        seed: Of the order of the pairs.
        output_dir: Where to write bench.json, the tables and the pictures. [default: runs/TIME-bench]
        page: A Markdown page whose part between the marks is replaced by the results; pictures go to images/ beside it.
        quiet: Print only the folder.
        json: Print everything measured as JSON on standard output.
    """
    from mooring.bench.request import Request
    from mooring.cli.bench import run_bench

    request = Request(methods, shapes, backend, pairs, threads, memory, device, growth, quick, seed, output_dir, page)
    return run_bench(request, quiet=quiet, as_json=json)


@app.command
def methods(name: str | None = None, /, *, json: Annotated[bool, Flag] = False) -> int:
    """List the built-in methods, or show one with its defaults, cost and paper.

    Args:
        name: One method.
        json: Print JSON.
    """
    from mooring.cli.listing import list_methods

    return list_methods(name, as_json=json)


@app.command
def tasks(*, json: Annotated[bool, Flag] = False) -> int:
    """List the tasks: those that are embedded, and those on your own data.

    Args:
        json: Print JSON.
    """
    from mooring.cli.listing import list_tasks

    return list_tasks(as_json=json)


@app.command
def env(*, json: Annotated[bool, Flag] = False) -> int:
    """Print versions, processor and threads, for a bug report; no host or user name.

    Args:
        json: Print JSON.
    """
    from mooring.cli.listing import show_environment

    return show_environment(as_json=json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    # A terminated start ends its children and says how to go on, as an interrupted one does.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        code: Any = app(
            sys.argv[1:] if arguments is None else list(arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from mooring.compare.config import ConfigError
        from mooring.finetune.errors import SpecError

        if isinstance(error, (ConfigError, SpecError)):
            return _refuse(str(error))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return int(code or OK)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _refuse(message: str) -> int:
    print(f"mooring: {message}", file=sys.stderr)
    return BAD_INPUT
