"""Index files that are merged: the same rows for every reader, at every moment of a merge and wherever it is killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset import indexes, shards
from pipelines.dataset.indexes import INDEX_SCHEMA, Indexes, IndexListing, Span, span_of, span_url
from pipelines.dataset.merging import merge_indexes, take_back
from pipelines.dataset.shards import committed_shards, read_index
from pipelines.dataset.summaries import SUMMARY, read_summary, summary_from_text
from pipelines.errors import PipelineError
from pipelines.inspection.dataset_status import StatusCache, dataset_status
from pipelines.inspection.survey import take_survey
from pipelines.inspection.verify import verify
from pipelines.loading.config import LoaderConfig
from pipelines.loading.loader import ShardLoader
from pipelines.loading.samples import open_samples
from pipelines.storage import store, tables
from pipelines.storage.location import Location
from tests.support import runs, training

SHARDS = 7  # of four clips: two thousands of three, and one left over


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "BLOCK", 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return training.write_dataset(tmp_path_factory.mktemp("merging") / "gaze", clips=4 * SHARDS)


@pytest.fixture
def dataset(whole: str, tmp_path: Path) -> Path:
    """A dataset to change: its index files are its own, the rest is shared."""
    place = tmp_path / "gaze"
    (place / "index").mkdir(parents=True)
    for path in Path(whole).iterdir():
        if path.name != "index":
            (place / path.name).symlink_to(path)
    for path in (Path(whole) / "index").iterdir():
        (place / "index" / path.name).write_bytes(path.read_bytes())
    return place


def merge(place: Path) -> int:
    return merge_indexes(Location(str(place)), INDEX_SCHEMA, range(SHARDS))


def names(place: Path) -> list[str]:
    return sorted(path.stem for path in (place / "index").iterdir())


def rows(place: Path | str) -> pa.Table:
    found = Indexes(Location(str(place)), INDEX_SCHEMA)
    return pa.concat_tables(found.tables(committed_shards(str(place)))).combine_chunks()


def test_names_say_which_shards_a_file_commits() -> None:
    for name, span in {
        "000042.parquet": Span(42, 42),
        "000000-000999.parquet": Span(0, 999),
        "1000000-1000999.parquet": Span(1_000_000, 1_000_999),
        "000009-000001.parquet": None,
        "-000001.parquet": None,
        "notes.txt": None,
    }.items():
        assert span_of(f"/d/index/{name}") == span
        assert span is None or span_url("/d", span) == f"/d/index/{name}"


def test_every_reader_takes_merged_and_single_indexes(dataset: Path, whole: str) -> None:
    def told(url: str) -> list[object]:
        survey, status = take_survey(shards.open_dataset(url)), dataset_status(Location(url), 9, True, StatusCache(), 0)
        loaders = [
            ShardLoader(LoaderConfig(data=[url], global_batch=8, workers=0, window=2, val_fraction=0.3), epochs=1),
            ShardLoader(
                LoaderConfig(data=[url], global_batch=8, workers=2, window=2, cache_mb=9, cache_dir=f"{dataset}.c")
            ),
        ]
        return [
            [survey.ok, survey.committed, survey.tokens.tolist(), survey.position.tolist()],
            [status.state, status.shards, status.clips, status.outcomes, verify(url).problems],
            [(loader.fingerprint, loader.row_fingerprint(), loader.samples) for loader in loaders],
            [(batch.ids.tolist(), batch.keys, batch.frames.sum().item()) for batch in loaders[0]],
            [open_samples(url).table.to_pylist(), rows(url).to_pylist(), shards.open_dataset(url).index().to_dict()],
        ]

    before = told(whole)
    assert merge(dataset) == 2 and names(dataset) == ["000000-000002", "000003-000005", "000006"]
    assert told(str(dataset)) == before
    assert merge(dataset) == 0
    assert len(pq.read_table(dataset / "index")) == 4 * SHARDS, "also pandas, DuckDB and the like"


def test_ranks_read_the_same_from_merged_and_single_indexes(dataset: Path, whole: str) -> None:
    merge(dataset)
    seen = set()
    for url, world in ((whole, 1), (str(dataset), 1), (whole, 2), (str(dataset), 4)):
        config = LoaderConfig(data=[url], global_batch=4, workers=0, window=2)
        parts = zip(*(ShardLoader(config, rank=rank, world=world, epochs=1) for rank in range(world)), strict=True)
        steps = [part for step in parts for part in step]
        ids = [id_ for part in steps for id_ in part.ids.tolist()]
        seen.add((*ids, *(key for part in steps for key in part.keys)))
    assert len(seen) == 1


def test_a_reader_that_is_at_work_follows_a_merge(dataset: Path) -> None:
    found = Indexes(Location(str(dataset)), INDEX_SCHEMA)
    before = found.table(1)
    merge(dataset)
    assert found.table(1).equals(before)
    take_back(Location(str(dataset)), INDEX_SCHEMA, [1])
    assert found.table(2) is not None
    with pytest.raises(FileNotFoundError):
        Indexes(Location(str(dataset)), INDEX_SCHEMA).table(1)


def killed_before(change: int, action: Callable[[], object]) -> bool:
    """Whether a process of its own that does this was killed before its change number `change` to the disk."""
    pid = os.fork()
    if pid == 0:
        left = [change]

        def counting(change_disk: Callable[..., object]) -> Callable[..., object]:
            def changed(*arguments: object, **named: object) -> object:
                if not left[0]:
                    os._exit(9)
                left[0] -= 1
                return change_disk(*arguments, **named)

            return changed

        Path.replace, Path.unlink = counting(Path.replace), counting(Path.unlink)  # type: ignore[method-assign, assignment]
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_a_merge_may_be_killed_at_every_moment(dataset: Path, whole: str) -> None:
    all_rows, summary = rows(whole), read_summary(Indexes(Location(whole), INDEX_SCHEMA), SHARDS).to_text()
    merge(dataset)
    undisturbed = runs.tree(dataset / "index")
    for moment in range(99):
        for path in (dataset / "index").iterdir():
            path.unlink()
        for path in (Path(whole) / "index").iterdir():
            (dataset / "index" / path.name).write_bytes(path.read_bytes())
        killed = killed_before(moment, lambda: merge(dataset))
        assert committed_shards(str(dataset)) == list(range(SHARDS)) and rows(dataset).equals(all_rows)
        assert read_summary(Indexes(Location(str(dataset)), INDEX_SCHEMA), SHARDS).to_text() == summary
        store.remove_temporaries(str(dataset / "index"))
        merge(dataset)
        assert runs.tree(dataset / "index") == undisturbed
        if not killed:
            break
    assert moment == 2 * (1 + 1 + 3), "of each thousand: publish, tidy up, and remove three"


def test_taking_back_may_be_killed_at_every_moment(dataset: Path, whole: str) -> None:
    merge(dataset)
    merged = runs.tree(dataset / "index")
    others = rows(whole).filter(pa.compute.is_in(rows(whole)["shard"], pa.array([0, 2, 3, 4, 5], pa.int32())))
    for moment in range(99):
        killed = killed_before(moment, lambda: take_back(Location(str(dataset)), INDEX_SCHEMA, [1, 6]))
        kept = rows(dataset).filter(pa.compute.is_in(rows(dataset)["shard"], others["shard"]))
        assert kept.equals(others), "what was not taken back stayed all along"
        if not killed:
            break
    store.remove_temporaries(str(dataset / "index"))
    assert names(dataset) == ["000000", "000002", "000003-000005"]
    assert (dataset / "index/000000.parquet").read_bytes() == Path(whole, "index/000000.parquet").read_bytes()
    for shard in (1, 6):
        (dataset / f"index/{shard:06d}.parquet").write_bytes(Path(whole, f"index/{shard:06d}.parquet").read_bytes())
    merge(dataset)
    assert runs.tree(dataset / "index") == merged


def test_a_shard_that_was_made_again_counts_and_not_what_was_merged(dataset: Path) -> None:
    """A job that merges late must not bring back what another has taken back and made anew meanwhile."""
    merge(dataset)
    anew = read_index(str(dataset), 1).to_pandas().assign(tokens=7)
    shards.store.publish(tables.to_bytes(anew, INDEX_SCHEMA), shards.index_url(str(dataset), 1))
    assert set(read_index(str(dataset), 1)["tokens"].to_pylist()) == {7}
    assert merge(dataset) == 1 and "000001" not in names(dataset)
    assert set(read_index(str(dataset), 1)["tokens"].to_pylist()) == {7}


def test_a_merged_index_that_others_wrote_again_is_read_all_the_same(dataset: Path, whole: str) -> None:
    merge(dataset)
    place, before = dataset / "index/000000-000002.parquet", open_samples(whole).summary.to_text()
    assert pq.read_metadata(place).metadata[SUMMARY.encode()]
    pq.read_table(place).to_pandas().to_parquet(place)
    assert SUMMARY.encode() not in pq.read_metadata(place).metadata
    assert rows(dataset).equals(rows(whole)) and open_samples(str(dataset)).summary.to_text() == before
    assert verify(str(dataset)).problems == []


def test_what_is_damaged_is_told_in_one_line(dataset: Path) -> None:
    merge(dataset)
    place = dataset / "index/000000-000002.parquet"
    right = place.read_bytes()
    summary = pq.read_metadata(place).metadata[SUMMARY.encode()]
    for data in (right[:-1], right[:1000], right.replace(summary[-8:], b"AAAAAAAA", 1)):
        place.write_bytes(data)
        problems = verify(str(dataset)).problems
        assert problems and all(str(place) in problem and "\n" not in problem for problem in problems), problems
    place.write_bytes(right[:-1])
    with pytest.raises(PipelineError, match="damaged, or not an index") as error:
        open_samples(str(dataset))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="summary"):
        text = summary_from_text(summary, 3)
        summary_from_text(type(text)(**text.__dict__ | {"samples": text.samples + 1}).to_text(), 3)


def test_a_listing_knows_the_file_that_counts(dataset: Path) -> None:
    merge(dataset)
    (dataset / "index/000001.parquet").write_bytes(b"")
    listing = IndexListing(str(dataset))
    counts = [listing.file_of(shard) for shard in range(SHARDS + 1)]
    assert [None if file is None else tuple(file.span) for file in counts] == [
        (0, 2), (1, 1), (0, 2), (3, 5), (3, 5), (3, 5), (6, 6), None,
    ]  # fmt: skip


def test_a_bucket_is_merged_and_read_as_a_folder(dataset: Path, whole: str, bucket: str) -> None:
    for path in sorted(dataset.rglob("*.*")):
        if path.is_file():
            store.publish(path.read_bytes(), f"{bucket}/gaze/{path.relative_to(dataset)}")
    url = Location(f"{bucket}/gaze")
    assert merge_indexes(url, INDEX_SCHEMA, range(SHARDS)) == 2 == merge(dataset)
    assert [file.entry.url.name for file in IndexListing(url).files] == [f"{name}.parquet" for name in names(dataset)]
    assert store.read(span_url(url, Span(0, 2))) == Path(span_url(str(dataset), Span(0, 2))).read_bytes()
    assert rows(url).equals(rows(whole)) and len(open_samples(url)) == 4 * SHARDS
    take_back(url, INDEX_SCHEMA, [1])
    assert committed_shards(url) == [0, 2, 3, 4, 5, 6]
