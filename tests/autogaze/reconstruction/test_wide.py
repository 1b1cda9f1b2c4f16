"""What a GPU computes in few large steps is what a CPU computes one by one."""

import numpy as np
import pytest
import torch

from autogaze import greedy
from autogaze.draws import numbered_generator, patch_orders
from autogaze.gaze import Gaze
from autogaze.reconstruction.refiner.config import RefinerConfig
from autogaze.reconstruction.refiner.reconstructor import Refiner
from autogaze.reconstruction.videomae import wide_search
from autogaze.reconstruction.videomae.config import VideoMAEConfig
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from autogaze.reconstruction.videomae.search import VideoMAESearch
from autogaze.reconstruction.videomae.wide_search import WideSearch
from pipelines.train.reconstructor import ReconstructorLosses
from pipelines.train.refiner import RefinerLosses

CLIPS, FRAMES = 3, 3
SMALL = VideoMAEConfig(
    scales=(32, 64),  # ids: 0..3, then 4..19
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    decoder_hidden_size=12,
    decoder_num_layers=2,
    decoder_num_heads=3,
    decoder_intermediate_size=16,
    max_num_frames=FRAMES,
)


class Wide(VideoMAE):
    """Computes on a CPU as on a GPU."""

    wide = True


@pytest.fixture(scope="module")
def both() -> tuple[VideoMAE, VideoMAE]:
    """The plain one and the wide one, of the same weights, drawn so that what is seen counts."""
    plain, wide = VideoMAE(SMALL).eval(), Wide(SMALL).eval()
    torch.manual_seed(0)
    for weight in plain.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    wide.load_state_dict(plain.state_dict())
    return plain, wide


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (CLIPS, FRAMES, 64, 64, 3), np.uint8))


def gaze_of(plain: VideoMAE | Refiner, *lengths: list[int]) -> Gaze:
    order = patch_orders(numbered_generator(1), len(lengths) * FRAMES, plain.vocabulary.size)
    each = iter(order.tolist())
    chosen = [[next(each)[:count] for count in clip] for clip in lengths]
    return Gaze.from_lists(chosen, vocabulary=plain.vocabulary)


def test_rows_rebuild_frames_of_their_own_at_clips_of_their_own(both, clips):
    plain, wide = both
    gaze = gaze_of(plain, [3, 0, 20], [0, 0, 0], [1, 20, 2], [9, 9, 9])
    of, at = [2, 0, 0, 1], [[1, 2], [0, 2], [2, 0]]
    found, wanted = (model.group_errors(clips, gaze, of, at) for model in (wide, plain))
    assert wanted.shape == (4, 2) and torch.allclose(found, wanted, atol=1e-6)
    alone = plain.errors(clips[2:], gaze[0], at[2])
    assert torch.equal(wanted[:1], alone), "a row on a CPU is what it is alone"


def test_a_training_step_has_the_same_losses_and_gradients(both, clips):
    plain, wide = both
    shown = list(gaze_of(plain, [4, 0, 7], [0, 12, 0], [20, 1, 1]))
    at = [[0, 2], [1, 2], [0, 1]]
    losses, gradients = [], []
    for model in (plain, wide):
        model.zero_grad()
        loss = ReconstructorLosses(model)(clips, shown, at)["loss"]
        loss.sum().backward()
        losses.append(loss.detach())
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    assert torch.allclose(*losses, atol=1e-6)
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm() + 1e-8


@pytest.mark.parametrize("which", [0, 1], ids=["plain", "wide"])
def test_what_is_computed_again_gives_the_same_gradients_bit_for_bit(both, clips, which):
    model, found = both[which], []
    for model.recompute in (False, True):
        model.zero_grad()
        ReconstructorLosses(model)(clips[:1], [gaze_of(model, [4, 0, 7])], [[0, 2]])["loss"].sum().backward()
        found.append([weight.grad.clone() for weight in model.parameters() if weight.requires_grad])
    model.recompute = False
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("how", [{}, {"exact": False, "candidates": 5, "step": 2}], ids=["exact", "savings"])
def test_labels_of_many_clips_are_those_of_each(both, clips, how):
    plain, wide = both
    lengths = torch.tensor([[2, 0, 3], [1, 4, 2], [0, 1, 1]])
    found, wanted = (greedy.label(clips, model, lengths=lengths, **how) for model in (wide, plain))
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.allclose(found.losses, wanted.losses, atol=1e-5)
    assert torch.allclose(found.initial, wanted.initial, atol=1e-5)


