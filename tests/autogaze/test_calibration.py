"""The promise of a calibration: it holds at its stated rate for exchangeable videos, and fails for shifted ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autogaze.calibration import StopCurve, binomial_cdf, conformal_bounds, fewest_videos, loosest_stop, p_values

SPLITS, VIDEOS, STOPS, FRAMES = 2000, 60, 12, 16
LOOSENESS = np.linspace(0.05, 1.2, STOPS)


def drawn(splits: int, videos: int, seed: int, harder: float = 1.0) -> np.ndarray:
    """Shares of missed frames [splits, videos, stops]. A video has a difficulty, and its frames miss together by it.

    harder: by so much are the videos of another distribution.
    """
    random = np.random.default_rng(seed)
    difficulty = np.minimum(random.beta(1, 3, (splits, videos, 1)) * harder, 1)
    missed = random.random((splits, videos, FRAMES), np.float32)
    # One number for each frame, compared with every stop: a looser stop misses what a stricter one does.
    return np.stack([(missed < difficulty * each).mean(axis=2) for each in LOOSENESS], axis=2)


@pytest.fixture(scope="module")
def calibrating() -> np.ndarray:
    return drawn(SPLITS, VIDEOS, 0)


def lost(new: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The loss of one new video a split [splits] at the chosen stop; none where nothing was promised."""
    taken = np.take_along_axis(new[:, 0], np.maximum(chosen, 0)[:, None], axis=1)[:, 0]
    return np.where(chosen < 0, 0.0, taken)


@pytest.mark.parametrize("risk", [0.05, 0.1, 0.2])
def test_conformal_risk_control_keeps_the_mean_risk_of_a_new_video(calibrating: np.ndarray, risk: float) -> None:
    found = lost(drawn(SPLITS, 1, 1), loosest_stop(calibrating, risk))
    error = found.std() / math.sqrt(SPLITS)
    assert found.mean() <= risk + 2 * error
    assert found.mean() >= risk / 3, "and does not waste what is allowed"


def test_it_fails_for_videos_that_are_not_like_those_that_calibrated(calibrating: np.ndarray) -> None:
    shifted = lost(drawn(SPLITS, 1, 1, harder=2.5), loosest_stop(calibrating, 0.1))
    assert shifted.mean() > 0.1 + 5 * shifted.std() / math.sqrt(SPLITS)


# Of a hard kind: a video's frames miss all or none, for this share of the videos.
ALL_OR_NONE = np.linspace(0.02, 0.24, STOPS)


def all_or_none(videos: int, seed: int) -> np.ndarray:
    """Losses [splits, videos, stops] of videos that are missed altogether or not at all."""
    return (np.random.default_rng(seed).random((SPLITS, videos, 1)) < ALL_OR_NONE).astype(np.float64)


def broken(chosen: np.ndarray, expected: np.ndarray, risk: float) -> float:
    """In how many splits the stop that was chosen has a larger risk than promised."""
    return float(((chosen >= 0) & (expected[np.maximum(chosen, 0)] > risk)).mean())


@pytest.mark.parametrize("delta", [0.1, 0.2])
def test_learn_then_test_breaks_the_promise_no_more_often_than_stated(delta: float) -> None:
    risk = float(ALL_OR_NONE[4]) - 1e-4  # just under a stop's, so that a choice of it breaks the promise
    chosen = loosest_stop(all_or_none(200, 2), risk, "ltt", delta)
    assert 0 < broken(chosen, ALL_OR_NONE, risk) <= delta + 2 * math.sqrt(delta * (1 - delta) / SPLITS)
    assert (chosen >= 0).mean() > 0.9
    assert broken(chosen, 2.5 * ALL_OR_NONE, risk) > 2 * delta, "of videos that are harder nothing is promised"


def test_the_naive_choice_breaks_it_half_the_time() -> None:
    losses, risk = all_or_none(200, 2), float(ALL_OR_NONE[4]) - 1e-4
    naive = (losses.mean(axis=1) <= risk).cumprod(axis=1).sum(axis=1) - 1
    assert broken(naive, ALL_OR_NONE, risk) > 0.4


def test_clips_as_units_promise_too_much() -> None:
    """Eight clips of a video are alike: to count each as a video is to know less than it seems."""
    chosen = loosest_stop(all_or_none(6, 3).repeat(8, axis=1), 0.1, "ltt", 0.1)
    assert broken(chosen, ALL_OR_NONE, 0.1) > 0.3
    assert (loosest_stop(all_or_none(6, 3), 0.1, "ltt", 0.1) == -1).all()


# -- small numbers, by hand --------------------------------------------------------------------------------------------


def test_the_conformal_bound_counts_one_more_video_and_never_falls() -> None:
    losses = np.array([[0.0, 0.5, 0.25], [0.0, 0.0, 0.25], [0.25, 0.0, 1.0]])
    # rising: [0, .5, .5], [0, 0, .25], [.25, .25, 1]; (sum + 1) / 4
    assert conformal_bounds(losses).tolist() == [1.25 / 4, 1.75 / 4, 2.75 / 4]
    assert loosest_stop(losses, 0.3).tolist() == -1
    assert loosest_stop(losses, 0.45).tolist() == 1
    assert loosest_stop(losses, 0.7).tolist() == 2


