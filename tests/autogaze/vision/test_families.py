"""Every family: with all patches of one scale kept, what transformers itself gives."""

import pytest
import torch
import transformers

from autogaze.patches import PatchVocabulary
from autogaze.vision import load
from autogaze.vision.families import FAMILIES
from autogaze.vision.plan import covered_places
from tests.autogaze.vision.conftest import KINDS
from tests.support.encoders import write_encoder

PATCH = 8


def plain(model, kind: str, frames: torch.Tensor):
    """transformers on whole frames [N, 3, S, S], positions interpolated where it must be asked to."""
    if kind == "siglip2":
        grid = frames.shape[-1] // PATCH
        rows = frames.unflatten(3, (grid, PATCH)).unflatten(2, (grid, PATCH)).permute(0, 2, 4, 3, 5, 1)
        shapes = torch.tensor([[grid, grid]] * len(frames))
        mask = torch.ones(len(frames), grid * grid, dtype=torch.int32)
        return model(rows.flatten(3).flatten(1, 2), mask, shapes, output_hidden_states=True)
    options = {} if kind.startswith("dino") else {"interpolate_pos_encoding": True}
    return model(pixel_values=frames, output_hidden_states=True, **options)


def test_there_is_a_small_model_of_every_family(encoder):
    assert {encoder(kind).family.name for kind in KINDS} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("scale", [64, 40])  # as the checkpoint has it; and with its positions resized
def test_all_patches_of_one_scale_give_what_transformers_gives(encoder, model, kind, pixels, scale):
    frames = pixels(1, 3, scale)
    with torch.no_grad():
        wanted = plain(model(kind), kind, frames[0])
    one = encoder(kind, "frame", (scale,))
    out, before = one.encode(frames, hidden_states=True), one.prefix_count
    grid = scale // PATCH
    torch.testing.assert_close(
        out.tokens.view(3, grid * grid, -1), wanted.last_hidden_state[:, before:], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(out.prefix[0], wanted.last_hidden_state[:, :before], atol=1e-5, rtol=0)
    assert len(out.hidden_states) == len(wanted.hidden_states) == 4
    for found, state in zip(out.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(found.view(3, grid * grid, -1), state[:, before:], atol=1e-5, rtol=0)


def test_a_frames_pooled_feature_is_transformers_own(encoder, model, kind, pixels):
    frames = pixels(1, 3)
    with torch.no_grad():
        wanted = plain(model(kind), kind, frames[0])
    pooled = encoder(kind, "frame", (64,)).encode(frames).pool().frames[0]
    # ViT's own pooler is a layer of its classification, which is not used here.
    own = wanted.last_hidden_state[:, 0] if kind == "vit" else wanted.pooler_output
    torch.testing.assert_close(pooled, own, atol=1e-5, rtol=0)


def test_one_frame_sees_the_same_in_every_attention(encoder, kind, pixels):
    frames = pixels(1, 1)
    found = [
        encoder(kind, mode, (64,)).encode(frames).tokens for mode in ("block_causal", "frame", "first_frame", "newest")
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=0)


def test_the_tower_of_a_model_of_two_towers_is_found(tmp_path, encoder, pixels, model):
    import transformers

    config = transformers.CLIPConfig(
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        vision_config=model("clip").config.to_dict(),
    )
    both = transformers.CLIPModel(config)
    both.vision_model.load_state_dict(model("clip").state_dict())
    both.save_pretrained(tmp_path)
    frames = pixels(1, 2)
    found = load(tmp_path, scales=(64,)).encode(frames)
    assert torch.equal(found.tokens, encoder("clip", "block_causal", (64,)).encode(frames).tokens)


def test_so400m_and_dinov2_of_518_pixels_are_reachable(tmp_path):
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
    so400m = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**small, image_size=384, intermediate_size=16)
    )
    so400m.save_pretrained(tmp_path / "so400m")
    dinov2 = transformers.Dinov2Model(transformers.Dinov2Config(**small, image_size=518)).eval()
    dinov2.save_pretrained(tmp_path / "dinov2")
    for name, scales, patches in (
        ("so400m", (56, 112, 196, 392), 28 * 28),
        ("so400m", (378,), 27 * 27),  # what transformers cuts of 384 pixels
        ("dinov2", (28, 56, 112, 224), 16 * 16),
        ("dinov2", (518,), 37 * 37),
    ):
        frames = torch.zeros(1, 1, 3, scales[-1], scales[-1])
        assert len(load(tmp_path / name, scales=scales).encode(frames).tokens) == patches


def test_a_networks_own_size_need_be_no_multiple_of_its_patch(tmp_path):
    """As SigLIP so400m's 384 pixels of 14 x 14: the last pixels are in no patch, here as in transformers."""
    folder = write_encoder(tmp_path, patch=8, size=67)
    frames = torch.randn(1, 2, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    model = transformers.SiglipVisionModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model(pixel_values=frames[0]).last_hidden_state
    out = load(folder, scales=(67,), attention="frame").encode(frames)
    torch.testing.assert_close(out.tokens.view(2, 64, -1), wanted, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"must be a multiple of 8; the nearest are 32\+67"):
        load(folder, scales=(30, 67))


def test_a_place_belongs_to_the_patch_that_holds_its_centre_also_where_scales_are_cut_down():
    vocabulary = PatchVocabulary((96, 384), 14)
    for id, places in enumerate(covered_places(vocabulary).tolist()):
        top, left, bottom, right = vocabulary.box(id)
        centres = [(row, column) for row in range(27) for column in range(27)]
        inside = [top <= 14 * y + 7 < bottom and left <= 14 * x + 7 < right for y, x in centres]
        assert [place for place in places if place >= 0] == [n for n, held in enumerate(inside) if held]
