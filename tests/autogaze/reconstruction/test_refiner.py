"""The refiner: the canvas before it is trained, and afterwards one meaning of an error, whoever asks for it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze import greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction.base import ReconstructorError
from autogaze.reconstruction.canvas import Canvas
from autogaze.reconstruction.losses import FrameLoss, reweighted
from autogaze.reconstruction.refiner.config import RefinerConfig
from autogaze.reconstruction.refiner.memory import NEVER
from autogaze.reconstruction.refiner.reconstructor import Refiner
from tests.support import places

SMALL = PatchVocabulary((8, 16, 32), 8)  # ids: 0, then 1..4, then 5..20
SIZES = {"width": 12, "blocks": 1, "deep_width": 16, "deep_blocks": 2}


def a_refiner(vocabulary: PatchVocabulary = SMALL, trained: bool = True, **changes) -> Refiner:
    """Random weights; trained: with a last layer that corrects something."""
    torch.manual_seed(0)
    sizes = {"scales": vocabulary.scales, "patch_size": vocabulary.patch_size} | SIZES | changes
    refiner = Refiner(RefinerConfig(**sizes)).eval()
    if trained:
        torch.nn.init.normal_(refiner.correct.weight, std=0.1)
    return refiner


def a_gaze(vocabulary: PatchVocabulary, *lengths: list[int], seed: int = 0) -> Gaze:
    random = np.random.default_rng(seed)
    clips = [[random.permutation(vocabulary.size)[:count].tolist() for count in clip] for clip in lengths]
    return Gaze.from_lists(clips, vocabulary=vocabulary)


@pytest.mark.parametrize("vocabulary", [SMALL, VOCABULARY, PatchVocabulary((60, 90), 10)], ids=str)
def test_untrained_it_is_the_canvas_bit_for_bit(footage, vocabulary):
    frames = footage("noise", 2, 3, vocabulary.frame_size)
    gaze = a_gaze(vocabulary, [4, 0, 9], [0, 7, vocabulary.size])
    refined = a_refiner(vocabulary, trained=False).reconstruct(frames, gaze)
    painted = Canvas(vocabulary).reconstruct(frames, gaze)
    assert torch.equal(refined.pixels, painted.pixels)
    assert torch.equal(refined.error, painted.error)


def test_untrained_its_greedy_gaze_is_that_of_the_canvas(footage):
    frames = footage("moving", 2, 3, 32)
    refiner = a_refiner(trained=False)
    ours, theirs = (greedy.label(frames, each, threshold=0.05, max_ratio=0.5) for each in (refiner, Canvas(SMALL)))
    assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.losses, theirs.losses)
    assert refiner.units == f"{Canvas.units}, after the refiner"  # errors of two kinds are not mixed


def test_frames_alone_are_frames_together_in_any_batch_and_later_gaze_changes_nothing(footage):
    frames, gaze = footage("moving", 2, 4, 32), a_gaze(SMALL, [3, 0, 5, 2], [1, 6, 0, 21])
    refiner = a_refiner()
    together = refiner.reconstruct(frames, gaze)
    assert not torch.equal(together.pixels, Canvas(SMALL).reconstruct(frames, gaze).pixels)
    for b in range(2):
        for t in range(4):
            shorter = Gaze.from_lists([gaze.frames(b)[: t + 1]], vocabulary=SMALL)
            alone = refiner.reconstruct(frames[b : b + 1, : t + 1], shorter, [t])
            assert torch.equal(alone.pixels[0, 0], together.pixels[b, t])
            assert torch.equal(alone.error[0, 0], together.error[b, t])


def test_an_error_is_that_of_the_pixels_it_gives(footage):
    frames, gaze = footage("moving", 1, 2, 32), a_gaze(SMALL, [3, 4])
    rebuilt = a_refiner().reconstruct(frames, gaze)
    difference = np.abs(rebuilt.pixels.numpy().astype(int) - frames.astype(int)).sum(axis=(2, 3, 4))
    assert np.array_equal(rebuilt.error.numpy(), (difference / (32 * 32 * 3 * 255)).astype(np.float32))


def test_what_the_finest_scale_shows_of_this_very_frame_stays_as_it_is(footage):
    frames = footage("noise", 1, 2, 32)
    whole = list(range(SMALL.offsets[-1], SMALL.size))
    rebuilt = a_refiner().reconstruct(frames, Gaze.from_lists([[[0], whole]], vocabulary=SMALL))
    assert np.array_equal(rebuilt.pixels[0, 1].numpy(), frames[0, 1]) and rebuilt.error[0, 1] == 0


@pytest.mark.parametrize(
    "options", [{}, {"exact": False, "candidates": 5}, {"exact": False, "candidates": 6, "step": 2}]
)
def test_errors_of_a_greedy_search_are_those_of_the_frames_rebuilt_from_its_gaze(footage, options):
    frames, refiner = footage("moving", 2, 3, 32), a_refiner()
    gaze = greedy.label(frames, refiner, lengths=torch.tensor([[3, 0, 2], [1, 4, 1]]), **options)
    assert torch.equal(refiner.reconstruct(frames, gaze).error, gaze.final())
    for b in range(2):
        *earlier, last = gaze.frames(b)
        measured = [gaze[b].initial[0, 2], *gaze[b].losses[-len(last) :]]
        for taken, error in enumerate(measured):
            prefix = Gaze.from_lists([[*earlier, last[:taken]]], vocabulary=SMALL)
            assert refiner.reconstruct(frames[b : b + 1], prefix, [2]).error == error


def test_a_frame_that_is_opened_again_takes_its_tokens_back(footage):
    search = a_refiner().search(footage("moving", 2, 2, 32))
    search.open(0)
    search.take(torch.tensor([3, 4]))
    before, errors = search.open(1), search.errors()
    search.take(torch.tensor([5, 6]))
    assert torch.equal(search.reopen(torch.tensor([1])), before[1:])
    assert torch.equal(search.errors(), errors[1:])


def test_exact_search_takes_the_patch_that_leaves_least(footage):
    frames, refiner = footage("moving", 1, 2, 32), a_refiner()
    gaze = greedy.label(frames, refiner, lengths=torch.tensor([[2, 1]]))
    first, second = gaze.frames(0)
    tried = [
        float(refiner.reconstruct(frames, Gaze.from_lists([[first, [token]]], vocabulary=SMALL), [1]).error)
        for token in range(SMALL.size)
    ]
    assert second == [int(np.argmin(tried))]


def test_memory_knows_what_lies_beneath_and_since_when(footage):
    frames, refiner = footage("noise", 1, 3, 32), a_refiner()
    fine, coarse = SMALL.offsets[-1], 0
    gaze = Gaze.from_lists([[[fine], [coarse], []]], vocabulary=SMALL)
    memory = refiner.memories(torch.from_numpy(frames), gaze, [0], [[0, 2]])
    assert memory.newest[0, 0, 0] == 2 and memory.newest[0, 1, 1] == NEVER and memory.gazed.tolist() == [1, 0]
    assert np.array_equal(memory.pixels[1, 2, :8, :8].numpy(), frames[0, 0, :8, :8])
    assert [memory.since[(1, *place)] for place in ((2, 0, 0), (0, 3, 3), (1, 0, 0))] == [0, 1, NEVER]
    assert bool((memory.newest[1] == 0).all())
    painted = Canvas(SMALL).reconstruct(frames, gaze)
    assert torch.equal(memory.canvas()[1], painted.pixels[0, 2])


def test_limit_is_the_largest_error_that_meets_a_threshold():
    refiner = a_refiner()
    for threshold in (0.0, 0.02, 0.3, 1.0):
        limit = torch.tensor([refiner.limit(threshold)], dtype=torch.float64)
        above = torch.nextafter(limit, torch.tensor(float("inf"), dtype=torch.float64))
        assert refiner.loss(limit) <= np.float32(threshold) < refiner.loss(above)


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_loads_as_it_was_and_its_fingerprint_is_of_weights_and_loss(tmp_path, footage):
    refiner = a_refiner()
    refiner.save_pretrained(tmp_path)
    loaded = reconstruction.load(tmp_path, SMALL)
    assert isinstance(loaded, Refiner) and loaded.fingerprint == refiner.fingerprint
    assert reconstruction.load(tmp_path / "model.safetensors", SMALL).fingerprint == refiner.fingerprint
    frames, gaze = footage("moving", 1, 2, 32), a_gaze(SMALL, [2, 2])
    assert torch.equal(loaded.reconstruct(frames, gaze).pixels, refiner.reconstruct(frames, gaze).pixels)
    loaded.gate.bias.data += 1e-3
    assert loaded.fingerprint != refiner.fingerprint
    other = reconstruction.load(tmp_path, SMALL, weights={"l1": 2.0})
    assert other.fingerprint != refiner.fingerprint and other.units != refiner.units


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "vit_mae"}, "config.json: no hidden_size"),
        ({"width": 0}, "width is 0, wanted a positive integer"),
        ({"width": 13}, "of another shape"),
        ({"scales": "8+16+x"}, "scales is '8[+]16[+]x'"),
        ({"scales": "6+9", "patch_size": 3}, "multiples of 1 pixels only; a refiner needs 4 or more"),
        ({"depth": 3}, "depth: not known here"),
        ({"loss_type": "l1+dinov2", "loss_weights": "1+0.3"}, "its teacher dinov2 is not given"),
        ({"loss_type": "l1+dinov2"}, "must have as many terms"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_in_one_line(tmp_path, change, told):
    a_refiner().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=told) as refusal:
        reconstruction.load(tmp_path, SMALL)
    assert "\n" not in str(refusal.value)


def test_other_patches_damaged_weights_and_missing_keys_are_refused(tmp_path):
    a_refiner().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="rebuilds from"):
        reconstruction.load(tmp_path)
    broken = Path(shutil.copytree(tmp_path, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ReconstructorError, match="damaged or no checkpoint"):
        reconstruction.load(broken, SMALL)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["blocks"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReconstructorError, match="no blocks: not a refiner's"):
        reconstruction.load(tmp_path, SMALL)


def test_patches_whose_edges_have_nothing_in_common_have_no_refiner():
    with pytest.raises(ReconstructorError, match="a refiner needs 4 or more"):
        RefinerConfig(scales=(6, 8, 16), patch_size=2)


# -- losses ----------------------------------------------------------------------------------------------------------


def test_a_loss_goes_on_with_other_weights_and_more_teachers():
    config = RefinerConfig()
    for given, weights, expected in [
        ([], {}, ("l1", "1")),
        (["dinov2"], {}, ("l1+dinov2", "1+0.3")),
        (["dinov2"], {"l1": 0.5, "dinov2": 2}, ("l1+dinov2", "0.5+2")),
        (["siglip2"], {"l1": 0.0}, ("siglip2", "0.3")),
    ]:
        other = reweighted(config, given, weights)
        assert (other.loss_type, other.loss_weights) == expected
    begun = reweighted(config, ["dinov2"], {"dinov2": 2})
    assert reweighted(begun, ["dinov2"], {}) == begun  # keeps its own
    assert reweighted(begun, [], {"dinov2": 0}) == config
    with pytest.raises(ValueError, match="all weights of the loss are 0"):
        reweighted(config, [], {"l1": 0})


def test_a_plain_dinov2_is_a_teacher_and_search_measures_by_it(tmp_path, footage):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(tmp_path / "dinov2")
    processor = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "dinov2" / "preprocessor_config.json").write_text(json.dumps(processor))
    teachers = {"dinov2": str(tmp_path / "dinov2")}
    a_refiner().save_pretrained(tmp_path / "refiner")
    with pytest.raises(ValueError, match="has no teacher dinov2"):
        reconstruction.load(tmp_path / "refiner", SMALL, teachers=teachers)
    refiner = reconstruction.load(tmp_path / "refiner", SMALL, teachers=teachers, weights={"dinov2": 0.5})
    assert refiner.units == "loss of the refiner (l1+dinov2, weights 1+0.5, l1 a share of 255)"
    assert isinstance(refiner.frame_loss, FrameLoss) and refiner.frame_loss.names == ["dinov2"]
    frames = footage("moving", 1, 2, 32)
    gaze = greedy.label(frames, refiner, lengths=torch.tensor([[2, 1]]), exact=False, candidates=3)
    alone = refiner.reconstruct(frames, gaze)
    torch.testing.assert_close(alone.error, gaze.final(), rtol=1e-5, atol=0)
    given = refiner.reconstruct(frames, gaze, [1], refiner.targets(torch.from_numpy(frames[0, 1:])))
    assert torch.equal(given.error[0], alone.error[0, 1:])
    assert torch.equal(refiner.errors(frames, gaze, [0, 1]), alone.error)
    assert float(alone.error[0, 0]) > float(a_refiner().reconstruct(frames, gaze).error[0, 0])


def test_the_videomae_of_the_golden_files_is_still_a_videomae():
    assert reconstruction.load(places.GOLDEN / "videomae_tiny").name == "videomae"
