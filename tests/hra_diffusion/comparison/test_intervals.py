"""Confidence intervals and paired tests over subjects and seeds."""

import numpy as np
import pytest

from hra_diffusion.comparison.intervals import bootstrap_interval, clear_winner, differences, sign_flip_test


def measured(mean: float, subjects: int = 8, seeds: int = 2, spread: float = 0.1, seed: int = 0):
    """Values of subjects that differ by ``spread``, with seeds that differ by a tenth of it."""
    rng = np.random.default_rng(seed)
    return {
        f"subject {n}": list(own + rng.normal(0, spread / 10, seeds))
        for n, own in enumerate(rng.normal(mean, spread, subjects))
    }


def test_the_interval_contains_the_mean_and_is_as_wide_as_the_spread_between_subjects():
    values = measured(0.5)
    interval = bootstrap_interval(values)
    means = [np.mean(own) for own in values.values()]
    assert interval.mean == pytest.approx(np.mean(means)) and interval.low < interval.mean < interval.high
    error = np.std(means) / len(means) ** 0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_most_intervals_contain_the_true_mean():
    """95 % for many subjects; the percentile bootstrap of eight gives a little less."""
    found = [bootstrap_interval(measured(0.5, seed=seed), rounds=400) for seed in range(200)]
    assert np.mean([interval.low <= 0.5 <= interval.high for interval in found]) > 0.87


def test_many_seeds_of_one_subject_do_not_narrow_the_interval_between_subjects():
    few, many = measured(0.5, seeds=1), measured(0.5, seeds=50)
    widths = [interval.high - interval.low for interval in map(bootstrap_interval, (few, many))]
    assert widths[1] > 0.7 * widths[0]


def test_a_single_value_has_no_interval():
    interval = bootstrap_interval({"robot": [0.5]})
    assert (interval.low, interval.high, interval.sign, str(interval)) == (None, None, 0, "0.500")


def test_equal_seeds_give_equal_intervals():
    assert bootstrap_interval(measured(0.5)) == bootstrap_interval(measured(0.5))


def test_sign_flips_are_counted_exactly_for_few_subjects():
    """All differences positive: of 2⁴ assignments, that and its opposite are as extreme."""
    gains = {str(n): [0.1 + 0.01 * n] for n in range(4)}
    assert sign_flip_test(gains) == pytest.approx(2 / 16)
    assert sign_flip_test({"a": [0.1], "b": [-0.1]}) == 1


def test_sampled_sign_flips_agree_with_no_difference():
    rng = np.random.default_rng(0)
    assert sign_flip_test({str(n): [value] for n, value in enumerate(rng.normal(0, 1, 20))}) > 0.05
    assert sign_flip_test({str(n): [value] for n, value in enumerate(rng.normal(2, 1, 20))}) < 0.001


def test_differences_are_paired_by_subject_and_seed():
    assert differences({"a": [1, 2], "b": [3]}, {"a": [0, 0]}) == {"a": [1, 2]}


def test_a_winner_is_named_only_if_it_is_better_than_every_other():
    values = measured(0.5)
    better = {subject: [value + 0.05 for value in own] for subject, own in values.items()}
    noisy = {subject: [value + 0.05 * (-1) ** n for value in own] for n, (subject, own) in enumerate(values.items())}
    assert clear_winner({"lora": values, "hra": better}) == "hra"
    assert clear_winner({"lora": values, "hra": better}, larger_is_better=False) == "lora"
    assert clear_winner({"lora": values, "hra": better, "hoft": noisy}) is None
    assert clear_winner({"lora": values}) is None
    few = [{subject: own[subject] for subject in list(own)[:5]} for own in (values, better)]
    assert clear_winner({"lora": few[0], "hra": few[1]}) is None, "five units can't show it"
