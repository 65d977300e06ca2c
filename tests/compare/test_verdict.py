"""Sentences claim what the statistics resolve, and nothing else."""

from __future__ import annotations

import math
from typing import Any

from mooring.compare.results import Results
from mooring.compare.verdict import Verdict, judge

from .conftest import KINDS, MakeRun


def verdict(make_run: MakeRun, **options: Any) -> Verdict:
    return judge(Results(make_run(**options)))


def ood(values: list[float]) -> dict[tuple[str, int], dict[str, float]]:
    return {
        ("adamp", seed): {"ood/accuracy": value, **{f"ood.{kind}/accuracy": value for kind in KINDS}}
        for seed, value in enumerate(values)
    }


def test_a_clear_difference_is_stated_with_its_interval(make_run: MakeRun) -> None:
    found = verdict(make_run)
    assert found.sentence.startswith("OOD accuracy: adamspd is ")
    assert "points above adamw [+" in found.sentence
    assert "adamp cannot be told from it" in found.sentence
    assert found.sentence.endswith("(n = 10 paired seeds).")
    topics = {point.topic: point.text for point in found.points}
    assert topics["Retention"].startswith("adamspd is ")
    assert "adamspd separates from every other method" in topics["Retention"]
    assert "Drift" in topics and "separates" not in topics["Drift"]  # less drift is no merit
    assert topics["By shift"].startswith("adamspd is above adamw on ")
    assert found.warnings == ()


def test_three_seeds_resolve_nothing_and_the_sentence_says_how_many_would(make_run: MakeRun) -> None:
    found = verdict(make_run, seeds=3)
    assert found.sentence == (
        "No difference to adamw can be resolved with n = 3 paired seeds: the smallest adjusted p-value that they can "
        "give is 0.75, and it takes 7 seeds to get below 0.05."
    )
    assert 3 * 2 / 2**7 <= 0.05 < 3 * 2 / 2**6
    assert found.points == ()


def test_no_winner_without_a_resolved_difference(make_run: MakeRun) -> None:
    noise = [0.85 + 0.01 * math.sin(5 * seed) for seed in range(10)]
    changes = ood(noise) | {("adamw", s): {"ood/accuracy": noise[(s + 3) % 10]} for s in range(10)}
    found = verdict(make_run, methods="adamw,adamp", changes=changes)
    assert found.sentence == "OOD accuracy: no difference to adamw is resolved (n = 10 paired seeds)."


def test_a_shift_can_point_the_other_way(make_run: MakeRun) -> None:
    changes: dict[tuple[str, int], dict[str, float]] = {}
    for seed in range(10):
        changes["adamw", seed] = {f"ood.{kind}/accuracy": 0.8 for kind in KINDS}
        changes["adamp", seed] = {
            "ood.later_rows/accuracy": 0.85 + 0.0002 * seed,
            "ood.noise/accuracy": 0.7 + 0.0002 * seed,
            "ood.contrast/accuracy": 0.8,
        }
    found = verdict(make_run, methods="adamw,adamp", changes=changes)
    (text,) = [point.text for point in found.points if point.topic == "By shift"]
    assert text == "adamp is above adamw on later rows (+5.1) and below adamw on noise (−9.9)."


def test_failures_are_said_and_so_is_what_they_do_to_the_numbers(make_run: MakeRun) -> None:
    found = verdict(make_run, failed=[("adamp", 2), ("adamp", 5)], missing=[("sgd", 1)])
    assert found.warnings == (
        "adamp failed on seeds 2 and 5 (2 of 10 trials); its numbers are over the seeds that finished, which may "
        "flatter it.",
        "sgd: 1 of 10 trials have not been run yet.",
    )
    assert "n = 8 to 10 paired seeds" in found.sentence


def test_without_anything_to_compare(make_run: MakeRun) -> None:
    seeds = [("adamw", seed) for seed in range(3)]
    assert "the baseline adamw has no finished trial" in verdict(make_run, seeds=3, failed=seeds).sentence
    assert "adamp is the only method" in verdict(make_run, name="b", methods="adamp").sentence
    apart = [("adamw", 0), ("adamp", 1)]
    found = verdict(make_run, name="c", methods="adamw,adamp", seeds=2, missing=apart)
    assert "no method shares a finished seed with adamw" in found.sentence


def test_a_resolved_difference_too_small_to_print_is_not_printed_as_nothing(make_run: MakeRun) -> None:
    changes = {("adamw", s): {"drift/l2": 2.0 + s} for s in range(10)}
    changes |= {("adamp", s): {"drift/l2": 2.001 + s + 1e-5 * s} for s in range(10)}
    found = verdict(make_run, methods="adamw,adamp", changes=changes)
    (text,) = [point.text for point in found.points if point.topic == "Drift"]
    assert text == "adamp differs from adamw by less than is printed."
