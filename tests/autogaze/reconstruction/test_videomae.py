"""The learned reconstructor: equal to the reference, causal, and exact in its search."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autogaze import greedy
from autogaze.gaze import Gaze
from autogaze.images import preprocess
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction import load
from autogaze.reconstruction.videomae.config import ReconstructorError, VideoMAEConfig, read_checkpoint
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from tests.autogaze.reconstruction.plain_videomae import PlainVideoMAE
from tests.support import places

GOLDEN = places.GOLDEN
CHECKPOINT = GOLDEN / "videomae_tiny"
LENGTHS = [[2, 1], [1, 1]]  # tokens that the exact labels of two clips have in each frame
PADDED = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")


@pytest.fixture(scope="module")
def plain():
    return PlainVideoMAE(load_file(CHECKPOINT / "model.safetensors"))


@pytest.fixture(scope="module")
def model() -> VideoMAE:
    return load(CHECKPOINT)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return load_file(GOLDEN / "inputs.safetensors")["raw_uint8"]


@pytest.fixture(scope="module")
def gaze() -> Gaze:
    packed = load_file(GOLDEN / "videomae__gazing_info.safetensors")
    return Gaze.from_padded(*(packed[key] for key in PADDED))


def shorter(gaze: Gaze, lengths: list[list[int]]) -> Gaze:
    """The first tokens of each frame."""
    frames = [[tokens[:n] for tokens, n in zip(gaze.frames(b), lengths[b], strict=True)] for b in range(gaze.clips)]
    return Gaze.from_lists(frames)


def test_errors_and_labels_are_the_same_under_autocast(model, clips, gaze):
    def found():
        labels = greedy.label(clips[:1, :1], model, max_ratio=0.004, threshold=0.0)
        return model.reconstruct(clips, gaze, [1]).error, labels.tokens, labels.losses

    exact = found()
    with torch.autocast("cpu", torch.bfloat16):
        cast = found()
    assert all(torch.equal(one, other) for one, other in zip(exact, cast, strict=True))


# -- equal to the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["frames13", "frames_all", "frames20"])
def test_errors_equal_the_references(model, clips, gaze, call):
    reference = load_file(GOLDEN / f"videomae__{call}.safetensors")
    rebuilt = model.reconstruct(clips, gaze, reference["frame_idx_to_reconstruct"].tolist())
    assert torch.allclose(rebuilt.error, reference["loss_each_frame"], atol=1e-5, rtol=0)


def test_pixels_equal_the_references(model, clips, gaze):
    reference = load_file(GOLDEN / "videomae__frames13.safetensors")["reconstruction_sample0"]
    with torch.no_grad():
        rebuilt = model(preprocess(clips), gaze, [1, 3])  # both clips at once, of different lengths
    assert torch.allclose(rebuilt[0], reference, atol=1e-5, rtol=0)


def test_gradients_equal_the_references(clips, gaze):
    model, video, at = VideoMAE.from_pretrained(CHECKPOINT), preprocess(clips), [1, 3]
    rebuilt = model(video, gaze, at)
    losses = model.frame_loss(rebuilt.flatten(0, 1), video[:, at].flatten(0, 1)).view(2, 2)
    losses.mean(dim=1).mean().backward()
    reference = load_file(GOLDEN / "videomae__grads_frames13.safetensors")
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(found) == set(reference)
    for name, gradient in reference.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("at", [[0], [3, 0], [2], [0, 1, 2, 3]])
def test_equals_the_plain_network_for_any_lengths(model, plain, clips, gaze, at):
    video = preprocess(clips)
    for lengths in ([[3, 0, 1, 2], [1, 5, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]], [[4, 4, 4, 4], [4, 4, 4, 4]]):
        some = shorter(gaze, lengths)
        with torch.no_grad():
            assert torch.allclose(model(video, some, at), plain(video, some.padded(), at), atol=1e-5)


# -- what must hold ------------------------------------------------------------------------------------------------


def test_a_frame_depends_on_no_later_gaze(model, clips, gaze):
    full, cut = gaze, shorter(gaze, [[40, 40, 2, 0]] * 2)
    video = preprocess(clips)
    with torch.no_grad():
        assert torch.allclose(model(video, full, [0, 1]), model(video, cut, [0, 1]), atol=1e-6)
        assert not torch.allclose(model(video, full, [2]), model(video, cut, [2]), atol=1e-3)


def test_the_order_of_a_frames_tokens_does_not_matter(model, clips, gaze):
    turned = Gaze.from_lists([[tokens[::-1] for tokens in gaze.frames(b)] for b in range(2)])
    found, expected = (model.reconstruct(clips, some).error for some in (turned, gaze))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_clips_numbers_do_not_depend_on_its_batch(model, clips, gaze):
    both = model.reconstruct(clips, gaze, [2])
    alone = model.reconstruct(clips[1:], gaze[1], [2])
    assert torch.equal(both.error[1:], alone.error) and torch.equal(both.pixels[1:], alone.pixels)


def test_bfloat16_stays_close(clips, gaze):
    model = load(CHECKPOINT, dtype=torch.bfloat16)
    error = model.reconstruct(clips, gaze).error
    assert error.dtype == torch.float32
    assert torch.allclose(error, load(CHECKPOINT).reconstruct(clips, gaze).error, rtol=0.02)


# -- greedy labels -------------------------------------------------------------------------------------------------


def naive_labels(model: VideoMAE, clip: torch.Tensor, lengths: list[int]) -> tuple[list[list[int]], list[list[float]]]:
    """Every remaining patch tried by rebuilding the frame from scratch, the best one kept, and so on."""
    tokens: list[list[int]] = [[] for _ in clip]
    losses: list[list[float]] = [[] for _ in clip]
    for t, length in enumerate(lengths):
        for _ in range(length):
            tried = [[*tokens[:t], [*tokens[t], token], *tokens[t + 1 :]] for token in range(265)]
            parts = [Gaze.from_lists(tried[first : first + 5]) for first in range(0, 265, 5)]
            errors = torch.cat([model.reconstruct(clip.expand(5, -1, -1, -1, -1), part, [t]).error for part in parts])
            errors[tokens[t]] = math.inf
            tokens[t].append(int(errors.argmin()))
            losses[t].append(float(errors.min()))
    return tokens, losses


@pytest.fixture(scope="module")
def exact(model, clips) -> Gaze:
    """The exact labels of two frames of both clips. Every token of such a label costs half a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as each test has it, for the same bits
    label = greedy.label(clips[:, :2], model, lengths=torch.tensor(LENGTHS))
    torch.set_num_threads(before)
    return label


