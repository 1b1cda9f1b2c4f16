"""Gaze: ragged tokens, and every form they are written in and read from."""

import io
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autogaze import npz
from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary

TOKENS = [[[5, 264, 0], [], [7]], [[], [9, 8], []]]
LOSSES = [[[0.5, 0.25, 0.1], [], [0.2]], [[], [0.4, 0.3], []]]
INITIAL = [[0.9, 0.05, 0.3], [0.0, 0.6, 0.125]]


@pytest.fixture
def gaze():
    return Gaze.from_lists(TOKENS, LOSSES, INITIAL)


def same(one: Gaze, other: Gaze) -> bool:
    pairs = [
        (one.tokens, other.tokens),
        (one.lengths, other.lengths),
        (one.losses, other.losses),
        (one.initial, other.initial),
    ]
    equal = all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)
    return equal and one.vocabulary == other.vocabulary


@st.composite
def gazes(draw, max_clips=3):
    clips, frames = draw(st.integers(1, max_clips)), draw(st.integers(1, 4))
    frame = st.lists(st.tuples(st.integers(0, 264), st.floats(0, 2, width=32)), max_size=6)
    drawn = [[draw(frame) for _ in range(frames)] for _ in range(clips)]
    tokens = [[[token for token, _ in frame] for frame in clip] for clip in drawn]
    losses = [[[loss for _, loss in frame] for frame in clip] for clip in drawn]
    initial = [[draw(st.floats(0, 2, width=32)) for _ in range(frames)] for _ in range(clips)]
    return Gaze.from_lists(tokens, losses, initial)


# -- parts and measures ----------------------------------------------------------------------------------------------


def test_holds_clips_of_frames_of_tokens(gaze):
    assert (gaze.clips, gaze.num_frames) == (2, 3)
    assert [gaze.frames(b) for b in range(2)] == TOKENS
    assert gaze.tokens.tolist() == [5, 264, 0, 7, 9, 8]
    assert gaze.lengths.tolist() == [[3, 0, 1], [0, 2, 0]]


def test_counts_and_ratio_are_per_clip(gaze):
    assert gaze.counts().tolist() == [4, 2]
    assert gaze.ratio().tolist() == pytest.approx([4 / (3 * 265), 2 / (3 * 265)])


def test_a_frames_final_error_is_its_last_loss_or_its_initial_error(gaze):
    assert gaze.final().tolist() == torch.tensor([[0.1, 0.05, 0.2], [0.0, 0.3, 0.125]]).tolist()


def test_a_frame_meets_a_threshold_at_or_under_it(gaze):
    assert gaze.met(0.2).tolist() == [[True, True, True], [True, False, True]]
    assert gaze.met(0.125).tolist() == [[True, True, False], [True, False, True]]


def test_final_errors_need_losses_and_for_empty_frames_initial_errors():
    with pytest.raises(ValueError, match="no losses"):
        Gaze.from_lists(TOKENS).final()
    with pytest.raises(ValueError, match="no initial errors"):
        Gaze.from_lists(TOKENS, LOSSES).final()
    assert Gaze.from_lists([[[1], [2, 3]]], [[[0.5], [0.25, 0.125]]]).final().tolist() == [[0.5, 0.125]]


def test_one_clip_is_a_batch_of_one(gaze):
    assert gaze[1].frames(0) == TOKENS[1]
    assert gaze[-1].losses.tolist() == pytest.approx([0.4, 0.3])
    assert [clip.frames(0) for clip in gaze] == TOKENS
    with pytest.raises(IndexError, match="clip 2 of a gaze of 2"):
        gaze[2]


@given(gazes())
def test_clips_put_together_again_are_the_batch(gaze):
    assert same(Gaze.cat([gaze[b] for b in range(gaze.clips)]), gaze)


def test_gazes_of_different_kinds_are_not_put_together(gaze):
    for other in (Gaze.from_lists(TOKENS), Gaze.from_lists([[[1]]], [[[0.5]]], [[1.0]])):
        with pytest.raises(ValueError, match="differ"):
            Gaze.cat([gaze, other])


def test_masks_mark_the_gazed_patches(gaze):
    masks = gaze.masks()
    assert [mask.shape for mask in masks] == [(2, 3, 4), (2, 3, 16), (2, 3, 49), (2, 3, 196)]
    assert masks[0][0, 0].tolist() == [1, 0, 0, 0] and masks[3][0, 0, -1] == 1
    assert sum(int(mask.sum()) for mask in masks) == len(gaze.tokens)


# -- the reference's padded tensors ----------------------------------------------------------------------------------


