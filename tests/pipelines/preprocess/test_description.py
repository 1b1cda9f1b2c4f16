"""What a job takes from the dataset that it goes on with."""

from __future__ import annotations

import pytest

from pipelines.errors import PipelineError
from pipelines.gazing.reconstructor import LabelsConfig
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.description import describe, require_same, with_own_defaults
from pipelines.preprocess.job import resolve_gaze

PLACES = {"input": "/v", "output": "/d"}


def test_a_dataset_begun_under_another_default_goes_on_with_its_own_threshold() -> None:
    config = PreprocessConfig(**PLACES)
    begun = PreprocessConfig(**PLACES, threshold=0.05)
    written = describe(begun, resolve_gaze(begun))
    with pytest.raises(PipelineError, match=r"threshold is 0\.05 there, 0\.02 here"):
        require_same(written, describe(config, resolve_gaze(config)), "/d")
    resumed = with_own_defaults(config, written)
    assert resumed.threshold == 0.05
    require_same(written, describe(resumed, resolve_gaze(resumed)), "/d")


def test_a_threshold_that_is_given_or_drawn_lengths_stay_what_they_are() -> None:
    begun = PreprocessConfig(**PLACES, threshold=0.05)
    written = describe(begun, resolve_gaze(begun))
    assert with_own_defaults(PreprocessConfig(**PLACES, threshold=0.1), written).threshold == 0.1
    drawn = PreprocessConfig(**PLACES, labels=LabelsConfig("paper"))
    assert with_own_defaults(drawn, written).threshold is None