def test_a_search_keeps_drops_and_reopens_clips_as_the_plain_one_does(both, clips, monkeypatch):
    monkeypatch.setattr(wide_search, "_SPARE", 1.0)  # pasts are moved together as soon as one is shorter
    plain, wide = both
    searches = plain.search(clips), wide.search(clips)
    assert [type(search) for search in searches] == [VideoMAESearch, WideSearch]
    tried = torch.tensor([[7, 9, 18], [7, 1, 2], [3, 4, 19]])

    def same(ask) -> torch.Tensor:
        found = [ask(search) for search in searches]
        assert torch.allclose(*found, atol=1e-5)
        return found[0]

    def each(do) -> None:
        for search in searches:
            do(search)

    same(lambda search: search.open(0))
    each(lambda search: search.take(torch.tensor([7, 1, 3])))
    after = same(lambda search: search.errors(tried))
    assert torch.isinf(after).nonzero().tolist() == [[0, 0], [1, 1], [2, 0]]
    each(lambda search: search.keep(torch.tensor([0, 2])))
    each(lambda search: search.take(torch.tensor([8, 5])))
    same(lambda search: search.errors(tried[:2]))
    same(lambda search: search.reopen(torch.tensor([1])))
    each(lambda search: search.take(torch.tensor([15])))
    same(lambda search: search.open(1))
    same(lambda search: search.errors(tried))
    each(lambda search: search.keep(torch.tensor([1])))
    for token in range(5, 12):
        each(lambda search, token=token: search.take(torch.tensor([token])))
    same(lambda search: search.open(2))
    assert searches[1]._real.sum(dim=1).tolist() == [3, 9, 3] and searches[1]._real.shape == (CLIPS, 9)
    same(lambda search: search.errors(tried))


class WideRefiner(Refiner):
    """Computes on a CPU as on a GPU."""

    wide = True


@pytest.fixture(scope="module")
def refiners() -> tuple[Refiner, Refiner]:
    """The plain one and the wide one, of the same weights, which correct something."""
    sizes = {"width": 6, "blocks": 1, "deep_width": 8, "deep_blocks": 1}
    plain, wide = (kind(RefinerConfig((16, 32, 64), 16, **sizes)).eval() for kind in (Refiner, WideRefiner))
    torch.manual_seed(0)
    torch.nn.init.normal_(plain.correct.weight, std=0.1)
    wide.load_state_dict(plain.state_dict())
    return plain, wide


def test_a_refiner_measures_groups_and_learns_from_clips_together(refiners, clips):
    plain, wide = refiners
    gaze = gaze_of(plain, [3, 0, 20], [1, 0, 0], [1, 20, 2], [9, 9, 9])
    of, at = [2, 0, 0, 1], [[1, 2], [0, 2], [2, 0]]
    found, wanted = (model.group_errors(clips, gaze, of, at) for model in (wide, plain))
    assert torch.allclose(found, wanted, atol=1e-6) and torch.equal(wanted[:1], plain.errors(clips[2:], gaze[0], at[2]))
    losses, gradients = [], []
    for model in (plain, wide):
        model.zero_grad()
        made = RefinerLosses(model)(clips, [gaze[row] for row in (0, 2, 3)], at)
        made["loss"].sum().backward()
        losses.append(torch.stack([value.detach() for value in made.values()]))
        gradients.append([weight.grad for weight in model.parameters()])
    assert losses[0].shape == (3, CLIPS) and torch.allclose(*losses, atol=1e-6)
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm() + 1e-8


def test_a_refiner_labels_clips_together(refiners, clips):
    plain, wide = refiners
    how = {"lengths": torch.tensor([[2, 0, 3], [1, 4, 2], [0, 1, 1]]), "exact": False, "candidates": 3, "step": 2}
    found, wanted = (greedy.label(clips, model, **how) for model in (wide, plain))
    assert torch.equal(found.tokens, wanted.tokens) and torch.allclose(found.losses, wanted.losses, atol=1e-6)
