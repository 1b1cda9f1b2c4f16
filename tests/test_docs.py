"""The documentation says what the code does."""

from __future__ import annotations

import importlib
import re

import pytest

from jobs import config
from jobs.cli import JOBS
from pipelines.corpus import manifest, plan
from pipelines.dataset import shards
from pipelines.video.base import REASONS
from tests.support import places

ROOT = places.ROOT
FORMATS = (ROOT / "docs" / "formats.md").read_text()


def test_every_reason_is_listed_with_its_meaning() -> None:
    for reason, meaning in REASONS.items():
        assert f"| {reason} | {meaning} |" in FORMATS


@pytest.mark.parametrize("schema", [manifest.MANIFEST_SCHEMA, plan.PLAN_SCHEMA, shards.INDEX_SCHEMA])
def test_every_column_is_described(schema: object) -> None:
    words = set(re.findall(r"[a-z_0-9]+", FORMATS))
    assert set(schema.names) <= words  # type: ignore[attr-defined]


def test_links_between_the_documents_lead_somewhere() -> None:
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", file.read_text()):
            if "://" not in target:
                assert (file.parent / target).exists(), f"{file.name} links to {target}"


@pytest.mark.parametrize("job", JOBS)
def test_the_packaged_yaml_is_what_print_config_prints(job: str) -> None:
    schema = getattr(importlib.import_module(JOBS[job].module), JOBS[job].schema)
    assert (ROOT / "jobs" / f"{job.replace(' ', '-')}.yaml").read_text() == config.to_yaml(schema())
