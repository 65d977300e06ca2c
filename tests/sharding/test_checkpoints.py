"""torch.distributed.checkpoint on disk: saved on N processes and loaded on M, and saved while training goes on."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mooring.kernels import choice
from tests.optim.table import BY_NAME
from tests.sharding.checkpoint_workers import FEW, cases, continued
from tests.sharding.processes import run, run_once

pytestmark = [
    pytest.mark.sharding,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:anchor_store=.bfloat16.:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),  # one process needs no group
]
CONTINUED = "tests.sharding.checkpoint_workers:continued"


def test_training_goes_on_exactly_on_any_number_of_processes(tmp_path: Path) -> None:
    """1 to 2, 2 to 1, 2 to 4 and 4 to 1, beside the same number. One is a process without a group and plain tensors.

    What a load has to meet is the run that was never interrupted on the number of processes that loads.
    """
    folder = str(tmp_path)
    found: dict[tuple[int, int], dict[str, Any]] = {}

    def note(on: int, results: list[dict[str, Any]]) -> None:
        for result in results:
            assert result.pop("dry") == []
            for key, value in result.items():
                checkpoint, name = key.split(": ", 1)
                found.setdefault((int(checkpoint), on), {})[name] = value
        assert all(result == results[0] for result in results)

    def alone(*what: Any, **few: bool) -> list[dict[str, Any]]:
        with choice.use("eager"):  # as the processes of a group do
            return [continued(folder, *what, **few)]

    note(1, alone("1", ["1"]))
    note(2, run(CONTINUED, ranks=2, folder=folder, save="2", load=["1", "2"]))
    note(1, alone(None, ["2"]))
    note(4, run(CONTINUED, ranks=4, folder=folder, save="4", load=["2"], few=True))
    note(1, alone(None, ["4"], few=True))

    assert set(cases(tmp_path)) >= {*BY_NAME, *FEW}
    assert set(found) == {(1, 1), (1, 2), (2, 2), (2, 1), (2, 4), (4, 1)}
    for (saved, loaded), by_name in found.items():
        assert set(by_name) == (set(FEW) if saved == loaded or 4 in (saved, loaded) else set(cases(tmp_path)))
        for name, (error, bitwise) in by_name.items():
            print(f"{saved} to {loaded}: {name}: {error:.1e}{', every bit' if bitwise else ''}")
            assert error <= 1e-12, (saved, loaded, name)
            assert bitwise or saved != loaded, (saved, loaded, name)


@pytest.mark.slow
def test_all_of_it_between_two_and_four_processes(tmp_path: Path) -> None:
    folder = str(tmp_path)
    continued(folder, None, [])  # writes what some anchors are read from
    run(CONTINUED, ranks=2, folder=folder, save="2", load=[])
    found = (
        run(CONTINUED, ranks=4, folder=folder, save="4", load=["2"])[0]
        | run(CONTINUED, ranks=2, folder=folder, save=None, load=["4"])[0]
    )
    assert found.pop("dry") == []
    assert set(found) == {f"{saved}: {name}" for saved in "24" for name in cases(tmp_path)}
    for name, (error, _) in found.items():
        print(f"{name}: {error:.1e}")
        assert error <= 1e-12, name


@cache
def on_two() -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        return run_once("tests.sharding.checkpoint_workers:on_two", ranks=2, folder=folder)


def test_a_checkpoint_that_is_written_during_a_pass_holds_the_true_weights() -> None:
    for found in on_two():
        assert len(found["meanwhile"]) == 8
        for name, result in found["meanwhile"].items():
            assert all(result.values()), (name, result)


def test_perturbing_needs_the_model_also_where_weights_are_sharded_later() -> None:
    for found in on_two():
        assert found["without a model"].startswith("NSO: model must be given where weights are sharded")


def test_anchors_are_found_where_a_host_changes_the_parameters() -> None:
    """Parameters swapped for shards in the groups, or filled after they were sharded without values.

    Of a sharded checkpoint each process reads the pieces that it holds, to the byte.
    """
    for found in on_two():
        assert len(found["swapped"]) == 10
        for name, result in found["swapped"].items():
            print(f"{name}: {result['error']:.1e}")
            assert result.pop("error") <= 1e-12, name
            assert all(result.values()), (name, result)
