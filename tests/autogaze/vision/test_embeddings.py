"""Learnt embeddings of scale and time: nothing while they are zero, and kept beside a checkpoint."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from autogaze.hub import CheckpointError
from autogaze.vision import GazedEncoder, load
from autogaze.vision.embeddings import EMBEDDINGS, GazeEmbeddings

SCALES = (16, 32, 64)
LENGTHS = [[9, 0, 4, 7], [3, 6, 0, 1]]


def with_embeddings(one: GazedEncoder, frames: int = 4, seed: int | None = None) -> GazedEncoder:
    """Another encoder on the same weights, with embeddings: zero, or random."""
    made = GazeEmbeddings(one.vocabulary.scales, frames, one.width)
    if seed is not None:
        random = torch.Generator().manual_seed(seed)
        for weight in made.parameters():
            weight.data.normal_(generator=random)
    return GazedEncoder(one.family, one.model, one.normalisation, SCALES, one.attention, made)


def test_zero_embeddings_leave_every_network_as_it_was_bit_for_bit(encoder, kind, pixels, gazes):
    one, frames, gaze = encoder(kind), pixels(), gazes(LENGTHS)
    other = with_embeddings(one)
    plain, found = one.encode(frames, gaze, hidden_states=True), other.encode(frames, gaze, hidden_states=True)
    assert found.tokens.requires_grad and not plain.tokens.requires_grad
    for state, wanted in zip([found.tokens, *found.hidden_states], [plain.tokens, *plain.hidden_states], strict=True):
        assert torch.equal(state, wanted)
    assert torch.equal(found.pool().clips, plain.pool().clips)


@pytest.mark.parametrize("family", ["siglip", "dinov3"])
def test_a_token_is_told_its_scale_and_its_frame(encoder, pixels, gazes, family):
    one = encoder(family)
    other = with_embeddings(one, frames=3, seed=1)  # frame 3 has what frame 2 has
    frames, gaze = pixels(), gazes(LENGTHS)
    plain, found = (each.encode(frames, gaze, hidden_states=[0]).hidden_states[0] for each in (one, other))
    assert other.embeddings is not None
    scale = torch.bucketize(gaze.tokens, torch.tensor([4, 20]), right=True)
    out = one.encode(frames, gaze)
    wanted = other.embeddings.scale[scale] + other.embeddings.time[out.frame.clamp(max=2)]
    torch.testing.assert_close(found - plain, wanted, atol=1e-5, rtol=0)


def test_a_stream_knows_the_time_as_the_whole_clip_does(encoder, pixels, gazes):
    other, frames, gaze = with_embeddings(encoder(), seed=2), pixels(1), gazes([[9, 3, 4, 7]])
    whole, stream = other.encode(frames, gaze), other.stream()
    for t in range(4):
        part = stream.push(frames[0, t], gazes_of(gaze, t))
        torch.testing.assert_close(part.tokens, whole.tokens[whole.frame == t], atol=1e-5, rtol=0)


def gazes_of(gaze, t: int):
    from autogaze.gaze import Gaze

    return Gaze.from_lists([[gaze.frames(0)[t]]], vocabulary=gaze.vocabulary)


def test_they_are_saved_beside_a_checkpoint_that_transformers_reads(tmp_path, checkpoint, pixels, gazes):
    one = load(checkpoint("dinov2"), scales=SCALES)
    other = with_embeddings(one, seed=3)
    other.preprocessor = b'{"image_mean": [0.1, 0.2, 0.3], "crop_size": 64}'
    other.save_pretrained(tmp_path)
    plain = transformers.Dinov2Model.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(plain[name], weight) for name, weight in one.model.state_dict().items())
    again = load(tmp_path, scales=SCALES)
    assert (tmp_path / "preprocessor_config.json").read_bytes() == other.preprocessor
    assert again.normalisation[0] == (0.1, 0.2, 0.3) and not any(w.requires_grad for w in again.parameters())
    assert again.embeddings is not None and other.embeddings is not None
    assert torch.equal(again.embeddings.time, other.embeddings.time)
    other.normalisation = again.normalisation
    assert again.fingerprint == other.fingerprint != one.fingerprint
    # Some of the scales will do; another attention has them too.
    frames, gaze = pixels(), gazes(LENGTHS)
    assert torch.equal(again.encode(frames, gaze).tokens, other.encode(frames, gaze).tokens)
    finest = again.sharing(scales=(64,), attention="frame")
    assert torch.equal(finest.encode(frames).tokens, again.sharing(attention="frame").encode(frames).tokens)


def test_embeddings_that_are_not_this_networks_are_one_line(tmp_path, checkpoint):
    load(checkpoint("siglip"), scales=SCALES).save_pretrained(tmp_path)
    file = tmp_path / EMBEDDINGS

    def refused(words: str, kind: type[Exception] = CheckpointError) -> None:
        with pytest.raises(kind, match=words) as found:
            load(tmp_path, scales=SCALES)
        assert "\n" not in str(found.value)

    GazeEmbeddings(SCALES, 4, 48).write(tmp_path)
    refused(r"holds \[3, 48\] for 3 scales and \[4, 48\] for frames, the network is 32 wide")
    GazeEmbeddings((32, 64), 4, 32).write(tmp_path)
    refused(r"learnt embeddings of scales 32, 64, and none of 16: load it with scales=\(32, 64\)", ValueError)
    file.write_bytes(file.read_bytes()[:-8])
    refused("cannot be read")
    for format, value, words in ((2, 0.0, "is of format 2, wanted 1"), (1, torch.nan, "NaN or infinite")):
        about = {"gaze_embeddings": json.dumps({"format": format, "scales": SCALES})}
        save_file({"scale": torch.full((3, 32), value), "time": torch.zeros(4, 32)}, file, about)
        refused(words)