@pytest.mark.parametrize(("clip", "frames"), [(1, 1), pytest.param(0, 2, marks=pytest.mark.slow)])
def test_exact_labels_equal_the_naive_search_choice_by_choice(model, clips, exact, clip, frames):
    tokens, losses = naive_labels(model, clips[clip, :frames], LENGTHS[clip][:frames])
    assert exact.frames(clip)[:frames] == tokens
    found = exact[clip].losses[: sum(LENGTHS[clip][:frames])]
    assert torch.allclose(found, torch.tensor([loss for frame in losses for loss in frame]), atol=1e-5)


@pytest.mark.parametrize("b", [0, 1])
def test_losses_of_labels_are_those_of_their_prefixes(model, clips, exact, b):
    tokens, losses = exact.frames(b), iter(exact[b].losses)
    for t, place in [(0, i) for i in range(LENGTHS[b][0])] + [(1, i) for i in range(LENGTHS[b][1])]:
        prefix = [*tokens[:t], tokens[t][: place + 1], *([] for _ in tokens[t + 1 :])]
        measured = model.reconstruct(clips[b : b + 1, :2], Gaze.from_lists([prefix]), [t]).error[0, 0]
        assert torch.isclose(measured, next(losses), atol=1e-5)
    nothing = model.reconstruct(clips[b : b + 1, :2], Gaze.from_lists([[[], []]]), [0]).error[0, 0]
    assert torch.isclose(exact.initial[b, 0], nothing, atol=1e-5)


def test_labels_are_the_same_bits_for_any_batch(model, clips, exact):
    alone = greedy.label(clips[1:, :2], model, lengths=torch.tensor(LENGTHS[1:]))
    assert torch.equal(exact[1].tokens, alone.tokens) and torch.equal(exact[1].losses, alone.losses)


def test_labels_until_a_threshold(model, clips, exact):
    first, second = exact[0].losses[:2].tolist()
    assert second < first < float(exact.initial[0, 0])
    threshold = (first + second) / 2
    label = greedy.label(clips[:1, :1], model, threshold=threshold, max_ratio=0.02)  # room for five
    assert label.frames(0)[0] == exact.frames(0)[0] and bool(label.met(threshold)[0, 0])


