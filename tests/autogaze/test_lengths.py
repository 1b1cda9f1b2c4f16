"""autogaze.lengths: the paper's random lengths, and whole tokens shared out among frames."""

import math

import numpy as np
import pytest

from autogaze.lengths import apportion, mean_lengths, paper_lengths
from autogaze.patches import VOCABULARY, PatchVocabulary

KEYS = [f"clip{n}" for n in range(6000)]


def test_mean_ratios_are_exponential_within_their_limits() -> None:
    fine = PatchVocabulary((1600,))  # 10,000 patches: rounding hides nothing
    ratios = paper_lengths(KEYS, 64, fine).double().mean(dim=1).numpy() / fine.size
    assert ratios.min() > 0.0195 and ratios.max() < 0.2
    # Kolmogorov-Smirnov against the restricted distribution; 1.63 is its 1 % quantile.
    expected = (math.exp(-0.2) - np.exp(-10 * np.sort(ratios))) / (math.exp(-0.2) - math.exp(-2))
    assert np.abs(expected - (np.arange(len(KEYS)) + 0.5) / len(KEYS)).max() < 1.63 / math.sqrt(len(KEYS))


def test_shares_have_the_mean_and_spread_of_the_dirichlet_distribution() -> None:
    fine = PatchVocabulary((1600,))
    lengths = paper_lengths(KEYS, 16, fine, low=0.05, high=0.05).double()
    shares = (lengths / lengths.sum(dim=1, keepdim=True)).numpy()
    for frame, weight in ((0, 10), (1, 3), (15, 3)):
        mean = weight / 55
        spread = math.sqrt(mean * (1 - mean) / 56)
        assert shares[:, frame].mean() == pytest.approx(mean, abs=4 * spread / math.sqrt(len(KEYS)))
        assert shares[:, frame].std() == pytest.approx(spread, rel=0.05)


def test_every_frame_has_a_token_and_counts_are_rounded_as_cap_does() -> None:
    lengths = paper_lengths(KEYS[:500], 16, low=0.001, high=0.001)
    assert lengths.min() == 1 and (lengths[:, 1:] == 1).float().mean() > 0.99
    single = paper_lengths(KEYS[:3], 1, low=0.1, high=0.1)  # one frame has all of the ratio
    assert single.tolist() == [[VOCABULARY.cap(0.1)]] * 3
    assert paper_lengths(KEYS[:500], 16, low=0.6, high=0.6).max() == VOCABULARY.size


def test_the_lengths_of_a_clip_depend_on_its_key_and_the_seed_alone() -> None:
    together = paper_lengths(KEYS[:8], 16)
    assert together.dtype.is_signed and tuple(together.shape) == (8, 16)
    for b, key in enumerate(KEYS[:8]):
        assert paper_lengths([key], 16).tolist() == [together[b].tolist()]
    assert not together.equal(paper_lengths(KEYS[:8], 16, seed=1))
    # Written down: labels made by another version or on another machine are of the same lengths.
    assert paper_lengths(["a"], 4).tolist() == GOLDEN


GOLDEN = [[70, 9, 7, 6]]


@pytest.mark.parametrize(
    "wrong", [{"low": 0}, {"low": 0.3}, {"high": 1.1}, {"rate": 0}, {"rate": math.nan}, {"frames": 0}, {"seed": -1}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        paper_lengths(["a"], **({"frames": 4} | wrong))


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.05, 0.2, 0.5, 0.97, 1.0])
def test_mean_lengths_add_up_to_the_ratio_with_10_to_3_for_the_first_frame(ratio: float) -> None:
    lengths = mean_lengths(ratio, 16)
    assert int(lengths.sum()) == round(ratio * 16 * 265)
    assert lengths.max() <= 265 and int(lengths[1:].max() - lengths[1:].min()) <= 1
    if ratio <= 0.2:
        assert abs(int(lengths[0]) - ratio * 16 * 265 * 10 / 55) <= 1


def test_apportion_keeps_proportions_within_the_room_and_fills_it() -> None:
    assert apportion(np.array([6, 0, 3, 1]), 5, np.array([6, 0, 3, 1])).tolist() == [3, 0, 2, 0]
    assert apportion(np.array([10, 1, 1]), 9, np.array([3, 9, 9])).tolist() == [3, 3, 3]
    assert apportion(np.array([2, 0, 1]), 99, np.array([2, 0, 1])).tolist() == [2, 0, 1]
    assert apportion(np.array([0, 0]), 7, np.array([0, 0])).tolist() == [0, 0]
    random = np.random.default_rng(0)
    for _ in range(300):
        own = random.integers(0, 50, 16)
        total = int(random.integers(0, own.sum() + 3))
        part = apportion(own, total, own).numpy()
        assert part.sum() == min(total, own.sum()) and (part <= own).all() and (part >= 0).all()
        assert np.abs(part - own * (part.sum() / max(own.sum(), 1))).max() <= 1
