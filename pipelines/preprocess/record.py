"""The record of a run (pipelines.dataset.run_records), made of its totals and its workers."""

from __future__ import annotations

from pipelines.dataset.run_records import STAGE_OF_PART, RunRecord, StageTime, time_stamp
from pipelines.gazing.gazers import ResolvedGaze, how_searched
from pipelines.preprocess.totals import Totals


def run_record(
    totals: Totals,
    actors: dict[str, int],
    device: str,
    how: dict[str, str],
    cluster: dict[str, int],
    began: float,
    seconds: float,
    status: str,
    start_up: dict[str, float],
) -> RunRecord:
    """What a run did until `began + seconds`.

    Args:
        actors: of each stage.
        how: in words: `gaze`, what gazed, and `encoder`, what encoded.
        cluster: nodes, cpus, gpus.
        began: seconds since 1970.
        seconds: how long it took, without starting Ray and planning.
        status: done, interrupted or running.
        start_up: seconds of the phases before `began`. Two more come after it: until the actors begin their first clip,
            and from then on until the first shard is committed.
    """
    slowest, light = "", 0.0
    if totals.seconds:
        start_up = start_up | {"actors": totals.began - began, "first_shard": totals.first_commit - totals.began}
        slowest, light = totals.speed_of_light(actors)
    return RunRecord(
        started=time_stamp(began),
        finished=time_stamp(began + seconds),
        status=status,
        nodes=cluster["nodes"],
        cpus=cluster["cpus"],
        gpus=cluster["gpus"],
        workers=actors,
        device=device,
        gaze=how.get("gaze", ""),
        encoder=how.get("encoder", ""),
        ok=totals.ok,
        failed=totals.failed.total(),
        failed_by_reason=dict(totals.failed),
        decoder_restarts=totals.restarts,
        decoder_fallbacks=dict(totals.fallbacks),
        frames=totals.frames,
        tokens=totals.tokens,
        seconds=seconds,
        start_up=start_up,
        frames_per_s=totals.frames / seconds if seconds else 0.0,
        stages={
            name: StageTime(spent, actors[STAGE_OF_PART.get(name, name)]) for name, spent in totals.seconds.items()
        },
        slowest_stage=slowest,
        speed_of_light=light,
    )


def how_gazed(gazer: ResolvedGaze, device: str) -> str:
    """What gazed and how, in words: what may differ between runs and changes the speed."""
    settings, words = gazer.settings, gazer.name
    if gazer.name == "policy":
        graphs = device == "cuda" and settings.policy.cuda_graphs != "off"
        # A verified gaze is made clip by clip on a CPU, and with a learned reconstructor anywhere.
        alone = settings.verify and (device == "cpu" or "canvas" not in gazer.models)
        words = (
            f"policy in {settings.policy.dtype}, {'one clip' if alone else f'{settings.policy.batch} clips'} at once"
        )
        words += f", CUDA graphs {'on' if graphs else 'off'}"
        if settings.verify:
            words += f", verified by {next(kind for kind in ('videomae', 'refiner', 'canvas') if kind in gazer.models)}"
    elif settings.by_learned:
        kind = next(kind for kind in ("videomae", "refiner") if kind in gazer.models)
        words = f"{kind} in {settings.reconstructor.dtype}, {how_searched(settings.labels)}"
    return words + (f", targets of {gazer.targets} frames" if gazer.targets else "")
