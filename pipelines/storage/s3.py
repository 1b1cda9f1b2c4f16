"""S3, and whatever else speaks its protocol, through botocore: each call is one request, and errors come as they are.

pipelines.storage.s3_files tries again what fails. botocore's own retries are off: the two would multiply. Endpoint,
region and credentials come from botocore's standard chain.
"""

from __future__ import annotations

import errno
import io
import math
import os
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

_CONNECT_SECONDS, _READ_SECONDS = 10, 30  # to connect; from one byte to the next
_CONNECTIONS = 32  # kept open; the loader alone reads eight ranges at once
PART_BYTES, _MOST_PARTS = 64 << 20, 10_000  # S3 takes up to 5 GiB in one put, and 10 000 parts
_UPLOADS = 3  # that are begun for one file, if others take them back
_CHUNK = 1 << 20
_lock = threading.Lock()
_client: Any = None
_loader: Any = None

# Answers that the next attempt may not get, by code; so are all of 500 and above but these.
_PASSING = {"RequestTimeout", "OperationAborted", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
_PASSING |= {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestThrottled", "408", "429"}
_LASTING_5XX = {501, 505, 507}
_UNLISTED = {
    "NoSuchUpload",
    "AccessDenied",
    "403",
    "NotImplemented",
    "MethodNotAllowed",
    "NoSuchBucket",
    "NoSuchKey",
    "404",
}
_MISSING = {"NoSuchKey", "NotFound", "404", "NoSuchVersion"}
_STALE_CREDENTIALS = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"}


class ShortRead(OSError):
    """An answer with fewer bytes than it should have: a connection that broke off, or a proxy that lied."""


class _Unusable(OSError):
    """A configuration that no client can be made of."""


class Object(NamedTuple):
    """What S3 says of an object: key, size, what changes with its bytes, and when they did (seconds since 1970)."""

    key: str
    bytes: int
    version: str
    modified: float | None


def split(url: str) -> tuple[str, str]:
    """(bucket, key) of an s3:// URL."""
    bucket, _, key = url.split("://", 1)[1].partition("/")
    return bucket, key


def client() -> Any:
    """This process's botocore client, for all of its threads."""
    global _client, _loader
    with _lock:
        if _client is None:
            import botocore.session
            from botocore.config import Config

            # Not every server knows the checksums that newer clients add by default, and some send that of the whole
            # object with a part of it. What we send is signed with its SHA-256, which the server compares.
            config = Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"total_max_attempts": 1},
                max_pool_connections=_CONNECTIONS,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            session = botocore.session.get_session()
            # Descriptions of services are megabytes of JSON: read once, however often a client is made.
            _loader = _loader or session.get_component("data_loader")
            session.register_component("data_loader", _loader)
            try:
                _client = session.create_client("s3", config=config)
            except ValueError as error:
                raise _Unusable(errno.EINVAL, f"AWS_ENDPOINT_URL or AWS_REGION cannot be used: {error}") from error
        return _client


def forget_client() -> None:
    """Make a new client next time, with the endpoint and credentials of then."""
    global _client
    with _lock:
        _client = None


def _after_fork() -> None:
    """A child shares neither its parent's connections nor a lock that another thread of it may have held."""
    global _client, _lock
    _client, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


# -- requests --------------------------------------------------------------------------------------------------------


def page(url: str, token: str = "") -> tuple[list[Object], str]:
    """Up to 1000 objects under a URL in order of their keys, and the token of the next page ('' = there is none)."""
    bucket, key = split(url)
    more = {"ContinuationToken": token} if token else {}
    answer = client().list_objects_v2(Bucket=bucket, Prefix=key and f"{key}/", **more)
    objects = [
        _object(each["Key"], each["Size"], each)
        for each in answer.get("Contents", [])
        if not each["Key"].endswith("/")  # what stands for an empty folder
    ]
    return objects, answer["NextContinuationToken"] if answer.get("IsTruncated") else ""


def _object(key: str, size: int, about: dict[str, Any]) -> Object:
    changed = about.get("LastModified")
    version = str(about.get("ETag") or changed or "").strip('"')
    return Object(key, int(size), version, None if changed is None else changed.timestamp())


def head(url: str) -> Object | None:
    """The object at this very URL, or None. A URL without a key is a bucket: an Object without a key if it exists."""
    bucket, key = split(url)
    try:
        if not key:
            client().head_bucket(Bucket=bucket)
            return Object("", 0, "", None)
        answer = client().head_object(Bucket=bucket, Key=key)
    except Exception as error:
        if _code(error) in _MISSING:
            return None
        raise
    return _object(key, answer["ContentLength"], answer)


def get(url: str, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of an object, or of a part of it; fewer than `length` only at its end. Raises ShortRead."""
    sink = io.BytesIO()
    Download(url, sink, offset, length).resume()
    return sink.getvalue()


class Download:
    """A copy of an object, or of a part of it, into a file, which has `written` bytes of it so far."""

    def __init__(self, url: str, sink: IO[bytes], offset: int = 0, length: int | None = None) -> None:
        self.url, self.sink, self.offset, self.length = url, sink, offset, length
        self.written, self._version = 0, ""

    def resume(self) -> None:
        """Copy what is missing, in one request. After a transient error, call it again.

        Raises ShortRead when fewer bytes come than the server says there are, or the object was replaced since the
        last call: then the next call begins at the beginning.
        """
        offset, rest = self.offset + self.written, None if self.length is None else self.length - self.written
        if rest == 0:
            return
        bucket, key = split(self.url)
        ranged = offset > 0 or rest is not None
        span = {"Range": f"bytes={offset}-" + ("" if rest is None else str(offset + rest - 1))} if ranged else {}
        try:
            answer = client().get_object(Bucket=bucket, Key=key, **span)
        except Exception as error:
            if _code(error) in ("InvalidRange", "416"):  # it begins where the object ends, or after
                return
            raise
        with closing(answer["Body"]) as body:
            self._require_version(str(answer.get("ETag") or ""))
            if ranged and not answer.get("ContentRange"):  # a server that knows no ranges sends all of it
                _skip(body, offset)
            left = _rest(answer, offset)
            due = self.written + (left if rest is None else min(rest, left))
            while self.written < due and (data := body.read(min(_CHUNK, due - self.written))):
                self.sink.write(data)
                self.written += len(data)
        if self.written < due:
            raise ShortRead(errno.EIO, f"{self.written} bytes came instead of {due}")

    def _require_version(self, version: str) -> None:
        if self.written and version != self._version:
            self.sink.seek(0)
            self.sink.truncate()
            self.written = 0
            raise ShortRead(errno.EIO, "the object was replaced while it was read")
        self._version = version


def _skip(body: IO[bytes], count: int) -> None:
    while count > 0 and (data := body.read(min(_CHUNK, count))):
        count -= len(data)


def _rest(answer: dict[str, Any], offset: int) -> int:
    """How many bytes the object has from `offset` on, according to the answer."""
    span = str(answer.get("ContentRange") or "")  # bytes 10-19/100
    if not span:
        return max(int(answer["ContentLength"]) - offset, 0)
    begin, _, whole = span.removeprefix("bytes ").partition("/")
    if not begin.startswith(f"{offset}-") or not whole.isdigit():
        raise ShortRead(errno.EIO, f"asked for bytes from {offset} on, and got {span}")
    return int(whole) - offset


def put(data: bytes, url: str) -> None:
    """Write an object of up to 5 GiB. It appears whole, or not at all."""
    bucket, key = split(url)
    # As a file: bytes would have to leave within one timeout, however many they are and however slow the line.
    client().put_object(Bucket=bucket, Key=key, Body=io.BytesIO(data))


def put_file(path: str, url: str, retry: Callable[[Callable[[], Any]], Any]) -> None:
    """Write an object from a local file; large ones in parts, each of which is tried again by itself, with `retry`."""
    bucket, key = split(url)
    size = os.path.getsize(path)
    if size <= PART_BYTES:
        with open(path, "rb") as file:

            def whole() -> None:
                file.seek(0)
                client().put_object(Bucket=bucket, Key=key, Body=file)

            retry(whole)
        return
    for attempt in range(_UPLOADS):
        try:
            _put_in_parts(path, size, url, retry)
            return
        except Exception as error:
            # A run that began beside this one took it for what a killed writer had left.
            if _code(error.__cause__ or error) != "NoSuchUpload" or attempt == _UPLOADS - 1:
                raise


def _put_in_parts(path: str, size: int, url: str, retry: Callable[[Callable[[], Any]], Any]) -> None:
    bucket, key = split(url)
    each = max(PART_BYTES, math.ceil(size / _MOST_PARTS))
    of = {"Bucket": bucket, "Key": key}
    of["UploadId"] = retry(lambda: client().create_multipart_upload(**of))["UploadId"]
    try:
        parts = []
        for number, begin in enumerate(range(0, size, each), 1):
            with open(path, "rb") as file:
                file.seek(begin)
                data = file.read(each)
            sent = retry(lambda n=number, d=data: client().upload_part(**of, PartNumber=n, Body=io.BytesIO(d)))  # type: ignore[misc]
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        retry(lambda: _complete(url, of, parts, size))
    except BaseException:
        with suppress(Exception):  # the store may be why; the next run takes it back
            client().abort_multipart_upload(**of)
        raise


class Upload(NamedTuple):
    """An upload in parts that was begun and not completed."""

    key: str
    id: str


FIRST_UPLOAD = Upload("", "")


def uploads(url: str, after: Upload = FIRST_UPLOAD) -> tuple[list[Upload], Upload | None]:
    """Some uploads in parts that were begun under a URL, and after which one the next come; None: there are no more.

    None are found where the server cannot list them, or does not let these credentials.
    """
    bucket, key = split(url)
    more = {"KeyMarker": after.key, "UploadIdMarker": after.id} if after.key else {}
    try:
        answer = client().list_multipart_uploads(Bucket=bucket, Prefix=key and f"{key}/", **more)
    except Exception as error:
        if _code(error) in _UNLISTED or _status(error) == 501:
            return [], None
        raise
    found = [Upload(each["Key"], each["UploadId"]) for each in answer.get("Uploads", [])]
    if not answer.get("IsTruncated"):
        return found, None
    return found, Upload(answer["NextKeyMarker"], answer.get("NextUploadIdMarker") or "")


def abort(url: str, upload: Upload) -> None:
    """Remove an upload in parts, if it is still there."""
    try:
        client().abort_multipart_upload(Bucket=split(url)[0], Key=upload.key, UploadId=upload.id)
    except Exception as error:
        if _code(error) not in _MISSING | {"NoSuchUpload"}:
            raise


def _complete(url: str, of: dict[str, str], parts: list[dict[str, Any]], size: int) -> None:
    try:
        client().complete_multipart_upload(**of, MultipartUpload={"Parts": parts})
    except Exception as error:
        if _code(error) != "NoSuchUpload":
            raise
        stored = head(url)  # the upload may be gone because it was completed, and the answer to that was lost
        if stored is None or stored.bytes != size:
            raise


def delete(url: str) -> None:
    """Remove an object if it exists."""
    bucket, key = split(url)
    try:
        client().delete_object(Bucket=bucket, Key=key)
    except Exception as error:
        if _code(error) not in _MISSING:
            raise


# -- errors ----------------------------------------------------------------------------------------------------------


def _code(error: BaseException) -> str:
    """The S3 error code of an answer, or its HTTP status where it had no body; '' for what is no answer."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _status(error: BaseException) -> int:
    response = getattr(error, "response", None)
    about = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    return int(about.get("HTTPStatusCode", 0))


def is_missing(error: BaseException) -> bool:
    """Whether the object does not exist. A bucket that does not is another matter: nothing can be done without it."""
    return _code(error) in _MISSING


def is_stale(error: BaseException) -> bool:
    """Whether credentials ran out, for which a new client may find new ones."""
    return _code(error) in _STALE_CREDENTIALS


def is_transient(error: BaseException) -> bool:
    """Whether trying again can help: lost connections, timeouts, 5xx, throttling, bytes lost on the way."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    if isinstance(error, exceptions.ClientError):
        status = _status(error)
        return _code(error) in _PASSING or status in (408, 429) or (status >= 500 and status not in _LASTING_5XX)
    if isinstance(error, exceptions.SSLError):  # a handshake that breaks off may succeed the next time
        return not any(sign in str(error) for sign in ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER"))
    passing = (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError)
    return isinstance(error, (*passing, ResponseParserError, ShortRead, ConnectionError, TimeoutError))


def endpoint() -> str:
    """Where requests go, without what else its URL may hold."""
    parts = urlsplit(str(client().meta.endpoint_url))
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def explain(error: BaseException, url: str) -> str:
    """What is wrong and what to do, in one line, for an error of any call above."""
    if isinstance(error, _Unusable):
        return f"{url}: {error.strerror}"
    name, code, bucket = type(error).__name__, _code(error), split(url)[0]
    where = f"bucket {bucket} at {endpoint()}"
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            f"{url}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role, "
            "on every node that runs a worker"
        )
    known = {
        "ProfileNotFound": "AWS_PROFILE names a profile that ~/.aws/config and ~/.aws/credentials do not have",
        "CredentialRetrievalError": "credentials could not be obtained from the role or process that is configured",
        "UnauthorizedSSOTokenError": "the single sign-on session ended; run: aws sso login",
        "SSOTokenLoadError": "there is no single sign-on session; run: aws sso login",
        "TokenRetrievalError": "the single sign-on session ended; run: aws sso login",
        "ParamValidationError": f"{bucket!r} or the key in this URL is no name that S3 allows",
        "NoSuchBucket": f"the {where} does not exist; create it, or check its name and AWS_ENDPOINT_URL",
        "InvalidBucketName": f"{bucket!r} is no name of a bucket",
        "InvalidAccessKeyId": f"{endpoint()} does not know this access key; check AWS_ACCESS_KEY_ID or the profile",
        "SignatureDoesNotMatch": f"{endpoint()} refuses the secret key; check AWS_SECRET_ACCESS_KEY or the profile",
        "AccessDenied": f"permission denied by the {where}; the credentials in use need to list, get, put and delete",
        "AllAccessDisabled": f"all access to the {where} is disabled",
        "RequestTimeTooSkewed": "this machine's clock is off by more than S3 allows; set it (NTP)",
        "EntityTooLarge": f"the {where} does not take objects of this size",
        "QuotaExceeded": f"the {where} is full; make room and run the same command again, it continues",
        "XMinioStorageFull": f"the {where} is full; make room and run the same command again, it continues",
        "InvalidObjectState": "it is archived; restore it first",
        "NotImplemented": f"{endpoint()} does not know this request",
        "MethodNotAllowed": f"{endpoint()} does not allow this request; is AWS_ENDPOINT_URL that of its S3 service?",
    }
    known |= dict.fromkeys(
        _STALE_CREDENTIALS, "the credentials ran out; renew them and run the same command again, it continues"
    )
    known |= dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "400"),
        f"the {where} is in another region, or the request is malformed; set AWS_REGION to the bucket's region",
    )
    known["RecursionError"] = known["PermanentRedirect"]  # botocore asks a redirect that names no region where to go
    known["403"] = known["AccessDenied"]
    known["507"] = known["QuotaExceeded"]
    if (meaning := known.get(code) or known.get(name)) is not None:
        return f"{url}: {meaning} ({code or name})"
    if name == "SSLError":
        return (
            f"{url}: no secure connection to {endpoint()}; trust its certificate with AWS_CA_BUNDLE=FILE, or if it "
            f"speaks plain HTTP say http:// in AWS_ENDPOINT_URL ({_short(error)})"
        )
    return f"{url}: {_short(error)}"


def reason(error: BaseException) -> str:
    """What kept a store from answering, in a few words."""
    name = type(error).__name__
    if name == "ProxyConnectionError":
        return f"cannot connect to the proxy of HTTPS_PROXY or HTTP_PROXY; correct it, or add {endpoint()} to NO_PROXY"
    if name in ("EndpointConnectionError", "ConnectTimeoutError"):
        return f"cannot connect to {endpoint()}; is it up, and AWS_ENDPOINT_URL right?"
    return _short(error)


def _short(error: BaseException) -> str:
    if code := _code(error):
        message = str(getattr(error, "response", {}).get("Error", {}).get("Message", ""))
        return f"{code}: {message}" if message else f"answer {_status(error)} {code}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