def test_p_values_are_the_smaller_of_two_bounds() -> None:
    # Ten videos without a miss at risk .2: .8 ^ 10 by Hoeffding, e times as much by Bentkus.
    assert p_values(np.zeros((10, 1)), 0.2)[0] == pytest.approx(0.8**10)
    # Mean .1: Hoeffding exp(-10 (.1 ln .5 + .9 ln 1.125)) = .692885; Bentkus e (.8^10 + 10 * .2 * .8^9) = 1.0216
    one = np.zeros((10, 1))
    one[0] = 1
    assert p_values(one, 0.2)[0] == pytest.approx(math.exp(-10 * (0.1 * math.log(0.5) + 0.9 * math.log(1.125))))
    # Nine hundredths more than allowed: nothing speaks for it.
    assert p_values(np.full((10, 1), 0.29), 0.2)[0] == 1
    # Of 400 videos 30 miss altogether, at risk .1: there Bentkus is the smaller one.
    many = np.zeros((400, 1))
    many[:30] = 1
    by_hand = math.e * sum(math.comb(400, k) * 0.1**k * 0.9 ** (400 - k) for k in range(31))
    assert p_values(many, 0.1)[0] == pytest.approx(
        min(by_hand, math.exp(-400 * (0.075 * math.log(0.75) + 0.925 * math.log(0.925 / 0.9))))
    )


def test_learn_then_test_goes_no_further_than_the_first_stop_that_fails() -> None:
    losses = np.zeros((30, 3))
    losses[:, 1] = 1
    assert loosest_stop(losses, 0.1, "ltt", 0.1).tolist() == 0
    assert loosest_stop(losses[:, 1:], 0.1, "ltt", 0.1).tolist() == -1


def test_how_many_videos_a_promise_takes() -> None:
    assert [fewest_videos(risk) for risk in (0.5, 0.1, 0.05)] == [1, 9, 19]
    assert [fewest_videos(risk, "ltt", 0.1) for risk in (0.5, 0.1, 0.05)] == [4, 22, 45]
    for risk in (0.3, 0.1, 0.05):
        for method in ("crc", "ltt"):
            enough = fewest_videos(risk, method)  # type: ignore[arg-type]
            assert loosest_stop(np.zeros((enough, 1)), risk, method) == 0  # type: ignore[arg-type]
            assert enough == 1 or loosest_stop(np.zeros((enough - 1, 1)), risk, method) == -1  # type: ignore[arg-type]


def test_the_binomial_is_right() -> None:
    assert binomial_cdf(3, 0.5).tolist() == pytest.approx([1 / 8, 4 / 8, 7 / 8, 1])


@pytest.mark.parametrize("bad", [[[math.nan]], [[1.5]], [[-0.1]], [0.5], np.zeros((0, 2))])
def test_losses_lie_between_0_and_1(bad: object) -> None:
    with pytest.raises(ValueError, match="losses are numbers from 0 to 1"):
        conformal_bounds(np.asarray(bad))


# -- the curve ---------------------------------------------------------------------------------------------------------


def test_a_frame_ends_at_its_first_prediction_at_or_under_the_stop() -> None:
    """Two frames. The first is right when it predicts .2, the second dips to .1 before it is right at .05."""
    curve = StopCurve.fit(
        [np.array([0.6, 0.4, 0.5, 0.2]), np.array([0.3, 0.1, 0.2, 0.05])],
        [np.array([1, 1, 1, 0]), np.array([1, 1, 1, 0])],
    )
    assert curve.stops.tolist() == [0.05, 0.1, 0.2, 0.3, 0.4, 0.6]
    assert curve.losses.tolist() == [0, 0.5, 0.5, 0.5, 1, 1]
    assert [curve.at_most(loss) for loss in (0, 0.49, 0.5, 0.99, 1)] == [0.05, 0.05, 0.3, 0.3, 0.6]


def test_a_frame_that_no_stop_ends_has_its_last_loss_and_losses_rise() -> None:
    curve = StopCurve.fit([np.array([0.5, 0.5]), np.array([0.2, 0.1])], [np.array([0.0, 0.25]), np.array([0.5, 1.0])])
    # At .1 the first has .25 and the second 1; at .2 less, .25 and .5, which does not count; at .5 0 and .5.
    assert curve.losses.tolist() == [0.625, 0.625, 0.625]
    assert (curve.at_most(0.6), curve.at_most(0.7)) == (0.0, 0.5)


def test_a_stop_is_no_less_than_0_as_a_policy_takes_it() -> None:
    curve = StopCurve.fit([np.array([0.5, -0.5])], [np.array([1.0, 0.0])])
    assert curve.stops.tolist() == [0.0, 0.5] and curve.at_most(0.0) == 0.0


def test_a_stop_never_falls_as_the_loss_allowed_grows() -> None:
    random = np.random.default_rng(1)
    frames = [random.random(50) for _ in range(60)]
    curve = StopCurve.fit(frames, [(random.random(50) < 0.3).astype(float) for _ in frames])
    stops = [curve.at_most(loss) for loss in np.linspace(0, 1, 200)]
    assert (np.diff(stops) >= 0).all() and (np.diff(curve.stops) > 0).all() and len(curve.stops) <= 1024


@pytest.mark.parametrize("bad", [([], []), ([[math.nan]], [[0.1]]), ([[0.1]], [[math.inf]])])
def test_a_curve_needs_frames_of_numbers(bad: tuple[list[list[float]], list[list[float]]]) -> None:
    with pytest.raises(ValueError, match=r"no frames to learn from|not a finite number"):
        StopCurve.fit(*([np.array(each) for each in part] for part in bad))
