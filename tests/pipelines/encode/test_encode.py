"""pipelines.encode from end to end: what is stored, outcomes, resuming, and what the same bytes do not depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from autogaze.vision import load
from pipelines.dataset.features import as_float32, open_features
from pipelines.dataset.shards import open_dataset
from pipelines.inspection.status import read_status
from pipelines.inspection.verify import verify
from pipelines.storage import store
from tests.pipelines.encode.conftest import SHORT, Encoded, preprocessed
from tests.support import runs
from tests.support.encoders import write_encoder


def encode(*settings: object) -> str:
    done = runs.plainly("encode", *settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ok_rows(output: Path) -> list[dict]:
    return open_features(str(output)).index().query("outcome == 'ok'").to_dict("records")


def test_what_is_stored_is_what_the_encoder_gives_of_each_clip(encoded: Encoded, siglip: Path) -> None:
    features, gaze, encoder = open_features(str(encoded.output)), open_dataset(str(encoded.gaze)), load(siglip)
    rows = gaze.index().query("outcome == 'ok'").to_dict("records")
    assert len(rows) == 5
    for row, mine in zip(rows, ok_rows(encoded.output), strict=True):
        members = gaze.read_clip(row)
        frames, seen = gaze.frames_of(row, members), gaze.gaze_of(row, members)
        out = encoder.encode(frames[None], seen, hidden_states=[1])
        stored = features.read_features(mine)
        assert mine["source"] == row["sha256"] and mine["tokens"] == row["tokens"] == len(seen.tokens)
        for name, values in {"frame": out.frame, "id": out.id, "scale": out.plan.located[0]}.items():
            assert getattr(stored, name).tolist() == values.tolist()
        pooled = out.pool()
        for values, wanted in (
            (stored.layers["final"], out.tokens),
            (stored.layers["hidden_1"], out.hidden_states[0]),
            (stored.pooled["clip"], pooled.clips[0]),
            (stored.pooled["frame"], pooled.frames[0]),
        ):
            assert values.dtype == np.float16
            np.testing.assert_allclose(values, wanted.numpy(), atol=2e-3, rtol=2e-3)


def test_every_planned_clip_has_one_row_and_failures_keep_their_reason(encoded: Encoded) -> None:
    plan, index = open_dataset(str(encoded.gaze)).plan.rows(), pd.read_parquet(encoded.output / "index")
    assert index["clip"].tolist() == plan["clip"].tolist()
    assert index[index["outcome"] == "failed"]["reason"].tolist() == ["unreadable"]
    assert runs.tree(encoded.output / "plan.parquet") == runs.tree(encoded.gaze / "plan.parquet")
    assert {name.split("/")[0] for name in encoded.files} == {"dataset.json", "plan.parquet", "shards", "index"}
    for said in ("5 ok, 1 failed of 6", "1 unreadable", "encoded by", "features stage", "gazed by"):
        assert said in encoded.printed
    (record,) = Path(f"{encoded.output}.runs").iterdir()
    written = json.loads(record.read_text())
    assert written["encoder"].startswith("SigLIP (") and written["workers"].keys() == {"decode", "features"}
    status = read_status(str(encoded.output))
    assert status.state == "done" and status.outcomes == {"ok": 5, "filtered": 0, "failed": 1}


def test_verify_holds_every_byte_and_every_array(encoded: Encoded, tmp_path: Path) -> None:
    verdict = verify(str(encoded.output))
    assert verdict.problems == [] and (verdict.ok, verdict.failed) == (5, 1)
    output = Path(shutil.copytree(encoded.output, tmp_path / "features"))
    dataset = open_features(str(output))
    row, tar = ok_rows(output)[0], output / "shards" / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[int(row["offset"] + row["size"]) - 700] ^= 1
    tar.write_bytes(data)
    assert any("bytes differ from the hash" in problem for problem in verify(str(output)).problems)
    about = json.loads((output / "dataset.json").read_text())
    about["config"]["layers"].append("hidden_0")
    (output / "dataset.json").write_text(json.dumps(about))
    told = "\n".join(verify(str(dataset.url)).problems)
    assert "has no hidden_0.npy" in told


def test_a_job_that_was_stopped_goes_on_and_ends_with_the_same_bytes(encoded: Encoded, tmp_path: Path) -> None:
    output = Path(shutil.copytree(encoded.output, tmp_path / "features"))
    assert "nothing to do: all 4 shards are committed" in encode(*encoded.settings, f"output={output}")
    (output / "index" / "000001.parquet").unlink()
    (output / "shards" / "000001.tar").write_bytes(b"half a tar")
    (output / "shards" / ".tmp-of-a-killed-writer").write_bytes(b"")
    assert "(3 of 4 shards done before)" in encode(*encoded.settings, f"output={output}")
    assert runs.tree(output) == encoded.files


def test_parts_make_the_bytes_of_one_run(encoded: Encoded, tmp_path: Path) -> None:
    output = tmp_path / "features"
    assert "planned: 6 clips in 4 shards, 4 to make" in encode(*encoded.settings, f"output={output}", "part=plan")
    for part in (1, 0):
        encode(*encoded.settings, f"output={output}", f"part={part}/2")
    assert runs.tree(output) == encoded.files


@pytest.fixture(scope="module")
def of_videos(few_videos: Path, siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """The same videos gazed at and encoded in one pass."""
    output = tmp_path_factory.mktemp("of-videos") / "features"
    settings = [f"input={few_videos}", *SHORT, f"encoder.checkpoint={siglip}"]
    printed = encode(*settings, f"output={output}")
    return Encoded(settings, output, runs.tree(output), printed, few_videos)


def test_videos_are_gazed_at_and_encoded_in_one_pass(of_videos: Encoded, encoded: Encoded) -> None:
    assert "canvas" in of_videos.printed and verify(str(of_videos.output)).problems == []
    assert not list(of_videos.output.rglob("*.jpg")) and {path.name for path in of_videos.output.iterdir()} == {
        *("dataset.json", "manifest.parquet", "plan.parquet", "shards", "index")
    }
    mine, there = open_features(str(of_videos.output)), open_features(str(encoded.output))
    for one, other in zip(ok_rows(of_videos.output), ok_rows(encoded.output), strict=True):
        assert one["clip"] == other["clip"] and one["source"] == ""
        np.testing.assert_array_equal(mine.read_features(one).id, there.read_features(other).id)
    assert "nothing to do" in encode(*of_videos.settings, f"output={of_videos.output}")
    done = runs.plainly("encode", *of_videos.settings, "threshold=0.3", f"output={of_videos.output}")
    assert done.returncode == 2 and "threshold is 0.04 there, 0.3 here" in done.stderr
    words = [f"data={encoded.gaze}", of_videos.settings[-1], f"output={of_videos.output}"]
    done = runs.plainly("encode", *words)
    assert done.returncode == 2 and "was begun from videos; give them as input=, or choose" in done.stderr
    assert runs.tree(of_videos.output) == of_videos.files


def test_frames_that_are_not_stored_are_decoded_again(few_videos: Path, of_videos: Encoded, tmp_path: Path) -> None:
    data, output = preprocessed(few_videos, tmp_path / "gaze", "frames=none"), tmp_path / "features"
    encode(f"data={data}", of_videos.settings[-1], f"output={output}")
    found = [open_features(str(place)) for place in (output, of_videos.output)]
    for again, once in zip(*(ok_rows(Path(dataset.url)) for dataset in found), strict=True):
        one, other = found[0].read_features(again), found[1].read_features(once)
        np.testing.assert_array_equal(one.id, other.id)
        np.testing.assert_array_equal(one.layers["final"], other.layers["final"])


def test_a_clip_that_was_damaged_fails_alone_and_is_made_once_it_is_mended(encoded: Encoded, tmp_path: Path) -> None:
    data, output = Path(shutil.copytree(encoded.gaze, tmp_path / "gaze")), tmp_path / "features"
    row, tar = open_dataset(str(data)).index().query("outcome == 'ok'").iloc[1], data / "shards" / "000000.tar"
    whole = tar.read_bytes()
    torn = bytearray(whole)
    torn[int(row["offset"]) + 600] ^= 1
    tar.write_bytes(torn)
    settings = [f"data={data}", *encoded.settings[1:], f"output={output}"]
    encode(*settings)
    index = pd.read_parquet(output / "index").set_index("clip")
    assert index.loc[row["clip"]]["reason"] == "damaged" and (index["outcome"] == "ok").sum() == 4
    tar.write_bytes(whole)
    encode(*settings, "retry=failed")
    assert runs.tree(output) == encoded.files


def test_no_token_is_a_feature_too(few_videos: Path, siglip: Path, tmp_path: Path) -> None:
    data, output = preprocessed(few_videos, tmp_path / "gaze", "threshold=1"), tmp_path / "features"
    encode(f"data={data}", f"encoder.checkpoint={siglip}", f"output={output}", "pooled=both")
    dataset = open_features(str(output))
    stored = [dataset.read_features(row) for row in ok_rows(output)]
    assert len(stored) == 5 and all(clip.layers["final"].shape == (0, 16) for clip in stored)
    assert all(not clip.pooled["frame"].any() for clip in stored) and verify(str(output)).problems == []


def test_bfloat16_is_stored_as_its_bits(encoded: Encoded, tmp_path: Path) -> None:
    output = tmp_path / "features"
    encode(*encoded.settings[:2], "layers=none", "pooled=clip", "store=bfloat16", f"output={output}")
    small, full = open_features(str(output)), open_features(str(encoded.output))
    for row, other in zip(ok_rows(output), ok_rows(encoded.output), strict=True):
        stored = small.read_features(row)
        assert stored.layers == {} and stored.pooled["clip"].dtype == np.uint16
        wanted = full.read_features(other).pooled["clip"].astype(np.float32)
        np.testing.assert_allclose(as_float32(stored.pooled["clip"]), wanted, atol=0.02, rtol=0.02)
        bits = torch.from_numpy(stored.pooled["clip"].view(np.int16)).view(torch.bfloat16)
        assert bits.float().tolist() == as_float32(stored.pooled["clip"]).tolist()
    assert verify(str(output)).problems == []


def test_a_gaze_of_other_scales_is_converted_where_that_is_asked_for(encoded: Encoded, tmp_path: Path) -> None:
    dinov2 = write_encoder(tmp_path / "dinov2", "dinov2", patch=14)
    settings = [f"data={encoded.gaze}", f"encoder.checkpoint={dinov2}", "encoder.scales=28+56+112+224"]
    output = tmp_path / "features"
    done = runs.plainly("encode", *settings, f"output={output}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not output.exists()
    assert "scales 32+64+112+224/16, the encoder reads 28+56+112+224/14; give encoder.scales that" in done.stderr
    encode(*settings, f"output={output}", "convert=coverage", "pooled=frame")
    assert open_features(str(output)).vocabulary.patch_size == 14 and verify(str(output)).problems == []
    assert len(ok_rows(output)) == 5


def test_features_that_are_no_numbers_are_an_outcome(encoded: Encoded, siglip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    loud, output = Path(shutil.copytree(siglip, tmp_path / "loud")), tmp_path / "features"
    weights = load_file(loud / "model.safetensors")
    [norm] = [name for name in weights if name.endswith("post_layernorm.weight")]
    weights[norm] = weights[norm] * 1e6
    save_file(weights, loud / "model.safetensors", {"format": "pt"})
    done = runs.plainly("encode", encoded.settings[0], f"encoder.checkpoint={loud}", f"output={output}")
    assert done.returncode == 1 and "5 not_finite" in done.stdout, done.stderr
    index = pd.read_parquet(output / "index")
    assert set(index["reason"]) == {"not_finite", "unreadable"} and verify(str(output)).problems == []


@pytest.mark.parametrize(
    "change, told",
    [
        ("layers=final", "layers is ['final', 'hidden_1'] there, ['final'] here"),
        ("encoder.attention=frame", "encoder.attention is 'block_causal' there, 'frame' here"),
        ("batch=7", "batch is 8192 there, 7 here"),
    ],
)
def test_an_output_of_other_settings_is_refused_by_name(encoded: Encoded, change: str, told: str) -> None:
    done = runs.plainly("encode", *encoded.settings, f"output={encoded.output}", change)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
    assert runs.tree(encoded.output) == encoded.files


def test_another_encoder_or_gaze_than_it_was_begun_with_is_refused(encoded: Encoded, tmp_path: Path) -> None:
    other = write_encoder(tmp_path / "other", seed=1)
    gaze = Path(shutil.copytree(encoded.gaze, tmp_path / "gaze"))
    (gaze / "dataset.json").write_text((gaze / "dataset.json").read_text().replace("0.04", "0.03"))
    for change, told in (
        (f"encoder.checkpoint={other}", "has other weights than the encoder that output="),
        (f"data={gaze}", "was begun from another gaze dataset, or this one has changed since"),
    ):
        done = runs.plainly("encode", *encoded.settings, f"output={encoded.output}", change)
        assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
    shutil.copytree(encoded.gaze, tmp_path / "moved")
    assert "nothing to do" in encode(*encoded.settings, f"output={encoded.output}", f"data={tmp_path / 'moved'}")


# -- on S3 -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_s3_to_s3_makes_the_bytes_of_local_to_local(encoded: Encoded, bucket: str) -> None:
    for name in runs.tree(encoded.gaze):
        store.publish((encoded.gaze / name).read_bytes(), f"{bucket}/gaze/{name}")
    settings = [f"data={bucket}/gaze", *encoded.settings[1:], f"output={bucket}/features"]
    done = runs.plainly("encode", *settings)
    assert done.returncode == 0, done.stderr
    made = {name: store.read(f"{bucket}/features/{name}") for name in encoded.files if name != "dataset.json"}
    assert made == {name: (encoded.output / name).read_bytes() for name in made}
    assert verify(f"{bucket}/features").problems == []
    assert len(open_features(f"{bucket}/features").index()) == 6


@pytest.mark.parametrize("gone", [pytest.param("index", marks=pytest.mark.slow), "shards"])
def test_what_is_lost_on_s3_is_made_again(encoded: Encoded, bucket: str, gone: str) -> None:
    place = f"{bucket}/again-{gone}"
    settings = [*encoded.settings, f"output={place}"]
    assert runs.plainly("encode", *settings).returncode == 0
    for path in encoded.output.glob(f"{gone}/000001.*"):
        store.remove(f"{place}/{gone}/{path.name}")
    if gone == "shards":  # an index without its tar: verify finds it
        assert verify(place).problems
        store.remove(f"{place}/index/000001.parquet")
    again = runs.plainly("encode", *settings)
    assert again.returncode == 0 and "(3 of 4 shards done before)" in again.stdout, again.stdout
    for path in encoded.output.glob("*/0*.*"):
        assert store.read(f"{place}/{path.parent.name}/{path.name}") == path.read_bytes()
