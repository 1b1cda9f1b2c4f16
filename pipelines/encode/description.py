"""dataset.json of token features: what their bytes depend on, and whether a job would make the same ones."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipelines.corpus.inputs import normal_input
from pipelines.dataset.features import FEATURES_FORMAT
from pipelines.dataset.shards import Dataset
from pipelines.encode.config import POOLED, EncodeConfig
from pipelines.encode.encoders import ResolvedEncoder
from pipelines.encode.source import sha256_of
from pipelines.errors import PipelineError
from pipelines.gazing.gazers import ResolvedGaze
from pipelines.gazing.reconstructor import LabelsConfig
from pipelines.preprocess.config import compared_settings
from pipelines.preprocess.description import decode_config, require_same
from pipelines.video.decode import decoder_fingerprint

_STORED = ("layers", "pooled", "store", "convert", "batch")


def describe_features(
    config: EncodeConfig, encoder: ResolvedEncoder, gazer: ResolvedGaze | None, source: Dataset | None
) -> dict[str, Any]:
    """dataset.json of a job, without what only its plan knows. gazer: of videos; source: the gaze dataset."""
    kept: dict[str, Any]
    stored: dict[str, Any] = {"layers": encoder.layers, "pooled": POOLED[config.pooled]}
    stored |= {name: getattr(config, name) for name in ("store", "convert", "batch")}
    about: dict[str, Any] = {
        "kind": "features",
        "format": FEATURES_FORMAT,
        "encoder": encoder.facts,
        "vocabulary": {"scales": list(encoder.vocabulary.scales), "patch_size": encoder.vocabulary.patch_size},
    }
    if source is not None:
        kept = {name: source.config[name] for name in ("clip", "gaze") if name in source.config}
        return about | {
            "config": kept | stored,
            "models": source.about.get("models", {}),
            "source": {"dataset": sha256_of(source), "plan": _plan_of(source)},
        }
    assert gazer is not None
    kept = {name: value for name, value in compared_settings(config).items() if name not in _STORED}
    if not config.by_learned and config.labels == LabelsConfig():
        del kept["labels"]
    kept |= {"input": normal_input(config.input), "threshold": gazer.threshold, "max_ratio": gazer.max_ratio}
    return about | {
        "config": kept | stored,
        "models": gazer.models,
        "units": gazer.units,
        "software": {"decoder": decoder_fingerprint(decode_config(config))},
    }


def require_same_features(written: dict[str, Any], described: dict[str, Any], config: EncodeConfig) -> None:
    """Raise PipelineError, naming what differs, unless a dataset.json says what `describe_features` says of a job."""
    if written.get("kind") == "features":
        begun, now = written.get("source"), described.get("source")
        if begun and now and begun != now:
            raise PipelineError(
                f"output={config.output}: was begun from another gaze dataset, or this one has changed since; give "
                "that one, or another output"
            )
        if begun != now:
            what = "a gaze dataset; give it as data=" if begun else "videos; give them as input="
            raise PipelineError(f"output={config.output}: was begun from {what}, or choose another output")
        there, here = written.get("encoder", {}), described["encoder"]
        if {**there, "fingerprint": ""} == {**here, "fingerprint": ""} and there != here:
            raise PipelineError(
                f"encoder.checkpoint={config.encoder.checkpoint}: has other weights than the encoder that "
                f"output={config.output} was begun with; give that one, or another output"
            )
    require_same(written, described, config.output)


def _plan_of(source: Dataset) -> str:
    """The hash of a gaze dataset's plan; of a plan in parts, of what its dataset.json says of them."""
    plan = source.about.get("plan", "")
    return plan if isinstance(plan, str) else hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