@pytest.mark.parametrize(
    "options",
    [
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"candidates": 265}, {"candidates": 40}, {"step": 3})
        ),
        {"candidates": 40, "step": 2},
    ],
)
def test_options_keep_what_labels_promise(model, clips, exact, options):
    """Lengths as asked, no token twice, losses measured; and with every patch a candidate, the exact label."""
    lengths = torch.tensor(LENGTHS[:1] if options == {"candidates": 265} else [[4, 1]])
    label = greedy.label(clips[:1, :2], model, lengths=lengths, exact=False, **options)
    assert torch.equal(label.lengths, lengths)
    assert all(len(set(tokens)) == len(tokens) for tokens in label.frames(0))
    if options == {"candidates": 265}:
        assert torch.equal(label.tokens, exact[0].tokens)
    for t in range(2):
        prefix = [tokens if i <= t else [] for i, tokens in enumerate(label.frames(0))]
        measured = model.reconstruct(clips[:1, :2], Gaze.from_lists([prefix]), [t]).error[0, 0]
        assert torch.isclose(label.final()[0, t], measured, atol=1e-5)


@pytest.mark.parametrize("name", ["canvas", CHECKPOINT])
def test_options_that_contradict_are_refused(name, clips):
    reconstructor = load(name)
    for options in (
        {"candidates": 5},
        {"step": 2},
        {"exact": False, "step": 0},
        {"exact": False, "candidates": 2, "step": 3},
    ):
        with pytest.raises(ValueError, match="step"):
            greedy.label(clips[:1, :1], reconstructor, threshold=0.1, **options)


# -- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_saved_checkpoint_is_the_same_weights_and_loads(model, clips, gaze, tmp_path):
    model.save_pretrained(tmp_path)
    reference, saved = (load_file(folder / "model.safetensors") for folder in (CHECKPOINT, tmp_path))
    assert saved.keys() == reference.keys()
    assert all(torch.equal(saved[name], reference[name]) for name in saved)
    config, written = (json.loads((folder / "config.json").read_text()) for folder in (CHECKPOINT, tmp_path))
    assert {key: written.get(key) for key in written} == {key: config.get(key) for key in written}
    again = load(tmp_path)
    assert again.fingerprint == model.fingerprint
    assert torch.equal(again.reconstruct(clips, gaze).error, model.reconstruct(clips, gaze).error)


def test_the_references_own_file_loads(model, tmp_path):
    """videomae.pt: names with the wrappers' prefixes, beside the frozen teachers'."""
    weights = {f"module.mae.{name}": tensor for name, tensor in model.state_dict().items()}
    weights["module.dinov2_reg.encoder.weight"] = torch.zeros(3)
    torch.save(weights, tmp_path / "videomae.pt")
    (tmp_path / "config.json").write_text((CHECKPOINT / "config.json").read_text())
    assert load(tmp_path / "videomae.pt").fingerprint == model.fingerprint == load(tmp_path).fingerprint


@pytest.mark.parametrize(
    ("teachers", "loss_type", "loss_weights"),
    [
        ([], "l1", "1"),
        (["dinov2_reg"], "l1+dinov2_reg", "1+0.3"),
        (["siglip2", "dinov2_reg"], "l1+dinov2_reg+siglip2", "1+0.3+0.3"),
    ],
)
def test_a_file_without_a_config_has_the_loss_of_the_teachers_it_holds(tmp_path, teachers, loss_type, loss_weights):
    weights = {f"module.{name}.encoder.weight": torch.zeros(3) for name in teachers}
    torch.save(weights | {"module.mae.decoder.mask_token": torch.ones(1, 1, 512)}, tmp_path / "videomae.pt")
    config, own = read_checkpoint(tmp_path / "videomae.pt")
    assert config == VideoMAEConfig(loss_type=loss_type, loss_weights=loss_weights)
    assert list(own) == ["decoder.mask_token"]