def test_padded_lays_frames_side_by_side_with_absolute_ids(gaze):
    padded = gaze.padded()
    assert padded["num_gazing_each_frame"].tolist() == [3, 2, 1]
    assert padded["gazing_pos"].tolist() == [[5, 264, 0, 530, 530, 537], [265, 265, 265, 274, 273, 795]]
    unused = padded["if_padded_gazing"].tolist()
    assert unused == [[False, False, False, True, True, False], [True, True, True, False, False, True]]


def test_padded_to_given_slots(gaze):
    assert gaze.padded(slots=4)["num_gazing_each_frame"].tolist() == [4, 4, 4]
    padded = gaze.padded(slots=[3, 5, 2])
    assert padded["gazing_pos"].shape == (2, 10)
    assert same(Gaze.from_padded(*(padded[key] for key in PADDED)), Gaze.from_lists(TOKENS))
    with pytest.raises(ValueError, match="frame 1 takes 2 slots, more than the 1 there are"):
        gaze.padded(slots=[3, 1, 1])


PADDED = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")


@pytest.mark.parametrize("call", ["k10__ratio_tlr", "k10__ratio_list", "k10__teacher_forced_ntp"])
def test_the_references_gaze_is_read_whatever_its_unused_slots_hold(golden, call):
    reference = golden(call)
    gaze = Gaze.from_padded(*(reference[key] for key in PADDED))
    assert gaze.counts().tolist() == (~reference["if_padded_gazing"]).sum(dim=1).tolist()
    for index in range(4):
        if f"gazing_mask_{index}" in reference:
            assert torch.equal(gaze.masks()[index], reference[f"gazing_mask_{index}"])
    for junk in (-1, 0, 10**12):
        pos = torch.where(reference["if_padded_gazing"], junk, reference["gazing_pos"])
        assert same(Gaze.from_padded(pos, reference["if_padded_gazing"], reference["num_gazing_each_frame"]), gaze)


def test_the_references_gaze_without_padding_is_written_back_exactly(golden):
    reference = golden("k10__ratio_list")
    padded = Gaze.from_padded(*(reference[key] for key in PADDED)).padded()
    for key in PADDED:
        assert torch.equal(padded[key], reference[key])


def test_other_vocabularies_have_their_own_offsets(golden):
    reference, vocabulary = golden("k10__resadapt_392p14"), PatchVocabulary((56, 112, 196, 392), 14)
    gaze = Gaze.from_padded(*(reference[key] for key in PADDED), vocabulary)
    assert gaze.lengths.tolist() == [[112, 88]]
    assert torch.equal(gaze.padded()["gazing_pos"], reference["gazing_pos"])
    with pytest.raises(ValueError, match=r"tokens lie in 0\.\.264"):
        Gaze.from_padded(*(reference[key] for key in PADDED))


@given(gazes(), st.integers(0, 3))
def test_padded_and_back_is_the_same_gaze(gaze, spare):
    padded = gaze.padded(slots=(gaze.lengths.amax(dim=0) + spare).tolist())
    back = Gaze.from_padded(*(padded[key] for key in PADDED))
    assert torch.equal(back.tokens, gaze.tokens) and torch.equal(back.lengths, gaze.lengths)


def test_padded_tensors_that_do_not_fit_are_refused(gaze):
    padded = gaze.padded()
    with pytest.raises(ValueError, match=r"must both be \[B, 7\]"):
        Gaze.from_padded(padded["gazing_pos"], padded["if_padded_gazing"], [3, 2, 2])


# -- the reference's label JSON --------------------------------------------------------------------------------------


def test_the_references_labels_are_read_and_written_back_exactly(golden_labels):
    for entry in golden_labels.values():
        assert Gaze.from_label(entry).to_label(0) == entry


def test_the_references_labels_pad_as_the_reference_collates_them(golden, golden_labels):
    reference = golden("k10__teacher_forced_ntp")
    padded = Gaze.cat([Gaze.from_label(entry) for entry in golden_labels.values()]).padded(
        reference["num_gazing_each_frame"].tolist()
    )
    assert torch.equal(padded["if_padded_gazing"], reference["if_padded_gazing"])
    used = ~reference["if_padded_gazing"]
    assert torch.equal(padded["gazing_pos"][used], reference["gazing_pos"][used])


@given(gazes())
def test_a_label_keeps_tokens_and_losses(gaze):
    for b, clip in enumerate(gaze):
        back = Gaze.from_label(gaze.to_label(b))
        assert torch.equal(back.tokens, clip.tokens) and torch.equal(back.losses, clip.losses)


def test_a_label_needs_losses_and_both_keys():
    with pytest.raises(ValueError, match="no losses"):
        Gaze.from_lists(TOKENS).to_label(0)
    with pytest.raises(ValueError, match="has no task_losses"):
        Gaze.from_label({"gazing_pos": [[1]]})


