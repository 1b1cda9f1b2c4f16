"""Pictures of gaze: what is bright, what is outlined in which colour, what survives odd input."""

import itertools

import numpy as np
import pytest
from PIL import Image

from autogaze.patches import VOCABULARY, PatchVocabulary
from jobs.pictures import render

SIDE = VOCABULARY.frame_size


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def picture(**changes: object) -> render.Picture:
    values: dict[str, object] = {"number": 7, "seconds": 0.25, "frame": noise(1), "tokens": [0, 70]}
    values |= {"reconstruction": noise(2), "error": 0.01, "met": True}
    return render.Picture(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("zoom", [1, 2])
@pytest.mark.parametrize("token", [0, 3, 4, 19, 20, 68, 69, 264])
def test_a_patch_is_outlined_in_its_scales_colour_and_nothing_else_is_coloured(token: int, zoom: int) -> None:
    image = render.gazed_patches(noise(), [token], zoom)
    assert image.shape == (SIDE * zoom, SIDE * zoom, 3) and image.dtype == np.uint8
    top, left, bottom, right = (edge * zoom for edge in VOCABULARY.box(token))
    colour = render.scale_colour(VOCABULARY.locate(token)[0])
    for edge in (
        image[top, left:right],
        image[bottom - 1, left:right],
        image[top:bottom, left],
        image[top:bottom, -1 + right],
    ):
        assert (edge == colour).all()
    outside = np.ones(image.shape[:2], bool)
    outside[top:bottom, left:right] = False
    grey = image[outside]
    assert (grey == grey[:, :1]).all(), "what was not gazed is grey"
    assert grey.max() <= 24 + 0.36 * 255 + 1, "and dark"


def test_a_patch_shows_the_frame_at_the_resolution_it_was_gazed_at() -> None:
    frame = noise()
    token = VOCABULARY.id(0, 1, 0)  # the coarsest scale: 16 x 16 values over 112 x 112 pixels
    image = render.gazed_patches(frame, [token])
    block = image[SIDE // 2 + 7 * 3 : SIDE // 2 + 7 * 4, 7 * 5 : 7 * 6]  # one of the 7 x 7 blocks, off the outline
    assert (block == block[0, 0]).all()
    source = frame[SIDE // 2 + 7 * 3 : SIDE // 2 + 7 * 4, 7 * 5 : 7 * 6].reshape(-1, 3)
    assert np.abs(block[0, 0] - source.mean(axis=0)).max() <= 1
    finest = VOCABULARY.id(3, 5, 6)
    shown = render.gazed_patches(frame, [finest])
    inner = np.s_[5 * 16 + 3 : 6 * 16 - 3, 6 * 16 + 3 : 7 * 16 - 3]
    assert (shown[inner] == frame[inner]).all()


def test_fine_patches_lie_on_top_of_coarse_ones_whatever_their_order() -> None:
    frame, coarse, fine = noise(), VOCABULARY.id(0, 0, 0), VOCABULARY.id(3, 2, 2)
    one, other = render.gazed_patches(frame, [coarse, fine]), render.gazed_patches(frame, [fine, coarse])
    assert (one == other).all()
    assert tuple(one[32, 40]) == render.scale_colour(3)


def test_an_empty_gaze_is_all_grey_and_a_full_one_has_no_grey() -> None:
    empty = render.gazed_patches(noise(), [])
    assert (empty == empty[..., :1]).all()
    full = render.gazed_patches(noise(), list(range(VOCABULARY.size)))
    assert (full != full[..., :1]).any(axis=2).mean() > 0.9


def test_other_vocabularies_are_drawn_too() -> None:
    vocabulary = PatchVocabulary((32, 96, 160), 16)
    frame = np.full((160, 160, 3), 200, np.uint8)
    image = render.gazed_patches(frame, [vocabulary.size - 1], 1, vocabulary)
    assert tuple(image[-1, -1]) == render.scale_colour(2)


@pytest.mark.parametrize("frame", [np.zeros((10, 10, 3), np.uint8), np.zeros((SIDE, SIDE, 3), np.float32)])
def test_wrong_frames_are_refused_by_name(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        render.gazed_patches(frame, [])


def test_the_contact_sheet_holds_every_picture_unscaled() -> None:
    pictures = [picture(number=n, frame=noise(n), reconstruction=noise(n + 50)) for n in range(3)]
    sheet = np.asarray(render.contact_sheet(pictures, "video.mp4", "threshold 0.05", 0.05))
    for wanted in (
        p for one in pictures for p in (one.frame, one.reconstruction, render.gazed_patches(one.frame, [0, 70]))
    ):
        rows, columns = np.nonzero((sheet[: -SIDE + 1, : -SIDE + 1] == wanted[0, 0]).all(axis=2))
        assert any(
            (sheet[y : y + SIDE, x : x + SIDE] == wanted).all()
            for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
        )


def test_a_frame_over_the_threshold_is_marked() -> None:
    good = np.asarray(render.contact_sheet([picture()], "v", "f", 0.05))
    bad = np.asarray(render.contact_sheet([picture(error=0.2, met=False)], "v", "f", 0.05))
    alarm = np.array(render._ALARM)
    assert not (good == alarm).all(axis=2).any()
    assert (bad == alarm).all(axis=2).any()


def test_overlay_frames_are_of_even_size_and_hold_the_three_panels() -> None:
    background = render.overlay_background("video.mp4")
    frame = render.overlay_frame(background, picture(), 0.05)
    assert frame.shape == (background.height, background.width, 3)
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    top, side = render._BAR_TOP, 2 * SIDE
    middle = frame[top : top + side, side + render._GAP : 2 * side + render._GAP]
    assert (middle == render.gazed_patches(picture().frame, [0, 70], 2)).all()
    assert (frame[top : top + side, -side::2][::2] == picture().reconstruction).all()


NAMES = ["视频 ünïcödé.mp4", "x" * 3000, "a\nb\tc.mp4", "\udcff\udc80.mp4", "", "🎬" * 200, "\u202egpj.mp4", "é" * 500]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_breaks_a_picture(name: str) -> None:
    sheet = render.contact_sheet([picture()], name, name, 0.05)
    other = render.contact_sheet([picture()], "v", "f", 0.05)
    assert sheet.size == other.size
    assert render.overlay_background(name).size == render.overlay_background("v").size
    render.slate(render.overlay_background(name), [name, name])


def test_accents_are_dropped_and_long_names_keep_both_ends() -> None:
    assert render.printable("ünïcödé 视") == "unicode \ufffd"
    shown = render.fit("start" + "x" * 500 + "end.mp4", 20, 300)
    assert shown.startswith("start") and shown.endswith("end.mp4") and "…" in shown
    assert render.text_width(shown, 20) <= 300


def test_the_palette_stays_apart_for_colour_blind_eyes_on_dark_and_on_light() -> None:
    # Machado, Oliveira and Fernandes 2009, severity 1; rows give linear RGB as seen.
    kinds = {
        "normal": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

    def lab(colour: tuple[int, int, int], kind: str) -> np.ndarray:
        share = np.array(colour) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        xyz = to_xyz @ np.clip(np.array(kinds[kind]) @ linear, 0, 1) / np.array([0.95047, 1, 1.08883])
        root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])

    used = render.PALETTE[: len(VOCABULARY.scales)]
    for kind in kinds:
        for one, other in itertools.combinations(used, 2):
            assert np.linalg.norm(lab(one, kind) - lab(other, kind)) >= 35, (kind, one, other)
    assert all(50 <= lab(colour, "normal")[0] <= 80 for colour in used)


def test_pictures_are_the_same_bytes_every_time() -> None:
    first, second = (render.contact_sheet([picture()], "v", "f", 0.05).tobytes() for _ in range(2))
    assert first == second and isinstance(render.overlay_background("v"), Image.Image)
