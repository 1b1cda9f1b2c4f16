"""Which failures of a store pass, and trying again until they do."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from pipelines.errors import PipelineError

T = TypeVar("T")
_RETRY_SECONDS = 120.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_TELL_SECONDS = 5.0  # an outage is logged when it has lasted this long
_log = logging.getLogger(__name__)


class StoreError(PipelineError):
    """A store that is missing, unreadable, unwritable or full."""


class TransientStoreError(StoreError):
    """A store that did not answer for longer than our patience. Nothing was recorded; run the command again."""


class Failures(Protocol):
    """What a kind of storage knows of its errors: see pipelines.storage.filesystem.FileSystem."""

    def is_transient(self, error: Exception) -> bool: ...

    def explain(self, error: Exception, url: str) -> str | None: ...

    def reason(self, error: Exception) -> str: ...

    def renew(self, error: Exception) -> bool: ...


def retrying(
    action: Callable[[], T],
    url: str,
    failures: Failures,
    seconds: float = _RETRY_SECONDS,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Run `action`, and again with exponential backoff and jitter while its failure is transient, for `seconds`.

    The seconds count from its first failure, and anew from the first after `progress` has changed.
    Raises StoreError, in one line, for what waiting cannot mend; TransientStoreError when patience runs out.
    FileNotFoundError passes through: callers mean different things by it. So does what is no error of a store.
    """
    began, reached, delay, logged, renewed = None, progress(), _FIRST_WAIT, False, False
    while True:
        try:
            return action()
        except (FileNotFoundError, StoreError):
            raise
        except Exception as error:
            if not renewed and failures.renew(error):
                renewed = True
                continue
            if not failures.is_transient(error):
                if (explanation := failures.explain(error, url)) is None:
                    raise
                raise StoreError(explanation) from error
            now = time.monotonic()
            if began is None or progress() != reached:
                began, reached, delay, logged = now, progress(), _FIRST_WAIT, False
            reason, waited = failures.reason(error), now - began
            if waited + delay > seconds:
                raise TransientStoreError(
                    f"{url}: no answer for {seconds:.0f} s ({reason}); nothing was recorded, run the command again"
                ) from error
            if waited > _TELL_SECONDS and not logged:
                logged = True
                _log.warning("%s: no answer (%s); trying again for %.0f s", url, reason, seconds - waited)
            time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
            delay = min(delay * 2, _LONGEST_WAIT)