def damaged(folder: Path, how: str) -> Path:
    config, weights = json.loads((CHECKPOINT / "config.json").read_text()), load_file(CHECKPOINT / "model.safetensors")
    if how == "missing":
        del weights["decoder.mask_token"]
    elif how == "shape":
        weights["vit.layernorm.weight"] = torch.ones(7)
    elif how == "nan":
        weights["vit.layernorm.weight"][3] = math.nan
    elif how == "scales":
        config["scales"] = "32+64+128+224"
    elif how == "kind":
        config["model_type"] = "vit"
    elif how == "teacher":
        config |= {"loss_type": "l1+dinov2_reg", "loss_weights": "1+0.3"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    if how == "truncated":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "decoder.mask_token"),
        ("shape", "vit.layernorm.weight"),
        ("nan", "NaN"),
        ("scales", "rebuilds from"),
        ("kind", "model_type"),
        ("teacher", "dinov2_reg"),
        ("truncated", "damaged"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path, how, message):
    with pytest.raises(ValueError, match=message) as refusal:
        load(damaged(tmp_path, how))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "48"}, "hidden_size is '48', wanted a positive integer"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
        ({"max_num_frames": None}, "max_num_frames is None"),
        ({"patch_size": True}, "patch_size is True"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5, wanted a divisor of hidden_size 48"),
        (
            {"decoder_num_attention_heads": 3},
            "decoder_num_attention_heads is 3, wanted a div",
        ),
        ({"hidden_size": 46, "num_attention_heads": 2}, "hidden_size is 46, wanted a multiple of 4"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
        ({"scales": "32+x"}, "scales is '32[+]x'"),
        ({"scales": "32+30"}, "scales is '32[+]30'"),
        ({"causal": False}, "causal is False, wanted True"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_its_file_and_key(tmp_path, change, message):
    folder = damaged(tmp_path, "config")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ReconstructorError, match=f"config.json: {message}") as refusal:
        load(folder)
    assert "\n" not in str(refusal.value) and "safetensors" not in str(refusal.value)


@pytest.mark.parametrize("content", ["[1]", "{", "\xff"])
def test_a_config_that_is_no_json_object_is_refused_by_its_file(tmp_path, content):
    (damaged(tmp_path, "config") / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ReconstructorError, match=r"config\.json: [^\n]+\Z"):
        load(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"vit": {"layernorm": 3}}, b""])
def test_a_pickle_without_tensors_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "videomae.pt")
    if content == b"":
        (tmp_path / "videomae.pt").write_bytes(content)
    with pytest.raises(ReconstructorError, match=r"not plain weights|damaged"):
        load(tmp_path)


def test_a_pickle_that_is_not_plain_weights_is_never_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"weights": Payload()}, tmp_path / "videomae.pt")
    with pytest.raises(ReconstructorError, match=r"not plain weights|damaged"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_calls_that_make_no_sense_are_refused(model, clips, gaze):
    other = Gaze.from_lists([[[0]] * 4] * 2, vocabulary=PatchVocabulary((112, 224), 16))
    for bad, at, message in [
        (gaze, [4], "0..3"),
        (gaze, [], "at="),
        (gaze, [1, 1], "different"),
        (gaze[0], None, "gaze of"),
        (other, None, "vocabulary|PatchVocabulary"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.reconstruct(clips[: bad.clips] if at is not None else clips, bad, at)


def test_clips_longer_than_it_was_trained_for_are_refused(model, clips):
    long = clips[:1, :1].expand(1, 17, -1, -1, -1)
    with pytest.raises(ValueError, match="clips of 17 frames: this reconstructor takes 16 at most"):
        greedy.label(long, model, max_ratio=0.01)
    with pytest.raises(ValueError, match="clips of 17 frames"):
        model.reconstruct(long, Gaze.from_lists([[[]] * 17]))


def test_a_search_wants_frames_on_the_reconstructors_device(clips):
    elsewhere = load(CHECKPOINT).to("meta")
    with pytest.raises(ValueError, match="frames on cpu, the reconstructor on meta"):
        greedy.label(clips[:1, :1], elsewhere, max_ratio=0.01)


def test_the_released_size_has_the_released_shapes():
    with torch.device("meta"):
        model = VideoMAE(VideoMAEConfig())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 325e6 < parameters < 335e6


class Wide(VideoMAE):
    """Computes on a CPU as on a GPU."""

    wide = True


def test_whole_batches_in_few_steps_give_what_clips_one_by_one_give(model, clips):
    wide = Wide(model.config, model.frame_loss)
    wide.load_state_dict(model.state_dict())
    gaze = Gaze.from_lists([[[5, 200, 3], [], [9]], [[], [70, 1], [264, 2, 0, 40]]])
    frames = clips[:, :3]
    for at in ([1, 2], [2, 0]):
        plain, found = model.reconstruct(frames, gaze, at), wide.reconstruct(frames, gaze, at)
        assert torch.allclose(found.error, plain.error, atol=1e-5)
        assert (found.pixels.int() - plain.pixels.int()).abs().max() <= 1
        assert wide.errors(frames, gaze, at).equal(found.error) and model.errors(frames, gaze, at).equal(plain.error)


def test_a_group_at_one_clip_needs_its_pixels_once(model, clips):
    wide = Wide(model.config, model.frame_loss)
    wide.load_state_dict(model.state_dict())
    gaze = Gaze.from_lists([[[5], [7]], [[6, 1], []], [[], [0]]])
    group = clips[:1, :2].expand(3, -1, -1, -1, -1)
    targets = model.frame_loss.targets(model.normalised(clips[0, :1]).float())
    found = wide.errors(group, gaze, [0], targets)
    assert torch.allclose(found, model.errors(group.contiguous(), gaze, [0]), atol=1e-5)
