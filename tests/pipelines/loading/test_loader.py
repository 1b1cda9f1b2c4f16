"""Loading: every sample where the order says, whatever the ranks and workers, and nothing that is not checked."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from autogaze.gaze import Gaze
from pipelines.corpus.manifest import MANIFEST_SCHEMA as MANIFEST
from pipelines.corpus.plan import ClipConfig, frame_numbers
from pipelines.corpus.scan import probe_object
from pipelines.corpus.videos import local_copy
from pipelines.dataset import shards
from pipelines.dataset.frames import decode_frames, encode_frames
from pipelines.dataset.shards import Outcome, build_shard, commit_shard
from pipelines.errors import PipelineError
from pipelines.loading import loader as loader_module
from pipelines.loading.config import LoaderConfig
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import Batch, BatchRequest, Reading
from pipelines.loading.samples import open_samples
from pipelines.storage import store
from pipelines.train.config import PolicyTrainConfig
from pipelines.train.identity import data_fingerprint
from pipelines.video.base import DecodeConfig
from pipelines.video.decode import decode_clips, decoder_fingerprint
from pipelines.video.isolated import IsolatedDecoder
from tests.support import runs
from tests.support.plain_plan import make_plan, plan_bytes

T = 2


def picture(clip: str) -> np.ndarray:
    """The frames of a clip: uint8 [T, 224, 224, 3], of its own colour."""
    colour = np.frombuffer(hashlib.sha256(clip.encode()).digest()[:3], np.uint8)
    frames = np.broadcast_to(colour, (T, 224, 224, 3)).copy()
    frames[1, ::7] //= 2
    return frames


def gaze_of(clip: str) -> Gaze:
    token = int(hashlib.sha256(clip.encode()).hexdigest(), 16) % 265
    return Gaze.from_lists([[[token], []]], losses=[[[0.5], []]], initial=[[1.0, 0.0]])


def write_dataset(url: str, manifest: pd.DataFrame, frames: str = "jpeg", tiles: str = "whole", **about: Any) -> str:
    """What preprocess would leave, in shards of 5; one clip in seven is a failed one."""
    plan = make_plan(manifest, "/v", ClipConfig(frames=T, tiles=tiles), 5)
    store.publish(plan_bytes(plan), f"{url}/plan.parquet")
    for shard, rows in plan.groupby("shard"):
        made = [
            Outcome(reason="decode_error", detail="")
            if int(hashlib.sha256(clip.encode()).hexdigest(), 16) % 7 == 0
            else Outcome(
                gaze_of(clip), [*encode_frames(picture(clip), frames, 90), ("targets.npz", f"of {clip}".encode())]
            )
            for clip in rows["clip"]
        ]
        commit_shard(url, int(shard), *build_shard(rows.reset_index(drop=True), made, 0.5))
    facts = {
        "config": {"clip": {"frames": T}, "frames": frames, "decoder": "pyav"},
        "plan": hashlib.sha256(plan_bytes(plan)).hexdigest(),
        "shards": int(plan["shard"].max()) + 1,
        "vocabulary": {"scales": [32, 64, 112, 224], "patch_size": 16},
        "software": {"decoder": decoder_fingerprint(DecodeConfig())},
    } | about
    store.publish(pd.Series(facts).to_json().encode(), f"{url}/dataset.json")
    return url


def invented(videos: int) -> pd.DataFrame:
    """A manifest of videos that do not exist, of 1 to 9 clips each."""
    facts = {"offset": 0, "bytes": 9, "width": 64, "height": 48, "rotation": 0, "fps": 25.0, "duration": 1.0}
    facts |= {"version": "1", "fingerprint": "f", "container": "mp4", "codec": "h264", "status": "ok", "reason": None}
    rows = [
        facts | {"uri": f"/v/{n}.mp4", "object": f"/v/{n}.mp4", "frames": T * (1 + n % 9), "detail": None}
        for n in range(videos)
    ]
    return pd.DataFrame(rows, columns=MANIFEST.names)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(str(tmp_path_factory.mktemp("loader") / "gaze"), invented(12))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(str(tmp_path_factory.mktemp("loader") / "raw"), invented(5), frames="raw")


def config(*data: str, **settings: Any) -> LoaderConfig:
    return LoaderConfig(data=list(data), **{"global_batch": 8, "window": 3, "workers": 0, "seed": 5} | settings)


def damage(url: str, clip: str) -> str:
    """Flip one bit in the middle of a clip's bytes; the tar's path."""
    row = shards.open_dataset(url).index().set_index("clip").loc[clip]
    tar = shards.tar_url(url, int(row["shard"]))
    data = bytearray(store.read(tar))
    data[int(row["offset"]) + int(row["size"]) // 2] ^= 1
    store.publish(bytes(data), tar)
    return tar


def digest(stream: list[list[Batch]]) -> str:
    """Hash of what the ranks (outer) were given, in global order: ids, pixels, gaze, repeats."""
    told = hashlib.sha256()
    for parts in zip(*stream, strict=True):
        assert len({(part.step, part.epoch, len(part.ids)) for part in parts}) == 1
        for values in (
            np.concatenate([part.ids for part in parts]),
            torch.cat([part.frames for part in parts]).numpy(),
            np.array([part.gaze[b].tokens.tolist() for part in parts for b in range(part.gaze.clips)]),
            np.concatenate([part.repeat for part in parts]),
        ):
            told.update(values.tobytes())
    return told.hexdigest()


def ids(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.ids]


# -- what is delivered -----------------------------------------------------------------------------------------------


def test_each_sample_comes_with_its_own_frames_and_gaze_once_an_epoch(dataset: str, other: str) -> None:
    index = [shards.open_dataset(url).index() for url in (dataset, other)]
    clips = [clip for rows in index for clip in rows[rows["outcome"] == "ok"]["clip"]]
    loader = ShardLoader(config(dataset, other, workers=2, targets=True), epochs=2)
    assert loader.samples == len(clips) and loader.steps_per_epoch == -(-len(clips) // 8)
    assert np.concatenate(list(loader.ids())).tolist() == list(range(len(clips)))
    batches = list(loader)
    assert [batch.step for batch in batches] == list(range(2 * loader.steps_per_epoch))
    for batch in batches:
        assert batch.epoch == batch.step // loader.steps_per_epoch and batch.skipped == []
        assert batch.frames.dtype == torch.uint8 and batch.frames.shape == (8, T, 224, 224, 3)
        assert batch.targets is not None
        for b, id_ in enumerate(batch.ids):
            clip, raw = clips[id_], id_ >= (index[0]["outcome"] == "ok").sum()
            assert batch.keys[b] == clip and batch.targets[b] == f"of {clip}".encode()
            stored = decode_frames(dict(encode_frames(picture(clip), "raw" if raw else "jpeg", 90)))
            np.testing.assert_array_equal(batch.frames[b], stored)
            assert batch.gaze.frames(b) == gaze_of(clip).frames(0)
    for epoch in range(2):
        mine = [batch for batch in batches if batch.epoch == epoch]
        fresh = [int(i) for batch in mine for i in batch.ids[~batch.repeat]]
        assert sorted(fresh) == list(range(len(clips)))
        again = [int(i) for batch in mine for i in batch.ids[batch.repeat]]
        assert again == ids(mine)[: len(again)]
    assert ids(batches[: loader.steps_per_epoch]) != ids(batches[loader.steps_per_epoch :])


def test_order_and_bytes_are_the_same_for_any_ranks_and_workers(dataset: str, other: str, tmp_path: Path) -> None:
    digests = set()
    ways = [(0, 0, 0), (2, 0, 0), (0, 2, 0), (2, 2, 64)]
    for world, (threads, processes, cache_mb) in [*((1, way) for way in ways), (2, ways[3]), (4, ways[1])]:
        settings = config(dataset, other, workers=threads, cache_mb=cache_mb, cache_dir=str(tmp_path))
        settings.weights = [1.0, 0.5]
        loaders = [ShardLoader(settings, rank=rank, world=world, epochs=2) for rank in range(world)]
        streams = [DataLoader(ldr, batch_size=None, num_workers=processes) if processes else ldr for ldr in loaders]
        digests.add(digest([list(stream) for stream in streams]))
    assert len(digests) == 1


def test_resuming_gives_what_was_left_and_opens_no_shard_before(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(ShardLoader(config(dataset, window=1, global_batch=4), epochs=2))
    opened: list[str] = []
    read = store.read

    def counted(url: str, *where: Any) -> bytes:
        opened.extend([url] if url.endswith(".tar") else [])
        return read(url, *where)

    monkeypatch.setattr(store, "read", counted)
    for done in (1, len(whole) // 2 - 1, len(whole) // 2 + 1, len(whole)):  # either side of an epoch's end
        opened.clear()
        rest = list(ShardLoader(config(dataset, window=1, global_batch=4), consumed=4 * done, epochs=2))
        assert digest([rest]) == digest([whole[done:]])
        wanted = {key for batch in whole[done:] for key in batch.keys}
        index = shards.open_dataset(dataset).index().set_index("clip")
        assert set(opened) == {shards.tar_url(dataset, int(index.loc[key, "shard"])) for key in wanted}
    assert set(opened) == set()  # all was done


def test_a_split_never_parts_the_clips_of_a_video(dataset: str, tmp_path: Path) -> None:
    samples = open_samples(dataset)
    videos = np.array([re.sub(r"-\d{6,}$", "", name) for name in samples.table["clip"].to_pylist()])
    train, val = (samples.split(name, 0.3) for name in ("train", "val"))
    assert sorted([*train, *val]) == list(range(len(samples))) and len(train) and len(val)
    assert not set(videos[train]) & set(videos[val])
    assert set(val) < set(samples.split("val", 0.6))
    assert len(samples.split("val", 0.0)) == 0
    many = write_dataset(str(tmp_path / "many"), invented(150).assign(frames=T))
    assert 0.2 < len(open_samples(many).split("val", 0.25)) / len(open_samples(many)) < 0.3
    moved = invented(150).assign(frames=T)
    moved["uri"] = "s3://elsewhere" + moved["uri"]
    plan = make_plan(moved, "s3://elsewhere/v", ClipConfig(frames=T), 5)
    assert set(plan["clip"]) >= set(open_samples(many).table["clip"].to_pylist())  # so moving a store moves no video
    held = ShardLoader(config(dataset, val_fraction=0.3), split="val", epochs=1)
    assert set(ids(list(held))) == set(val.tolist()) == set(np.concatenate(list(held.ids())).tolist())


def test_neighbours_are_read_in_one_go(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = store.read
    monkeypatch.setattr(store, "read", lambda url, *where: reads.append(url) or read(url, *where))
    loader = ShardLoader(config(dataset, window=1, workers=1, prefetch=4), epochs=1)
    samples = len(list(loader)) * 8
    assert samples > 3 * sum(url.endswith(".tar") for url in reads) > 0


@pytest.mark.slow
def test_what_is_read_ahead_is_bounded_in_bytes(dataset: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(dataset, other, workers=2, prefetch=2)
    whole = digest([list(ShardLoader(settings, epochs=2))])
    blocks: list[list[int]] = []
    fetch = Reading.fetch

    def seen(reading: Reading, steps: list[BatchRequest]) -> list[Any]:
        fetched = fetch(reading, steps)
        blocks.append([sum(sample.row["size"] for sample in samples) for _, samples in fetched])
        return fetched

    monkeypatch.setattr(Reading, "fetch", seen)
    for limit in (1, 1 << 20, 1 << 40):
        monkeypatch.setattr(loader_module, "_BLOCK_BYTES", limit)
        blocks.clear()
        assert digest([list(ShardLoader(settings, epochs=2))]) == whole
        assert all(sum(block[:-1]) < limit and len(block) <= 8 for block in blocks)
        assert all(sum(block) >= limit or len(block) == 8 for block in blocks[:-1]), "and no smaller than need be"


# -- bad samples -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_named_and_stops_the_loader(tmp_path: Path) -> None:
    url = write_dataset(str(tmp_path / "gaze"), invented(6))
    samples = open_samples(url)
    clip = samples.row(3)["clip"]
    tar = damage(url, clip)
    for workers in (0, 2):
        with pytest.raises(PipelineError) as error:
            list(ShardLoader(config(url, workers=workers), epochs=1))
        assert f"{tar}: {clip} (sample 3): its bytes differ from the hash" in str(error.value)
        assert f"autogaze verify {url}" in str(error.value) and "\n" not in str(error.value)


def test_skipped_samples_are_named_and_replaced_alike_for_any_ranks(tmp_path: Path) -> None:
    url = write_dataset(str(tmp_path / "gaze"), invented(8))
    good = list(ShardLoader(config(url), epochs=1))
    order = [int(i) for batch in good for i in batch.ids]
    bad = order[7], order[8], order[-1]  # neighbours across a batch's end, and the epoch's last
    clips = open_samples(url).table["clip"].to_pylist()
    for id_ in bad:
        damage(url, clips[id_])
    epoch = order[: ShardLoader(config(url)).samples]
    expected = list(order)
    for at, id_ in enumerate(order):
        if id_ in bad:
            place = epoch.index(id_)
            around = epoch[place + 1 :] + epoch[:place]
            expected[at] = next(i for i in around if i not in bad)
    digests = set()
    for world in (1, 2, 4):
        streams = [
            list(ShardLoader(config(url, bad_samples="skip", workers=2), rank=rank, world=world, epochs=1))
            for rank in range(world)
        ]
        digests.add(digest(streams))
        met = [ids(list(parts)) for parts in zip(*streams, strict=True)]
        assert [i for part in met for i in part] == expected
        skipped = [skip for stream in streams for batch in stream for skip in batch.skipped]
        assert {skip.id for skip in skipped} == set(bad) and {skip.clip for skip in skipped} == {clips[i] for i in bad}
        assert len(skipped) == sum(i in bad for i in order)
        marked = [i for parts in zip(*streams, strict=True) for part in parts for i in part.repeat]
        assert all(marked[at] for at, id_ in enumerate(order) if id_ in bad)
    assert len(digests) == 1


def test_a_missing_shard_is_bad_samples_and_a_wholly_bad_dataset_is_an_error(tmp_path: Path) -> None:
    url = write_dataset(str(tmp_path / "gaze"), invented(6))
    store.remove(shards.tar_url(url, 0))
    with pytest.raises(PipelineError, match="its shard is missing; run: autogaze verify"):
        list(ShardLoader(config(url), epochs=1))
    batches = list(ShardLoader(config(url, bad_samples="skip"), epochs=1))
    gone = open_samples(url).table["shard"].to_numpy() == 0
    assert {skip.id for batch in batches for skip in batch.skipped} == set(np.flatnonzero(gone).tolist())
    for shard in range(open_samples(url).shards):
        store.remove(shards.tar_url(url, shard))
    with pytest.raises(PipelineError, match="samples in a row cannot be read"):
        list(ShardLoader(config(url, bad_samples="skip"), epochs=1))


# -- frames that are not stored --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", [pytest.param("whole", marks=pytest.mark.slow), "native"])
def test_frames_not_stored_are_decoded_again(tmp_path: Path, make_video: Callable[..., Path], tiles: str) -> None:
    rows = []
    for number, size in enumerate([(300, 250), (96, 64)]):
        path = make_video(tmp_path / "videos" / f"{number}.mp4", frames=6 + number, size=size, seed=number)
        with IsolatedDecoder(DecodeConfig()) as decoder:
            [entry] = store.list_objects(str(path))
            rows += probe_object(entry, decoder)
    url = write_dataset(str(tmp_path / "gaze"), pd.DataFrame(rows), frames="none", tiles=tiles)
    plan = pd.read_parquet(tmp_path / "gaze" / "plan.parquet").set_index("clip")
    from autogaze.tiling import TileGrid

    for workers in (0, 2):
        for batch in ShardLoader(config(url, workers=workers, global_batch=3), epochs=1):
            for key, frames in zip(batch.keys, batch.frames.numpy(), strict=True):
                row = plan.loc[key]
                grid = TileGrid(row["height"], row["width"]) if row["tile"] else None
                numbers = frame_numbers(row["start"], row["stride"], T, row["video_frames"]).tolist()
                with local_copy(row["object"], 0, row["bytes"]) as source:
                    native = None if grid is None else (grid.height, grid.width)
                    [(_, decoded)] = decode_clips(source, [numbers], DecodeConfig(), native)
                assert isinstance(decoded, np.ndarray)
                wanted = decoded if grid is None else grid.cut(decoded, [grid.parse(row["tile"])])[0]
                np.testing.assert_array_equal(frames, wanted)
    assert not decoder_children()
    changed = tmp_path / "videos" / "1.mp4"
    changed.write_bytes(changed.read_bytes()[:-1] + b"!")
    batches = list(ShardLoader(config(url, bad_samples="skip", global_batch=3), epochs=1))
    gone = {key for key, row in plan.iterrows() if row["object"] == str(changed)}
    skipped = [skip for batch in batches for skip in batch.skipped]
    assert skipped and {skip.clip for skip in skipped} <= gone
    assert all("not those that were planned" in skip.reason for skip in skipped)
    changed.unlink()
    changed.mkdir()
    batches = list(ShardLoader(config(url, bad_samples="skip", global_batch=3), epochs=1))
    skipped = [skip for batch in batches for skip in batch.skipped]
    assert skipped and all("unreadable (a folder, not a file)" in skip.reason for skip in skipped)


def test_other_decoders_than_the_datasets_are_refused(tmp_path: Path) -> None:
    url = write_dataset(str(tmp_path / "g"), invented(2), frames="none", software={"decoder": "pyav-1/x"})
    with pytest.raises(PipelineError, match=r"was decoded by pyav-1/x, here is pyav-.*frames=jpeg"):
        ShardLoader(config(url))


# -- where it runs ---------------------------------------------------------------------------------------------------


def decoder_children() -> list[str]:
    return [line for line in runs.descendants(os.getpid()).values() if "pipelines.video" in line]


@pytest.mark.parametrize("end", [pytest.param("finished", marks=pytest.mark.slow), "abandoned", "failed"])
def test_threads_end_with_the_iterator(tmp_path: Path, end: str) -> None:
    url = write_dataset(str(tmp_path / "gaze"), invented(6))
    before = set(threading.enumerate())
    if end == "failed":
        damage(url, open_samples(url).row(0)["clip"])
    stream = iter(ShardLoader(config(url, workers=3, window=100), epochs=1 if end != "abandoned" else None))
    if end == "abandoned":
        next(stream)
        assert any(thread.name.startswith("autogaze") for thread in threading.enumerate())
        del stream
    elif end == "failed":
        with pytest.raises(PipelineError):
            list(stream)
    else:
        list(stream)
    gc.collect()
    assert set(threading.enumerate()) <= before


@pytest.mark.slow
def test_it_runs_without_ray() -> None:
    code = "import sys, pipelines.loading.loader; assert not any(name.split('.')[0] == 'ray' for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, check=True)


@pytest.mark.parametrize(
    ("workers", "processes", "cache_mb"),
    [(2, 0, 1), *(pytest.param(*way, marks=pytest.mark.slow) for way in ((0, 0, 0), (2, 1, 64)))],
)
def test_s3_gives_what_local_gives_by_ranges_and_through_the_cache(
    bucket: str, dataset: str, tmp_path: Path, workers: int, processes: int, cache_mb: int
) -> None:
    for path in Path(dataset).rglob("*.*"):
        store.publish(path.read_bytes(), f"{bucket}/gaze/{path.relative_to(dataset)}")
    local = digest([list(ShardLoader(config(dataset), epochs=1))])
    cache = tmp_path / "cache"
    settings = config(f"{bucket}/gaze", workers=workers, cache_mb=cache_mb, cache_dir=str(cache))
    loader = ShardLoader(settings, epochs=1)
    # Forked children of a process that has spoken to S3 inherit the client's locks, and not its threads.
    spawned = {"num_workers": processes, "multiprocessing_context": "spawn"}
    stream = DataLoader(loader, batch_size=None, **spawned) if processes else loader
    assert digest([list(stream)]) == local
    kept = [path.stat().st_size for path in cache.iterdir() if path.is_file()] if cache.is_dir() else []
    assert sum(kept) <= cache_mb << 20


# -- the cache -------------------------------------------------------------------------------------------------------


def test_what_the_cache_holds_needs_no_store(tmp_path: Path) -> None:
    url = write_dataset(str(tmp_path / "gaze"), invented(6))
    settings = config(url, cache_mb=64, cache_dir=str(tmp_path / "cache"))
    loaders = [ShardLoader(settings, epochs=1) for _ in range(2)]
    first = digest([list(loaders[0])])
    for tar in (tmp_path / "gaze").rglob("*.tar"):
        tar.unlink()
    assert digest([list(loaders[1])]) == first


def test_a_damaged_cache_entry_is_read_anew_from_the_store(dataset: str, tmp_path: Path) -> None:
    settings = config(dataset, cache_mb=64, cache_dir=str(tmp_path))
    right = digest([list(ShardLoader(settings, epochs=1))])
    tars = [path for path in tmp_path.iterdir() if path.is_file() and not path.read_bytes().startswith(b"ARROW1")]
    assert tars
    for path in tars:
        data = bytearray(path.read_bytes())
        data[1000::100] = bytes(len(data[1000::100]))
        path.write_bytes(data)
    assert digest([list(ShardLoader(settings, epochs=1))]) == right


# -- what cannot work ------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_told_in_one_line(dataset: str, tmp_path: Path) -> None:
    empty = write_dataset(str(tmp_path / "empty"), invented(3).assign(status="failed", reason="no_frames"))
    for rows in pd.read_parquet(tmp_path / "empty" / "plan.parquet").groupby("shard"):
        failed = [Outcome(reason="no_frames", detail="")] * len(rows[1])
        commit_shard(empty, int(rows[0]), *build_shard(rows[1].reset_index(drop=True), failed, 0.5))
    half = write_dataset(str(tmp_path / "half"), invented(9))
    store.remove(shards.index_url(half, 1))
    longer = write_dataset(str(tmp_path / "longer"), invented(3))
    about = (tmp_path / "longer" / "dataset.json").read_text()
    (tmp_path / "longer" / "dataset.json").write_text(about.replace('"frames":2', '"frames":3'))
    finer = write_dataset(str(tmp_path / "finer"), invented(3), vocabulary={"scales": [224], "patch_size": 16})
    told = {
        "data= is missing": lambda: ShardLoader(config()),
        "no dataset here": lambda: ShardLoader(config(str(tmp_path / "nothing"))),
        "no clip of it is ok": lambda: ShardLoader(config(empty)),
        "shards are committed; finish it with autogaze preprocess": lambda: ShardLoader(config(half)),
        "differ in their frames per clip: 2 and 3": lambda: ShardLoader(config(dataset, longer)),
        "differ in their patch vocabulary": lambda: ShardLoader(config(dataset, finer)),
        "split=val: no sample is in it": lambda: ShardLoader(config(dataset), split="val"),
        "global_batch=8: 3 ranks cannot share it evenly; use 6 or 9": lambda: ShardLoader(config(dataset), world=3),
        "consumed=12: must be a multiple of global_batch=8": lambda: ShardLoader(config(dataset), consumed=12),
        "weights: 2 for 1 datasets": lambda: ShardLoader(config(dataset, weights=[1.0, 2.0])),
        "bad_samples=ignore: must be one of fail, skip": lambda: ShardLoader(config(dataset, bad_samples="ignore")),
        "val_fraction=1.0: must be 0 or more, and less than 1": lambda: ShardLoader(config(dataset, val_fraction=1.0)),
    }
    for line, act in told.items():
        with pytest.raises(PipelineError) as error:
            act()
        assert line in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_a_position_is_tied_to_the_data_it_was_counted_over(dataset: str, other: str) -> None:
    prints = {
        ShardLoader(config(*data, **settings)).fingerprint
        for data, settings in [
            ((dataset,), {}), ((dataset,), {"seed": 6}), ((dataset,), {"global_batch": 4}),
            ((dataset, other), {}), ((other, dataset), {}), ((dataset,), {"window": 2}),
        ]
    }  # fmt: skip
    assert len(prints) == 6
    assert ShardLoader(config(dataset, workers=2), rank=1, world=2).fingerprint in prints


def test_runs_of_older_versions_know_their_data_again(dataset: str, other: str, tmp_path: Path) -> None:
    """Their fingerprint was of the rows of all samples; that of a new run is of what indexes say of them."""
    loader = ShardLoader(config(dataset, other, val_fraction=0.1))
    plain = hashlib.sha256(json.dumps([5, 3, 8, "train", 0.1, []]).encode())
    for url in (dataset, other):
        table = open_samples(url).table
        plain.update(hashlib.sha256(table["shard"].to_numpy().astype("<i4").tobytes()).digest())
        plain.update(hashlib.sha256(b"".join(table["sha256"].to_pylist())).digest())
    assert loader.row_fingerprint() == plain.hexdigest()[:16] != loader.fingerprint
    run = PolicyTrainConfig(run=str(tmp_path))
    assert data_fingerprint(run, loader) == loader.fingerprint
    for begun_with in (loader.row_fingerprint(), loader.fingerprint):
        (tmp_path / "config.yaml").write_text(f"config: {{}}\ndata_fingerprint: {begun_with}\n")
        assert data_fingerprint(run, loader) == begun_with
