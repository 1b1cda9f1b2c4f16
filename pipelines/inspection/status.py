"""How far a job is, read from what it left in storage: a dataset of preprocess, or a training run.

The job itself is not asked, so this works while it runs, after it, and from any machine that reaches the storage. Times
are those of the storage's clock: when indexes were committed, when events were written.
"""

from __future__ import annotations

import time

from pipelines.errors import PipelineError
from pipelines.inspection.dataset_status import DatasetStatus, StatusCache, dataset_status
from pipelines.inspection.run_status import RunStatus, run_status
from pipelines.storage import store
from pipelines.storage.location import Location


def read_status(
    url: str,
    *,
    stall_s: float = 600.0,
    outcomes: bool = True,
    seen: StatusCache | None = None,
    now: float | None = None,
) -> DatasetStatus | RunStatus:
    """The status of what is at `url`.

    Args:
        stall_s: a job is stalled after this time without a commit or an event (or five of its usual intervals, if that
            is longer).
        outcomes: read every index for outcomes and reasons. Without, a dataset costs one listing and its plan.
        seen: what an earlier call has read; give the same one to each call.
        now: seconds since 1970 by the storage's clock; None: by this machine's.
    Raises:
        PipelineError: neither a dataset nor a run is there, or it is damaged.
    """
    url, seen, now = Location(url), seen or StatusCache(), time.time() if now is None else now
    if seen.dataset is not None or store.exists(url / "dataset.json"):
        return dataset_status(url, stall_s, outcomes, seen, now)
    if store.exists(url / "config.yaml"):
        return run_status(url, stall_s, now)
    raise PipelineError(
        f"{url}: neither a dataset (dataset.json) nor a training run (config.yaml) is here; a job writes these when it "
        "has read its input"
    )
