"""What evaluate says of features: a table, and their part of evaluate.json, features.csv, .svg and .png."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from autogaze.vision import GazedEncoder
from jobs.error_results import X_LABEL, percent, tell
from jobs.pictures.curves import Panel, Place, PlottedSeries, draw_curves
from pipelines.dataset.shards import Dataset
from pipelines.inspection.features import Cosine, FeatureCurve, FeaturePoint, FullFrames
from pipelines.inspection.methods import EVERY_NTH, MERGING
from pipelines.networks.encoders import EncoderConfig
from pipelines.storage.credentials import redact

_COLUMNS = ("tokens", "own", "dense", "pooled", "rank 1", "MRR", "choose", "encode")
_NONE = "–"


@dataclass(frozen=True)
class FeatureResults:
    """Agreement of an encoder's features with those of full frames, over clips of a dataset.

    config: the encoder's settings. teacher: whose full frames they are; the encoder, or another.
    searched: the reconstructor that greedy searches on; measured_by: that of errors.
    clips: how many. ratios: asked for, rising. names: of the methods, as shown.
    """

    dataset: Dataset
    config: EncoderConfig
    encoder: GazedEncoder
    teacher: GazedEncoder
    searched: str
    measured_by: str
    clips: int
    curves: list[FeatureCurve]
    full: FullFrames
    ratios: list[float]
    names: dict[str, str]

    def show(self, console: Console) -> None:
        """Print the table, and what its columns are."""
        table = Table(
            title=f"features of gazed patches beside those of full frames, mean of {self.clips} clips",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("gaze")
        for name in _COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row("full frames", str(self.full.tokens), *[""] * 6, _seconds(self.full.encoding), end_section=True)
        for ratio in [*self.ratios, None]:
            table.add_row(f"[bold]{'as stored' if ratio is None else percent(ratio)}[/bold]")
            for curve in self.curves:
                point = _at(curve, ratio)
                if point is not None:
                    table.add_row(self.names[curve.method], *_cells(point))
            table.add_section()
        console.print(table)
        for line in self._legend():
            tell(console, line)

    def _legend(self) -> list[str]:
        seen = f"{'+'.join(map(str, self.encoder.vocabulary.scales))}/{self.encoder.vocabulary.patch_size}"
        lines = [
            f"encoder: {self.encoder.family.name} {seen}, attention {self.encoder.attention}, {self.config.dtype}",
            "own, dense, pooled: cosine of gazed finest patches, dense maps, pooled clips",
            "rank 1, MRR: by its pooled feature a clip finds itself among all in full",
            f"choose, encode: {'CPU seconds' if self.encoder.device.type == 'cpu' else 'seconds'} of a clip",
        ]
        if self.teacher is not self.encoder:
            lines.append("full frames, and methods that see whole frames, are those of teacher=")
        methods = [curve.method for curve in self.curves]
        if self.clips == 1:
            lines.append("one clip has no other to be mistaken for: for rank 1 and MRR give clips=2 or more")
        if "greedy" in methods and self.searched != self.measured_by:
            lines.append(f"greedy searches on {self.searched} here, at the encoder's scales")
        if EVERY_NTH in methods:
            lines.append("every nth frame: whole frames, each seen alone, and at least the first")
        if any(c.method == MERGING and (c.as_stored is None or len(c.points) < len(self.ratios)) for c in self.curves):
            lines.append("token merging is left out where halving tokens in every layer leaves more")
        return lines

    def record(self) -> dict[str, Any]:
        """Of evaluate.json: the encoder, and the features of each method."""
        vocabulary = self.encoder.vocabulary
        encoder = {
            "checkpoint": redact(self.config.checkpoint),
            "family": self.encoder.family.name,
            "fingerprint": self.encoder.fingerprint,
            "scales": list(vocabulary.scales),
            "patch_size": vocabulary.patch_size,
            "attention": self.encoder.attention,
            "dtype": self.config.dtype,
            "device": self.encoder.device.type,
            "greedy_on": self.searched,
            "teacher": None if self.teacher is self.encoder else self.teacher.fingerprint,
        }
        methods = {
            curve.method: {
                "points": [asdict(point) for point in curve.points],
                "with_stored_lengths": None if curve.as_stored is None else asdict(curve.as_stored),
            }
            for curve in self.curves
        }
        return {"encoder": encoder, "features": {"full_frames": asdict(self.full), "methods": methods}}

    def files(self) -> dict[str, bytes]:
        """features.csv, .svg and .png, by name."""
        sheet = io.StringIO()
        writer = csv.writer(sheet, lineterminator="\n")
        cosines = [f"{name}{part}" for name in ("own", "dense", "pooled") for part in ("", "_standard_error")]
        times = ["choosing_seconds", "encoding_seconds"]
        writer.writerow(["method", "asked", "tokens", "ratio", *cosines, "rank_1", "mrr", *times, "clips"])
        for curve in self.curves:
            points = [point for point in curve.points if point.asked is not None]
            for point in [*points, *([curve.as_stored] if curve.as_stored else [])]:
                means = [part for cosine in (point.own, point.dense, point.pooled) for part in _parts(cosine)]
                found = [None, None] if point.found is None else [point.found.first, point.found.reciprocal]
                seconds = [point.choosing, point.encoding]
                asked = [curve.method, point.asked, point.tokens, point.ratio]
                writer.writerow([*asked, *means, *found, *seconds, self.clips])
        dense, pooled = self._series(lambda point: point.dense), self._series(lambda point: point.pooled)
        stored = [curve.as_stored.ratio for curve in self.curves if curve.method == "stored" and curve.as_stored]
        name = self.encoder.family.name
        plot = draw_curves(
            [
                Panel("dense maps: cosine with those of full frames", dense, from_zero=False),
                Panel("pooled features of clips: cosine with those of full frames", pooled, from_zero=False),
            ],
            self.ratios,
            f"{self.dataset.url.name}: {name} features of gazed patches, mean of {self.clips} clips",
            X_LABEL,
            (stored[0], "stored") if stored else None,
        )
        return {"features.csv": sheet.getvalue().encode(), "features.svg": plot.svg, "features.png": plot.png}

    def _series(self, cosine: Callable[[FeaturePoint], Cosine]) -> list[PlottedSeries]:
        def place(point: FeaturePoint) -> Place:
            return point.ratio, cosine(point).mean, cosine(point).standard_error

        return [
            PlottedSeries(self.names[c.method], list(map(place, c.points)), place(c.as_stored) if c.as_stored else None)
            for c in self.curves
            if c.points or c.as_stored
        ]


def _at(curve: FeatureCurve, ratio: float | None) -> FeaturePoint | None:
    if ratio is None:
        return curve.as_stored
    return next((point for point in curve.points if point.asked == ratio), None)


def _cells(point: FeaturePoint) -> list[str]:
    cosines = [_NONE if cosine is None else f"{cosine.mean:.3f}" for cosine in (point.own, point.dense, point.pooled)]
    found = [_NONE] * 2 if point.found is None else [f"{point.found.first:.2f}", f"{point.found.reciprocal:.2f}"]
    choosing = _NONE if point.choosing == 0 else _seconds(point.choosing)
    return [f"{point.tokens:.0f}", *cosines, *found, choosing, _seconds(point.encoding)]


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 10 else f"{seconds:.1f}"


def _parts(cosine: Cosine | None) -> list[float | None]:
    return [None, None] if cosine is None else [cosine.mean, cosine.standard_error]
