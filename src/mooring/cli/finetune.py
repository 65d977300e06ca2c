"""``mooring finetune``: one training, in one process or in those that torchrun started."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mooring.cli.training import Bar, Lines, Quiet, scores
from mooring.compare.config import ConfigError
from mooring.compare.environment import describe_environment
from mooring.compare.single import SingleFolder, SingleRequest, resolve_single
from mooring.compare.store import new_folder
from mooring.finetune.errors import SpecError, TrialError

if TYPE_CHECKING:
    from mooring.finetune.checkpoints import Checkpoints
    from mooring.finetune.spec import TrialSpec
    from mooring.finetune.team import Team

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_FIRST_SAYS = 10.0  # seconds in which the first process has ended, if it found the same fault


@dataclass(frozen=True)
class Command:
    """One start of ``mooring finetune``.

    Attributes:
        request: What to train.
        checkpoint_every: Steps between checkpoints; 0: none but when stopped; None: a tenth of the steps.
        keep: How many checkpoints are kept.
        resume: A checkpoint has to be there.
        timeout: Seconds after which a process that does not answer is taken for lost.
        quiet: Print only the folder.
        as_json: Print the metrics as JSON.
    """

    request: SingleRequest
    checkpoint_every: int | None = None
    keep: int = 2
    resume: bool = False
    timeout: float = 600.0
    quiet: bool = False
    as_json: bool = False

    def check(self) -> None:
        """Raise ConfigError for options that are wrong by themselves."""
        if self.checkpoint_every is not None and self.checkpoint_every < 0:
            raise ConfigError(f"--checkpoint-every takes a number of steps, 0 for none, got {self.checkpoint_every}")
        if self.keep < 1:
            raise ConfigError(f"--keep must be at least 1, got {self.keep}")
        if not self.timeout > 0:
            raise ConfigError(f"--timeout must be a positive number of seconds, got {self.timeout:g}")
        if self.resume and self.request.output_dir is None:
            raise ConfigError("--resume needs --output-dir, the folder of the training to continue")
        if self.resume and self.request.overwrite:
            raise ConfigError("--overwrite deletes what --resume would continue; give one of them")


def run_finetune(command: Command) -> int:
    """Train, or continue, and print what came out; the exit code says how it went.

    Where there are several processes this does not return: each of them ends with its exit code.
    """
    from mooring.finetune.team import Team, processes_started

    if processes_started()[1] == 1:
        command.check()
        return _Training(command, resolve_single(command.request), Team()).run()
    _run_one_of_several(command)
    raise AssertionError("a process of several ends by itself")


def _run_one_of_several(command: Command) -> None:
    from mooring.finetune.interrupts import leave_at_once
    from mooring.finetune.team import join, processes_started

    code = FAILED
    try:
        # What is wrong with the words is wrong in every process: it is found before any waits for another.
        command.check()
        spec = resolve_single(command.request)
        team = join(spec.device, command.timeout)
        code = _Training(command, spec, team).run()
        if code == OK:
            team.leave()
    except (ConfigError, SpecError) as error:
        code = BAD_INPUT
        _refuse(str(error), processes_started()[0])
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception:
        traceback.print_exc()
    # gloo's threads may outlive the interpreter, and would abort a process that has done its work.
    leave_at_once(code)


def _refuse(message: str, rank: int) -> None:
    """Say what is wrong, once where it is wrong in every process.

    The first one says it. When a process ends torchrun ends the others, so these wait to be ended; where that does not
    come, the fault is this process's own.
    """
    try:
        if rank > 0:
            time.sleep(_FIRST_SAYS)
        print(f"mooring{f', process {rank}' if rank else ''}: {message}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass


class _Training:
    """One training in one process, alone or one of several."""

    def __init__(self, command: Command, spec: TrialSpec, team: Team) -> None:
        self.command, self.spec, self.team = command, spec, team
        path = command.request.output_dir or new_folder(f"{spec.task.name}-{spec.method.label}")
        self.folder = SingleFolder(team.from_first(path))
        self.console = Console(stderr=True)
        self.view = self._view()

    def run(self) -> int:
        """All of it; the exit code."""
        from mooring.finetune.checkpoints import Checkpoints
        from mooring.finetune.optimizers import check_method

        warnings = check_method(self.spec.method)
        with ExitStack() as stack:
            finished, refused = False, ""
            if self.team.first:
                try:
                    stack.enter_context(self.folder.writing())
                    finished = self.folder.open(
                        self.spec,
                        {**describe_environment(), "processes": self.team.size},
                        overwrite=self.command.request.overwrite,
                        resume=self.command.resume,
                    )
                except ConfigError as error:
                    refused = str(error)
            finished, refused = self.team.from_first((finished, refused))
            if refused:
                raise ConfigError(refused)
            if finished:
                if self.team.first and not self.command.quiet:
                    self._print(f"The training in {str(self.folder.path)!r} has finished already.")
                self._show()
                return OK
            every = self.command.checkpoint_every
            every = max(1, self.spec.train.steps // 10) if every is None else every
            checkpoints = Checkpoints(self.folder.path, every, self.command.keep)
            with self.view:
                on = f" on {self.team.size} processes" if self.team.size > 1 else ""
                steps = self.spec.train.steps
                self.view.say(
                    f"{self.spec.method.label} seed {self.spec.seed}: {self.spec.task.name}, {steps} steps{on}."
                )
                for warning in warnings:
                    self.view.say(warning)
                code = self._train(checkpoints)
            if code == OK:
                self._show()
            return code

    def _train(self, checkpoints: Checkpoints) -> int:
        from mooring.finetune.interrupts import interruptible, leave_at_once
        from mooring.finetune.team import lost_contact
        from mooring.finetune.trial import run_trial

        def give_up() -> None:
            self._say_lost("asked to stop, the processes did not come to the end of a step together")
            leave_at_once(FAILED)

        with interruptible(self.team, give_up):
            try:
                run_trial(self.spec, self.folder.path, self.view, self.team, checkpoints)
            except KeyboardInterrupt:
                if self.team.first:
                    self._print(f"Interrupted. {self._how_to_continue()}")
                return INTERRUPTED
            except SpecError:
                raise
            except Exception as error:
                # Still listening: when a process is lost, torchrun signals the others while they say so.
                why = lost_contact(error) if self.team.size > 1 else ""
                if why:
                    self._say_lost(why)
                elif not self.team.first_says(str(error)):
                    who = "mooring" if self.team.size == 1 else f"mooring, process {self.team.rank}"
                    ours = isinstance(error, TrialError)  # whose messages are sentences
                    self._print(f"{who}: {error}" if ours else "".join(traceback.format_exception(error)).rstrip())
                return FAILED
        return OK

    def _say_lost(self, why: str) -> None:
        missing = self.team.missing()
        alive = [rank for rank in range(self.team.size) if rank not in missing]
        if alive[0] != self.team.rank:
            return  # another says it
        who = ", ".join(map(str, missing))
        lost = {0: "the connection to another process was lost", 1: f"process {who} of {self.team.size} was lost"}.get(
            len(missing), f"processes {who} of {self.team.size} were lost"
        )
        self._print(f"mooring: {lost}{f' ({why})' if why else ''}. {self._how_to_continue()}")

    def _how_to_continue(self) -> str:
        from mooring.finetune.checkpoints import find_checkpoints

        found = find_checkpoints(self.folder.path)
        where = f"The newest checkpoint is {found[-1].path}." if found else "There is no checkpoint yet."
        command = ["mooring", "finetune", "--output-dir", str(self.folder.path)]
        if self.command.checkpoint_every is not None:
            command += ["--checkpoint-every", str(self.command.checkpoint_every)]
        if self.command.keep != Command.keep:
            command += ["--keep", str(self.command.keep)]
        how = "Continue with" if found else "Begin again with"
        if self.team.size > 1:
            command = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", *command]
            if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
                how += ", and torchrun's options for several machines"
        return f"{where} {how}:\n  {shlex.join(command)}"

    def _view(self) -> Quiet:
        if self.command.quiet or not self.team.first:
            return Quiet()
        return Bar(self.console) if self.console.is_terminal else Lines(self.console)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        final = self.folder.final()
        if not self.team.first or final is None:
            return
        path, spec = self.folder.path, self.spec
        if self.command.as_json:
            told: dict[str, Any] = {
                "folder": str(path),
                "method": spec.method.label,
                "task": spec.task.name,
                "seed": spec.seed,
                "metrics": final,
            }
            print(json.dumps(told, indent=2, ensure_ascii=False))
        elif self.command.quiet:
            print(path)
        else:
            drift = f"drift {final['drift/relative']:.4f}"
            print(f"{spec.method.label} seed {spec.seed} on {spec.task.name}: {scores(final)}  {drift}")
            print(f"Weights: {Path(path, 'model.safetensors')}")
            print(f"Measure them with: {shlex.join(['mooring', 'inspect', str(path)])}")
