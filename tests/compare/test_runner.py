"""Jobs in their own processes: how they end is told, whatever they do, and none is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mooring.compare.driver import SLOW_IMPORTS
from mooring.compare.runner import Job, Listener, Outcome, Runner

from . import runner_jobs as jobs


def make_runner(limit: int) -> Runner:
    # A process has one fork server, and the first runner says what it loads: other tests' trials need torch from it.
    return Runner(limit, SLOW_IMPORTS)


class Recorder(Listener):
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.order: list[str] = []

    def starting(self, job: Job) -> None:
        self.order.append(f"starting {job.name}")

    def started(self, job: Job) -> None:
        self.order.append(f"started {job.name}")

    def event(self, job: Job, event: dict[str, Any]) -> None:
        self.events.append((job.name, event))

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.order.append(f"ended {job.name}")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_events_arrive_in_order_and_a_good_job_leaves_no_file(tmp_path: Path) -> None:
    recorder = Recorder()
    output = tmp_path / "deep" / "output.txt"
    outcomes = make_runner(1).run([Job("a", jobs.report_twice, (4,), output)], recorder)
    assert recorder.events == [("a", {"event": "eval", "value": 4}), ("a", {"event": "eval", "value": 5})]
    assert recorder.order == ["starting a", "started a", "ended a"]
    assert outcomes["a"].error is None
    assert not output.exists()


def test_failures_and_deaths_are_outcomes_and_the_rest_goes_on(tmp_path: Path) -> None:
    made = [
        Job("fails", jobs.fail, (), tmp_path / "fails.txt"),
        Job("dies", jobs.die, (), tmp_path / "dies.txt"),
        Job("leaves", jobs.leave, (), tmp_path / "leaves.txt"),
        Job("refuses", jobs.refuse, (), tmp_path / "refuses.txt"),
        Job("good", jobs.report_twice, (1,), tmp_path / "good.txt"),
    ]
    outcomes = make_runner(2).run(made, Listener())
    assert outcomes["fails"].error == "ValueError: this broke"
    assert "Traceback" in outcomes["fails"].details and "printed before the failure" in outcomes["fails"].details
    assert outcomes["dies"].error == "the trial's process was ended by SIGKILL (out of memory?) at step 7"
    assert outcomes["dies"].details == "last words\n"
    assert outcomes["leaves"].error == "the trial's process ended without a result, exit code 3"
    assert outcomes["refuses"].error == "option 'x' is wrong" and outcomes["refuses"].bad_request
    assert outcomes["good"].error is None
    assert not any(outcome.bad_request for name, outcome in outcomes.items() if name != "refuses")


def test_no_more_than_the_limit_run_at_once(tmp_path: Path) -> None:
    made = [Job(name, jobs.note_times, (tmp_path, name), tmp_path / f"{name}.txt") for name in "abcd"]
    make_runner(2).run(made, Listener())
    spans = [tuple(map(float, (tmp_path / name).read_text().split())) for name in "abcd"]
    most = max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)
    assert most == 2


def test_an_interruption_ends_the_children_before_it_leaves(tmp_path: Path) -> None:
    class Interrupts(Listener):
        def event(self, job: Job, event: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    path = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt):
        make_runner(1).run([Job("waits", jobs.write_pid_and_wait, (path,), tmp_path / "out.txt")], Interrupts())
    assert not alive(int(path.read_text()))


def test_children_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = (
        "import sys; from pathlib import Path\n"
        "from mooring.compare.runner import Job, Listener, Runner\n"
        "from tests.compare import runner_jobs as jobs\n"
        "path = Path(sys.argv[1])\n"
        "if __name__ == '__main__':\n"
        "    Runner(1).run([Job('waits', jobs.write_pid_and_wait, (path,), path.with_name('out'))], Listener())\n"
    )
    root = Path(__file__).parents[2]
    script = tmp_path / "start.py"
    script.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(path)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    try:
        wait_for(lambda: path.is_file() and path.read_text())
        child = int(path.read_text())
        assert alive(child)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not alive(child))


def test_steps_are_thinned_out_and_evaluations_are_not(tmp_path: Path) -> None:
    recorder = Recorder()
    make_runner(1).run([Job("a", jobs.many_steps, (), tmp_path / "out.txt")], recorder)
    assert len(recorder.events) < 500
    assert recorder.events[-1] == ("a", {"event": "eval", "step": 5000})
