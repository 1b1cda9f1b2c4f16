"""Counts, sizes and comparisons in words."""

from __future__ import annotations

import pytest

from jobs.wording import byte_size, fewer, measured, plural


@pytest.mark.parametrize(
    "count, told",
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (12_345_678, "12.3 MB"),
        (5 * 10**15, "5 PB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit(count: int, told: str) -> None:
    assert byte_size(count) == told


def test_fewer_names_both_things_that_are_compared() -> None:
    assert fewer(1, 265) == "265x fewer than these, 196x fewer than a ViT's 196 tokens a frame"
    assert fewer(265, 2650) == "10.0x fewer than these, 7.4x fewer than a ViT's 196 tokens a frame"
    assert fewer(0, 265) == "nothing was gazed"


def test_one_is_not_many() -> None:
    assert [plural(1, "epoch"), plural(2, "epoch"), plural(1200, "patch", "patches")] == [
        "1 epoch",
        "2 epochs",
        "1,200 patches",
    ]
    amounts = (1.0, 0.99999, 0.5, 2083.3)
    assert [measured(amount, "hour") for amount in amounts] == ["1 hour", "1 hour", "0.5 hours", "2,083 hours"]
