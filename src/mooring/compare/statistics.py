"""Statistics over seeds: intervals, paired differences, exact tests, and when a difference may be claimed.

Seeds are the sampling unit. Methods run on the same seeds (same start, same data, same order), so that they are
compared by the difference within each seed; what the seeds share cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
ALPHA = 0.05
BOOTSTRAP_FROM = 20  # seeds; below it BCa intervals are too short and t-intervals are used
EXACT_UP_TO = 20  # seeds; 2**20 sign patterns are enumerated in milliseconds
RESAMPLES = 9999

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (ddof 1) and 95 % interval of the mean; what cannot be had from n values is None."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    interval: str  # "t", "BCa" or "none"

    @property
    def error(self) -> float:
        """The standard error of the mean; not-a-number where there is no deviation."""
        return math.nan if self.sd is None else self.sd / math.sqrt(self.n)

    @property
    def ends(self) -> tuple[float, float]:
        """The interval as two numbers, not-a-number where there is none."""
        return (math.nan, math.nan) if self.low is None or self.high is None else (self.low, self.high)

    @property
    def half(self) -> float:
        """Half the width of the interval, which bars in a picture are drawn with."""
        low, high = self.ends
        return (high - low) / 2


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline on one metric, paired by seed.

    Attributes:
        seeds: the seeds finished by both.
        difference: method minus baseline.
        p: two-sided p-value of the sign-flip permutation test.
        p_adjusted: Holm's adjustment over the methods compared on this metric.
        p_attainable: the smallest adjusted p-value that these numbers of seeds and methods could have given.
        resolved: the interval excludes zero and the adjusted p-value is at most 0.05.
    """

    seeds: tuple[int, ...]
    difference: Summary
    p: float
    p_adjusted: float
    p_attainable: float
    resolved: bool


def summarise(values: Sequence[float]) -> Summary:
    """Mean and 95 % interval: Student's t below 20 values, BCa bootstrap from 20 on.

    One value has no interval. A value that is not finite (a run that diverged) makes the mean not-a-number rather
    than being dropped: leaving it out would flatter the method.
    """
    sample = np.asarray(values, dtype=np.float64)
    n = int(sample.size)
    if n == 0 or not np.isfinite(sample).all():
        return Summary(n, math.nan, None, None, None, "none")
    mean = float(sample.mean())
    if n == 1:
        return Summary(n, mean, None, None, None, "none")
    sd = float(sample.std(ddof=1))
    if sd == 0.0:
        return Summary(n, mean, sd, mean, mean, "t")
    if n < BOOTSTRAP_FROM:
        return Summary(n, mean, sd, *_t_interval(mean, sd, n), "t")
    low, high = _bca_interval(sample)
    if not (math.isfinite(low) and math.isfinite(high)):  # BCa is undefined for a few degenerate samples
        return Summary(n, mean, sd, *_t_interval(mean, sd, n), "t")
    return Summary(n, mean, sd, low, high, "BCa")


def _t_interval(mean: float, sd: float, n: int) -> tuple[float, float]:
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * sd / math.sqrt(n)
    return mean - half, mean + half


def _bca_interval(sample: Floats) -> tuple[float, float]:
    from scipy.stats import bootstrap

    # A fixed seed: rebuilding a report must print the same interval.
    found = bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired permutation test of the mean: every sign pattern of the differences.

    Exact up to 20 differences; above that 99 999 random patterns, counted so that the p-value is valid.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        return math.nan
    observed = abs(float(values.sum()))
    # Sums of the same numbers in another order differ in the last bits; they are the same sum.
    threshold = observed - 1e-12 * float(np.abs(values).sum())
    if values.size <= EXACT_UP_TO:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= threshold))
    rng = np.random.default_rng(0)
    hits, patterns = 0, 99_999
    for start in range(0, patterns, 10_000):
        signs = rng.integers(0, 2, size=(min(10_000, patterns - start), values.size)) * 2.0 - 1.0
        hits += int(np.count_nonzero(np.abs(signs @ values) >= threshold))
    return (hits + 1) / (patterns + 1)


def smallest_p(n: int) -> float:
    """The smallest p-value :func:`sign_flip_p` can return for n differences."""
    return 2.0 ** (1 - n) if n <= EXACT_UP_TO else 1 / 100_000


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [math.nan] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def compare_paired(values: Mapping[str, Mapping[int, float]], baseline: str) -> dict[str, Comparison]:
    """Every method against the baseline on one metric.

    Args:
        values: method → seed → value, finished trials only.
        baseline: the method the others are compared to.

    Returns:
        method → comparison, for the methods that share at least one seed with the baseline.
    """
    reference = values.get(baseline, {})
    pairs: dict[str, tuple[tuple[int, ...], list[float]]] = {}
    for method, by_seed in values.items():
        seeds = tuple(sorted(set(by_seed) & set(reference)))
        if method != baseline and seeds:
            pairs[method] = (seeds, [by_seed[seed] - reference[seed] for seed in seeds])
    p_values = [sign_flip_p(differences) for _, differences in pairs.values()]
    # A comparison that cannot be made (a diverged run) stays in the family as "no evidence".
    adjusted = holm([1.0 if math.isnan(p) else p for p in p_values])
    attainable = holm([smallest_p(len(seeds)) for seeds, _ in pairs.values()])
    found = {}
    for (method, (seeds, differences)), p, p_adjusted, p_attainable in zip(
        pairs.items(), p_values, adjusted, attainable, strict=True
    ):
        difference = summarise(differences)
        found[method] = Comparison(
            seeds, difference, p, p_adjusted, p_attainable, _excludes_zero(difference) and p_adjusted <= ALPHA
        )
    return found


def _excludes_zero(difference: Summary) -> bool:
    return difference.low is not None and difference.high is not None and not difference.low <= 0.0 <= difference.high


def separated_best(values: Mapping[str, Mapping[int, float]], *, higher_is_better: bool = True) -> str | None:
    """The method with the best mean, if its difference to *every* other method is resolved; otherwise None."""
    means = {method: summarise(list(by_seed.values())).mean for method, by_seed in values.items()}
    if len(means) < 2 or any(math.isnan(mean) for mean in means.values()):
        return None
    sign = 1.0 if higher_is_better else -1.0
    best = max(means, key=lambda method: sign * means[method])
    others = compare_paired(values, best)
    if len(others) < len(means) - 1:
        return None
    beaten = all(other.resolved and sign * other.difference.mean < 0 for other in others.values())
    return best if beaten else None