# -- npz -------------------------------------------------------------------------------------------------------------


def test_npz_holds_plain_arrays_of_small_types(gaze):
    with np.load(io.BytesIO(gaze[0].to_npz()), allow_pickle=False) as archive:
        types = {name: (archive[name].dtype.str, archive[name].shape) for name in archive.files}
    assert types == {
        "tokens": ("<u2", (4,)),
        "lengths": ("<u2", (3,)),
        "losses": ("<f4", (4,)),
        "initial": ("<f4", (3,)),
    }


def test_npz_bytes_depend_on_the_gaze_alone(gaze, monkeypatch):
    first = gaze[0].to_npz()
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    assert gaze[0].to_npz() == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@given(gazes(max_clips=1))
def test_npz_and_back_is_the_same_gaze(gaze):
    assert same(Gaze.from_npz(gaze.to_npz()), gaze)


def test_npz_is_read_from_bytes_a_path_or_a_file(gaze, tmp_path):
    path = tmp_path / "clip.gaze.npz"
    path.write_bytes(gaze[0].to_npz())
    with path.open("rb") as file:
        for source in (path, str(path), file):
            assert same(Gaze.from_npz(source), gaze[0])


def test_what_a_gaze_does_not_carry_is_not_in_its_npz():
    gaze = Gaze.from_lists([[[1, 2], []]])
    assert same(Gaze.from_npz(gaze.to_npz()), gaze)


def test_npz_that_is_something_else_is_refused(gaze):
    pickled = io.BytesIO()
    np.savez(pickled, tokens=np.array([None]), lengths=np.array([1]))
    missing = io.BytesIO()
    np.savez(missing, tokens=np.array([1]))
    for content in (b"", b"text", gaze[0].to_npz()[:200], pickled.getvalue(), missing.getvalue()):
        with pytest.raises(ValueError):
            Gaze.from_npz(content)
    with pytest.raises(ValueError, match="holds one clip, this gaze has 2"):
        gaze.to_npz()


@pytest.mark.parametrize(
    ("byte", "value"), [(6, 99), (8, 1), (8, 32), (10, 8), (10, 12), (10, 14), (10, 99)]
)  # of a member's entry in the directory: the version it needs, its flags, its compression
def test_npz_with_a_damaged_directory_is_refused(byte, value):
    content = bytearray(Gaze.from_lists([[[1, 2], []]]).to_npz())
    content[content.index(b"PK\1\2") + byte] = value
    with pytest.raises(ValueError, match="not an"):
        npz.read(bytes(content))


def test_npz_that_is_not_there_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        npz.read(tmp_path / "clip.gaze.npz")


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"tokens": torch.tensor([265])}, r"tokens lie in 0\.\.264; found 265"),
        ({"tokens": torch.tensor([-1])}, r"tokens lie in 0\.\.264; found -1"),
        ({"tokens": torch.tensor([1, 2])}, "lengths add up to 1, but there are 2 tokens"),
        ({"tokens": torch.tensor([1.0])}, "tokens must be a torch.int64 tensor"),
        ({"tokens": [1]}, "tokens must be a torch.int64 tensor with 1 dimension, not list"),
        ({"lengths": torch.tensor([1])}, "lengths must be a torch.int64 tensor with 2 dimensions"),
        ({"lengths": torch.tensor([[2, -1]])}, "negative"),
        ({"losses": torch.tensor([0.5, 0.5])}, "2 losses for 1 tokens"),
        ({"losses": torch.tensor([0.5], dtype=torch.float64)}, "losses must be a torch.float32 tensor"),
        ({"initial": torch.tensor([[0.5]])}, "initial is"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    whole = {"tokens": torch.tensor([1]), "lengths": torch.tensor([[1, 0]])}
    with pytest.raises(ValueError, match=message):
        Gaze(**(whole | parts))


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="different numbers of frames"):
        Gaze.from_lists([[[1]], [[1], [2]]])
    with pytest.raises(ValueError, match="one number for each token"):
        Gaze.from_lists([[[1, 2]]], losses=[[[0.5]]])
    with pytest.raises(ValueError, match="no clips"):
        Gaze.from_lists([])


def test_threads_may_read_at_the_same_time() -> None:
    """numpy parses headers with Python's parser, which threads upset in Python 3.11."""
    data = npz.write({"a": np.arange(3), "b": np.zeros((2, 2), np.float32)})
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: npz.read(data)["a"].tolist(), range(4000)))
    finally:
        sys.setswitchinterval(before)
    assert found == [[0, 1, 2]] * 4000
