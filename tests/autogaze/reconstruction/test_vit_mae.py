"""A VideoMAE begins from transformers' ViT-MAE of images: its tensors, and its meaning of a picture."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from autogaze import reconstruction
from autogaze.images import MEAN, STD, preprocess
from autogaze.reconstruction.base import ReconstructorError
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from autogaze.reconstruction.videomae.vit_mae import read_vit_mae

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
SIZES |= {"decoder_intermediate_size": 16, "patch_size": 16}


@pytest.fixture
def begun(tmp_path):
    """A function: a tiny ViT-MAE of images of a size, its folder and the VideoMAE that begins from it."""

    def make(**changes):
        torch.manual_seed(0)
        config = transformers.ViTMAEConfig(**({"image_size": 224} | SIZES | changes))
        theirs = transformers.ViTMAEForPreTraining(config).eval()
        theirs.save_pretrained(tmp_path / "mae")
        return theirs, tmp_path / "mae", VideoMAE.from_vit_mae(tmp_path / "mae")

    return make


def test_embedded_patches_of_the_finest_scale_are_its_own_for_the_same_picture(begun, footage):
    theirs, _, ours = begun()
    frames = torch.from_numpy(footage("moving", 1, 1, 224))
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    pictures = (frames[0].movedim(3, 1).float() / 255 - mean) / std  # as ImageNet's processor does
    embeddings = theirs.vit.embeddings
    expected = embeddings.patch_embeddings(pictures) + embeddings.position_embeddings[:, 1:]
    vocabulary = ours.vocabulary
    ids = torch.arange(vocabulary.offsets[-1], vocabulary.size)
    patches = ours.patches(preprocess(frames, 224))[:, 0, ids]
    torch.testing.assert_close(ours.embed(patches, ids, torch.zeros_like(ids)), expected, rtol=1e-4, atol=1e-5)


def test_its_prediction_is_in_our_pixels_and_what_it_lacks_is_zero(begun):
    theirs, folder, ours = begun()
    tokens = torch.randn(2, SIZES["decoder_hidden_size"])
    predicted = theirs.decoder.decoder_pred(theirs.decoder.decoder_norm(tokens)).unflatten(1, (-1, 3))
    pixels = predicted * torch.tensor(STD) + torch.tensor(MEAN)
    expected = (2 * pixels - 1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(ours.predict(tokens).unflatten(1, (-1, 3)), expected, rtol=1e-4, atol=1e-4)
    embeddings, decoder = ours.vit.embeddings, ours.decoder
    for zero in (embeddings.scale_embed, embeddings.time_embed, decoder.decoder_scale_embed, decoder.time_embed):
        assert not zero.any() and zero.requires_grad
    assert torch.equal(embeddings.position_embeddings, theirs.vit.embeddings.position_embeddings)
    document = json.loads((folder / "config.json").read_text()) | {"norm_pix_loss": True}
    (folder / "config.json").write_text(json.dumps(document))
    kept = read_vit_mae(folder)[1]["decoder.decoder_pred.bias"]
    assert torch.equal(kept, theirs.decoder.decoder_pred.bias.detach())


def test_names_of_the_hub_and_another_grid_of_patches_are_taken_too(begun):
    _, folder, ours = begun(image_size=64)
    assert ours.vit.embeddings.position_embeddings.shape == (1, 197, 16)
    file = folder / "model.safetensors"
    renamed = {
        name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(renamed, file)
    again = VideoMAE.from_vit_mae(folder)
    assert again.fingerprint == ours.fingerprint


def test_it_is_no_reconstructor_before_it_was_trained(begun):
    _, folder, _ = begun()
    with pytest.raises(ReconstructorError, match="autogaze train reconstructor init= begins from a ViT-MAE"):
        reconstruction.load(folder)
    assert reconstruction.load(folder, to_train=True).name == "videomae"


def test_one_without_a_decoder_or_of_other_patches_is_refused_in_one_line(begun):
    _, folder, _ = begun()
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor for name, tensor in weights.items() if not name.startswith("decoder.")}, file)
    with pytest.raises(ReconstructorError, match="is no whole ViT-MAE with its decoder"):
        reconstruction.load(folder, to_train=True)
    document = json.loads((folder / "config.json").read_text()) | {"patch_size": 14}
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(ReconstructorError, match="its patches have 14 pixels, ours 16"):
        reconstruction.load(folder, to_train=True)
