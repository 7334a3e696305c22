"""Metrics of detectors: against definitions, by hand, and exactly whatever the order."""

from __future__ import annotations

import json

import numpy as np
import pytest

from defakeq import metrics


def random_case(seed, count=200, digits=2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    labels[:2] = 0, 1
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1).round(digits)
    return labels, scores


@pytest.mark.parametrize("seed", range(5))
def test_auc_counts_the_ordered_pairs(seed):
    labels, scores = random_case(seed, 80, 1)
    fakes, reals = scores[labels == 1], scores[labels == 0]
    pairs = (fakes[:, None] > reals).sum() + 0.5 * (fakes[:, None] == reals).sum()
    assert metrics.auc(labels, scores) == pytest.approx(pairs / len(fakes) / len(reals), abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_its_definition(seed):
    labels, scores = random_case(seed)
    total = 0.0
    for score in scores[labels == 1]:
        above = scores >= score
        total += labels[above].sum() / above.sum()
    expected = total / labels.sum()
    assert metrics.average_precision(labels, scores) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 0.0),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], 1.0),
        ([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5], 0.5),
        ([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9], 0.5),
        ([0, 0, 0, 0, 1, 1, 1, 1], [0.1, 0.2, 0.3, 0.7, 0.6, 0.8, 0.85, 0.9], 0.25),
    ],
)
def test_eer_by_hand(labels, scores, expected):
    assert metrics.eer(labels, scores) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_eer_lies_between_the_neighbouring_rates(seed):
    labels, scores = random_case(seed)
    found = metrics.curve(labels, scores)
    alarms = found.reals / found.negatives
    misses = 1 - found.fakes / found.positives
    rate = metrics.eer(labels, scores)
    best = np.abs(alarms - misses).argmin()
    near = slice(max(0, best - 1), best + 2)
    assert min(alarms[near].min(), misses[near].min()) <= rate
    assert rate <= max(alarms[near].max(), misses[near].max())


def test_accuracy_and_calibration_by_hand():
    assert metrics.accuracy([0, 1, 1, 0], [0.1, 0.5, 0.4, 0.6]) == 0.5
    # Two bins: 0.2 and 0.4 with no forged one, 0.9 and 0.7 with one of two.
    error = metrics.calibration_error([0, 0, 1, 0], [0.2, 0.4, 0.9, 0.7], bins=2)
    assert error == pytest.approx((0.6 + 0.6) / 4)
    assert metrics.calibration_error([1, 0], [1.0, 0.0]) == 0


def test_videos_have_the_mean_of_their_frames():
    names, labels, scores = metrics.by_video(["b", "a", "b"], [1, 0, 1], [0.2, 0.4, 0.8])
    assert names == ["a", "b"]
    assert labels.tolist() == [0, 1]
    assert scores.tolist() == [0.4, 0.5]
    with pytest.raises(ValueError, match="labels: found both in the video 'a'"):
        metrics.by_video(["a", "a"], [0, 1], [0.2, 0.4])


def test_order_changes_no_byte():
    labels, scores = random_case(3, 300, 9)
    videos = np.array([f"{index // 4}-{label}" for index, label in enumerate(labels)])
    expected = json.dumps(metrics.summary(videos.tolist(), labels, scores, 50))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(labels))
        found = metrics.summary(videos[order].tolist(), labels[order], scores[order], 50)
        assert json.dumps(found) == expected


def test_bootstrap_is_seeded_and_covers():
    labels, scores = random_case(1, 400)
    groups = [str(index // 4) + str(label) for index, label in enumerate(labels)]
    one = metrics.bootstrap(groups, labels, scores, 200, seed=1)
    assert one == metrics.bootstrap(groups, labels, scores, 200, seed=1)
    assert one != metrics.bootstrap(groups, labels, scores, 200, seed=2)
    for name, value in (
        ("auc", metrics.auc(labels, scores)),
        ("eer", metrics.eer(labels, scores)),
        ("ap", metrics.average_precision(labels, scores)),
        ("accuracy", metrics.accuracy(labels, scores)),
    ):
        assert one[name].value == pytest.approx(value, abs=1e-15)
        assert one[name].low < value < one[name].high
    # The spread agrees with the binomial one where that is known.
    flat = metrics.bootstrap([str(i) for i in range(len(labels))], labels, scores, 500)["accuracy"]
    known = 2 * 1.96 * np.sqrt(flat.value * (1 - flat.value) / len(labels))
    assert flat.high - flat.low == pytest.approx(known, rel=0.25)


def test_one_class_has_no_auc():
    with pytest.raises(ValueError, match="labels: found 2 forged and 0 real"):
        metrics.auc([1, 1], [0.1, 0.2])
    found = metrics.summary(["a", "b"], [1, 1], [0.1, 0.9])["frame"]
    assert found["auc"] is None
    assert found["accuracy"] == 0.5
    assert "intervals" not in found


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "labels: found none"),
        ([0, 2], [0.1, 0.2], "labels: found"),
        ([0, 1], [0.1, 1.2], "scores: found 1.2"),
        ([0, 1], [0.1, float("nan")], "scores: found nan"),
        ([0, 1], [0.1], "scores: found shape"),
    ],
)
def test_bad_values_are_refused(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metrics.auc(labels, scores)
