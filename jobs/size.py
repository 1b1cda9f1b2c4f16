"""`autogaze size input=MANIFEST nodes=4 cores=64`: how long preprocess would take, what is slowest, how many nodes.

Rates are measured here in half a minute, or read from a file that another machine wrote. The cluster is simulated, by
the rules that the job runs by (pipelines/sizing). Nothing is made.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.cpus import usable_cpus
from jobs.threads import one_torch_thread
from jobs.wording import byte_size, measured, plural
from pipelines.corpus.plan import ClipConfig, check_clip_config
from pipelines.dataset.frames import FrameStorage
from pipelines.dataset.shards import ShardConfig
from pipelines.errors import PipelineError
from pipelines.gazing.settings import GazeSettings, check_gaze
from pipelines.inspection.liveness import clock
from pipelines.preprocess.config import PreprocessConfig, WorkersConfig
from pipelines.preprocess.workers import cluster_device
from pipelines.schema import check, section, setting
from pipelines.video.base import DecoderName

if TYPE_CHECKING:
    from pipelines.sizing.amounts import Amounts
    from pipelines.sizing.predict import Prediction
    from pipelines.sizing.rates import Rates
    from pipelines.sizing.trials import Trial
    from pipelines.sizing.workload import Workload

_MOST_NODES = 10_000
_GBIT = 1e9 / 8
_FULL = 0.85  # cores that are busier have no room for more workers
_UNLIMITED = 1e18  # bytes a second


@dataclass(kw_only=True)
class SizeConfig(GazeSettings):
    """Predict how long preprocess takes on a cluster, and how many nodes keep a deadline."""

    usage: ClassVar[str] = "autogaze size input=manifest.parquet nodes=4 cores=64 days=7"

    input: str = setting(
        "", "manifest of autogaze scan, or the folder of a dataset; '' = as hours= and the keys after it say",
        place="location",
    )  # fmt: skip
    hours: float = setting(0.0, "hours of video, where there is no manifest", at_least=0)
    minutes: float = setting(10.0, "length of a video, with hours=", more_than=0)
    resolution: str = setting("1280x720", "width x height of the videos, with hours=")
    codec: Literal["h264", "hevc", "vp9", "av1"] = setting("h264", "of the videos, with hours=")
    fps: float = setting(25.0, "frames a second of the videos, with hours=", more_than=0)
    mbit: float = setting(4.0, "million bits a second of the videos, with hours=", more_than=0)
    footage: str = setting(
        "", "a video file whose pictures are encoded so, to measure on ('' = drawn ones)", place="location"
    )
    clip: ClipConfig = section(ClipConfig)
    shard: ShardConfig = section(ShardConfig)
    decoder: DecoderName = setting("pyav", "pyav, decord, torchcodec or torchcodec-cuda")
    frames: FrameStorage = setting("jpeg", "store frames as jpeg, raw (npy) or none")
    jpeg_quality: int = setting(90, "1-95, for frames=jpeg", at_least=1, at_most=95)
    workers: WorkersConfig = section(WorkersConfig)
    nodes: int = setting(1, "of the cluster (0 = as many as days= takes)", at_least=0)
    cores: int = setting(0, "of a node (0 = this machine's)", at_least=0)
    gpus: int = setting(0, "of a node", at_least=0)
    node_gbit: float = setting(10.0, "billion bits a second that a node receives, and sends", more_than=0)
    store_gbit: float = setting(0.0, "that the store gives to all nodes together, and takes (0 = no limit)", at_least=0)
    days: float = setting(0.0, "say how many nodes take at most so long (0 = do not)", at_least=0)
    rates: str = setting(
        "", "file of rates: read, or where there is none measured here and written ('' = measured here)",
        place="location",
    )  # fmt: skip
    measure_s: float = setting(10.0, "seconds to measure decoding; the rest takes about as long", more_than=0)
    format: Literal["text", "json"] = setting("text", "text, or json")


def check_size_config(config: SizeConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check(config)
    if bool(config.input) == bool(config.hours):
        what = "is missing" if not config.input else "and hours= are both given: give one of them"
        raise PipelineError(f"input= {what}" + ("" if config.input else f": {config.usage}, or hours=1000 without one"))
    if not config.nodes and not config.days:
        raise PipelineError("nodes=0: asks how many nodes keep a deadline; give days=, or nodes=")
    check_clip_config(config.clip)
    check_gaze(config)
    picture_size(config.resolution)


def picture_size(text: str) -> tuple[int, int]:
    """(width, height) of resolution=. Raises PipelineError."""
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(size) < 16 or size[0] % 2 or size[1] % 2:
        raise PipelineError(f"resolution={text}: must be width x height, both even, such as 1280x720")
    return size


def run(config: SizeConfig, console: Console) -> int:
    """Measure or read rates, simulate, and print what came out; the exit status."""
    check_size_config(config)
    cores = config.cores or usable_cpus()
    # Here, not above: a device that the cluster has not is refused at once.
    device = cluster_device(config.device, config.gpus * (config.nodes or 1), config.nodes or 1)
    from pipelines.sizing.amounts import amounts
    from pipelines.sizing.predict import Predictor
    from pipelines.sizing.rules import Cluster

    job = preprocess_config(config)
    workload = _workload(config, job.shard_clips)
    with one_torch_thread():
        rates, said = _rates(config, job, workload, device, console)
    store = config.store_gbit * _GBIT or _UNLIMITED
    cluster = Cluster(config.nodes or 1, cores, config.gpus, config.node_gbit * _GBIT, store)
    predictor = Predictor(workload, rates, job)
    deadline = predictor.nodes_for(cluster, config.days * 86400, _MOST_NODES) if config.days else None
    if config.days and deadline is None and not config.nodes:
        raise PipelineError(f"days={config.days:g}: {_MOST_NODES:,} nodes take longer; give more days, or store_gbit=")
    cluster = replace(cluster, nodes=config.nodes or deadline or 1)
    found = predictor.predict(cluster)
    moved = amounts(workload, rates.stored, config.frames, found.fetched, found.actors)
    if config.format == "json":
        numbers = {each.name: getattr(workload, each.name) for each in fields(workload) if each.name != "sample"}
        document: dict[str, Any] = {
            "job": numbers,
            "cluster": asdict(cluster),
            "prediction": asdict(found),
            "moved": asdict(moved),
        }
        document |= {"deadline": {"days": config.days, "nodes": deadline} if config.days else None}
        console.file.write(json.dumps(document | {"rates": json.loads(rates.to_json())}) + "\n")
    else:
        table = Table(show_header=False, title_justify="left", title="what autogaze preprocess would take")
        for name, value in _rows(config, cores, workload, rates, found, moved, deadline):
            table.add_row(name, Text(value))
        table.add_row("rates", Text(said))
        console.print(table)
    return 0


def preprocess_config(config: SizeConfig) -> PreprocessConfig:
    """The job that is predicted."""
    shared = {each.name for each in fields(SizeConfig)} & {each.name for each in fields(PreprocessConfig)}
    given = {name: getattr(config, name) for name in shared}
    return PreprocessConfig(**given | {"input": config.input or "corpus", "output": "dataset"})


def _workload(config: SizeConfig, shard_clips: int) -> Workload:
    from pipelines.corpus.manifest import manifest_files, ordered_manifest
    from pipelines.sizing.workload import of_alike, of_manifest
    from pipelines.storage import store
    from pipelines.storage.location import Location

    if not config.input:
        size = picture_size(config.resolution)
        video = config.minutes, size, config.codec, config.fps, config.mbit
        return of_alike(config.hours, *video, config.clip, shard_clips)
    place = Location(config.input)
    dataset = store.exists(place / "dataset.json")
    listed = str(place / "manifest.parquet" if dataset else place)
    if not manifest_files(listed):
        raise PipelineError(
            f"input={listed}: no such manifest, nor a dataset; of videos, autogaze scan makes one: "
            "autogaze scan input=VIDEOS output=manifest.parquet"
        )
    manifest = ordered_manifest(listed)
    if not manifest.videos:
        raise PipelineError(f"input={config.input}: the manifest has no videos")
    workload = of_manifest(manifest.tables, manifest.folder, config.clip, shard_clips)
    if not workload.clips:
        raise PipelineError(f"input={config.input}: no video of it can be read, so there is nothing to predict")
    return workload


def _rates(
    config: SizeConfig, job: PreprocessConfig, workload: Workload, device: str, console: Console
) -> tuple[Rates, str]:
    """The rates, and where they are from."""
    from pipelines.gazing.gazers import device_of
    from pipelines.sizing.measure import measure_rates
    from pipelines.sizing.rates import gaze_words, read_rates, require_rates, write_rates
    from pipelines.sizing.trials import drawn_trials, footage_trials

    rates = read_rates(config.rates) if config.rates else None
    if rates is not None:
        require_rates(rates, config.rates, job.decoder, gaze_words(job), device, job.clip.frames)
        return rates, f"of {rates.machine}, from {config.rates}"
    if device != "cpu":
        try:
            device_of(device)
        except PipelineError as error:
            raise PipelineError(
                f"device={device}: this machine has none to measure; give rates= a file that autogaze size wrote on a "
                "machine that has"
            ) from error
    at_once = usable_cpus()
    with tempfile.TemporaryDirectory(prefix="autogaze-") as folder, console.status("measuring on this machine"):
        trials: list[Trial]
        if config.input:
            trials = drawn_trials(workload)
        else:
            size = picture_size(config.resolution)
            like = config.footage
            trials = footage_trials(Path(folder), size, config.codec, config.fps, config.mbit, config.clip, like)
        rates = measure_rates(trials, job, device, config.measure_s, at_once)
    said = f"measured here, on {plural(at_once, 'core')} at once"
    if config.rates:
        write_rates(rates, config.rates)
        said += f"; written to {config.rates}"
    return rates, said


def _rows(
    config: SizeConfig,
    cores: int,
    workload: Workload,
    rates: Rates,
    found: Prediction,
    moved: Amounts,
    deadline: int | None,
) -> list[tuple[str, str]]:
    """What is printed, a name and its value on each line."""
    hours = workload.seconds / 3600
    size = byte_size(round(workload.bytes))
    cluster = f"{plural(found.nodes, 'node')} of {plural(cores, 'core')}"
    if config.gpus:
        cluster += f" and {plural(config.gpus, 'GPU')}"
    refused = f", {workload.refused:,} more are known to fail" if workload.refused else ""
    workers = {"gazers": ("gaze", found.gazers), "decoders": ("decode", found.decoders)}
    rows = [
        ("videos", f"{workload.videos:,}, {measured(hours, 'hour')}, {size}"),
        ("clips", f"{workload.clips:,} in {plural(workload.shards, 'shard')}{refused}"),
        ("cluster", cluster),
        (
            "actors",
            f"{found.actors:,}, each with {plural(found.decoders, 'decoder')} and {plural(found.gazers, 'gazer')} on "
            f"{found.device}",
        ),
        ("time", f"{clock(found.seconds)} from the first clip on"),
        ("rate", f"{found.clips_per_s:,.4g} clips/s, {measured(found.hours_per_hour, 'hour')} of video an hour"),
        ("slowest", found.slowest),
        ("busy", _shares(found)),
    ]
    if found.slowest in workers and found.busy["cores"] < _FULL:
        key, count = workers[found.slowest]
        idle = f"cores are idle {1 - found.busy['cores']:.0%} of the time"
        rows.append(("faster", f"{idle}: try workers.{key}= more than {found.actors * count:,}"))
    if found.waiting >= 0.01:
        rows.append(("idle", f"{found.waiting:.0%} of the actors' time is at the end, with no shard left for them"))
    if config.days:
        nodes = f"more than {_MOST_NODES:,} nodes" if deadline is None else plural(deadline, "node")
        rows.append((f"in {measured(config.days, 'day')}", nodes))
    stored = ", ".join(f"frames={name} {byte_size(round(count))}" for name, count in moved.stored.items())
    rows.append(("dataset", stored))
    if moved.read:
        rate = byte_size(round(found.fetched * workload.bytes / found.seconds))
        often = f"{found.fetched:.3g} times"
        often = "once" if often == "1 times" else often
        rows.append(("fetched", f"each video {often}, {rate} a second, and once more by the scan"))
        puts, gets = moved.puts / found.seconds, moved.gets / found.seconds
        requests = f"{plural(moved.puts, 'put')} and {plural(moved.gets, 'get')} of an object store"
        rows.append(("requests", f"{requests}: {puts:,.1f} and {gets:,.1f} a second"))
    rows.append(("simulated", found.simulated))
    return rows


def _shares(found: Prediction) -> str:
    words = []
    for name, share in found.busy.items():
        inside = ", ".join(f"{part} {of:.0%}" for part, of in found.inside.items()) if name == "cores" else ""
        words.append(f"{name} {share:.0%}" + (f" ({inside})" if inside else ""))
    return ", ".join(words)
