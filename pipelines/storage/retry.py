"""Which failures of a store pass, and trying again until they do."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.errors import PipelineError
from pipelines.storage import s3
from pipelines.storage.urls import is_local, is_s3

_log = logging.getLogger(__name__)


# Errors of a local or network file system that the next attempt may not meet.
_TRANSIENT_ERRNO = {errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EIO, errno.ECONNRESET}


_RETRY_SECONDS = 120.0


_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0


_TELL_SECONDS = 5.0  # an outage is told of when it has lasted this long


T = TypeVar("T")


class StoreError(PipelineError):
    """A store that is missing, unreadable, unwritable or full."""


class TransientStoreError(StoreError):
    """A store that did not answer for longer than our patience. Nothing was recorded; run the command again."""


def is_transient(error: BaseException, url: str) -> bool:
    """Whether trying again can help: lost connections, timeouts, 5xx and throttling; not missing, denied or full."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    if isinstance(error, StoreError):
        return isinstance(error, TransientStoreError)
    if is_local(url):
        return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO
    if is_s3(url):
        return s3.is_transient(error)
    # Other file systems map what they know to OSError subclasses (above) and leave the rest as OSError or aiohttp's.
    name = f"{type(error).__module__}.{type(error).__name__}"
    return isinstance(error, OSError | TimeoutError) or name.startswith(("aiohttp.", "asyncio."))


def retrying(
    action: Callable[[], T], url: str, seconds: float = _RETRY_SECONDS, progress: Callable[[], int] = lambda: 0
) -> T:
    """Run `action`, again with exponential backoff and jitter while its failure is transient, for up to `seconds`.

    The seconds count from its first failure, or the first after `progress` has changed.
    Raises StoreError in one line for what cannot be helped, TransientStoreError when patience runs out.
    FileNotFoundError passes through: callers mean different things by it.
    """
    began, reached, delay, told, renewed = None, progress(), _FIRST_WAIT, False, False
    while True:
        try:
            return action()
        except (FileNotFoundError, StoreError):
            raise
        except Exception as error:
            on_s3 = is_s3(url)
            if on_s3 and s3.is_missing(error):
                raise FileNotFoundError(errno.ENOENT, "no such object", url) from error
            if on_s3 and s3.is_stale(error) and not renewed:  # a profile may hold new credentials by now
                s3.forget_client()
                renewed = True
                continue
            if not is_transient(error, url):
                known = (OSError, RecursionError) if on_s3 else OSError
                if isinstance(error, known) or type(error).__module__.startswith("botocore"):
                    raise StoreError(explain(error, url)) from error
                raise
            now = time.monotonic()
            if began is None or progress() != reached:
                began, reached, delay, told = now, progress(), _FIRST_WAIT, False
            reason, waited = s3.reason(error) if on_s3 else str(error), now - began
            if waited + delay > seconds:
                raise TransientStoreError(
                    f"{url}: no answer for {seconds:.0f} s ({reason}); nothing was recorded, run the command again"
                ) from error
            if waited > _TELL_SECONDS and not told:
                told = True
                _log.warning("%s: no answer (%s); trying again for %.0f s", url, reason, seconds - waited)
            time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
            delay = min(delay * 2, _LONGEST_WAIT)


def explain(error: BaseException, url: str) -> str:
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC or code == errno.EDQUOT:
        return f"{url}: no space left on the device; free some and run the same command again, it continues"
    if is_s3(url):
        return s3.explain(error, url)
    if isinstance(error, PermissionError) or code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{url}: permission denied; check its owner and mode, or the credentials in use"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{url}: a part of this path is a file, not a folder"
    return f"{url}: {error}"
