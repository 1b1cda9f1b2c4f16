"""Clips of different lengths and slots in one rollout: each row is the rollout of its clip alone."""

import pytest
import torch

from autogaze.model import Encoded, Sampling

SLOTS = torch.tensor([[7, 0, 0], [3, 9, 4], [1, 5, 0], [8, 8, 8]])
THRESHOLDS = torch.tensor([[0.4], [0.5], [0.45], [0.5]])


@pytest.mark.parametrize("thresholds", [None, THRESHOLDS])
@pytest.mark.parametrize("graphs", [None, False, True])
def test_each_row_is_drawn_as_if_it_were_alone(small_policy, clips, take_the_gpus_path, graphs, thresholds):
    if graphs is not None:
        take_the_gpus_path(graphs)
    model, frames = small_policy(2, 3, "consistent"), clips(4, 3, 4)
    encoded = model.encode(frames).tokens.detach()
    both = model.rollout(Encoded(encoded), Sampling(1.0, 50, [5, 6, 7, 8]), slots=SLOTS, loss_threshold=thresholds)
    begin = both.gaze.frame_slots().amax(dim=0).cumsum(0) - both.gaze.frame_slots().amax(dim=0)
    for row, slots in enumerate(SLOTS.tolist()):
        own = [count for count in slots if count]
        limit = None if thresholds is None else float(thresholds[row])
        alone = model.rollout(
            Encoded(encoded[row : row + 1, : len(own)]), Sampling(1.0, 50, [5 + row]), slots=own, loss_threshold=limit
        )
        assert both.gaze.frames(row)[: len(own)] == alone.gaze.frames(0)
        assert not any(both.gaze.frames(row)[len(own) :])
        widths = alone.gaze.frame_slots()[0].tolist()
        columns = torch.cat([begin[t] + torch.arange(width) for t, width in enumerate(widths)])
        assert torch.equal(both.drawn[row, columns], alone.drawn[0])
        torch.testing.assert_close(both.log_probs[row, columns], alone.log_probs[0], atol=1e-4, rtol=1e-4)


def test_slots_of_rows_that_make_no_sense_are_refused(small_policy, clips):
    model, frames = small_policy(2, 3), clips(2, 3, 4)
    for slots in (torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3], [1, -1, 3]]), torch.full((2, 3), 10_000)):
        with pytest.raises(ValueError, match="slots"):
            model.rollout(frames, Sampling(), slots=slots)
