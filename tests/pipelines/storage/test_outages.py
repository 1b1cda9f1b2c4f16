"""Stores on S3 servers that die, throttle, lie and refuse: what is tried again, and what is told."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.loading.config import LoaderConfig
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import Batch
from pipelines.runs.audit import audit
from pipelines.storage import retry, s3, store
from pipelines.storage.retry import StoreError, TransientStoreError
from tests.support import s3_servers, training
from tests.support.s3_servers import BUCKET, Proxy, Rclone, Request, first
from tests.support.waiting import wait_until

PLACE = f"s3://{BUCKET}"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that never come are waited for for half a second, and attempts follow each other quickly."""
    monkeypatch.setattr(s3, "_READ_SECONDS", 0.5)
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.05)


def slow_down(request: Request) -> bool:
    return request.refuse(503, "SlowDown", "Please reduce your request rate.")


def broken_off(request: Request) -> bool:
    """Half of the body, below the Content-Length of the whole."""
    status, headers, body = request.pass_on()
    request.send(status, headers, body, cut=len(body) // 2)
    return True


def too_short(request: Request) -> bool:
    """Half of the body as if that were all, and what part of the object it should have been."""
    status, headers, body = request.pass_on()
    kept = [(name, value) for name, value in headers if name.lower() not in ("content-length", "etag")]
    request.send(
        status,
        [*kept, ("ETag", dict(headers)["Etag"]), ("Content-Length", str(len(body) // 2))],
        body[: len(body) // 2],
    )
    return True


def other_part(request: Request) -> bool:
    """What lies one byte further, and told as such."""
    status, headers, body = request.pass_on()
    begin, end = request.headers["Range"].removeprefix("bytes=").split("-")
    span = ("Content-Range", f"bytes {int(begin) + 1}-{end}/100000")
    request.send(status, [pair for pair in headers if pair[0] != "Content-Range"] + [span], body[1:] + b"x")
    return True


def silent(request: Request) -> bool:
    time.sleep(0.8)
    request.hang_up()
    return True


def reset(request: Request) -> bool:
    request.hang_up()
    return True


def not_xml(request: Request) -> bool:
    request.send(502, [("Content-Type", "text/html")], b"<html><body>Bad Gateway")
    return True


FAULTS: list[Callable[[Request], bool]] = [slow_down, broken_off, silent, reset, not_xml]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_an_answer_loses_is_asked_for_again(s3_proxy: Proxy, tmp_path: Path, fault: s3_servers.Fault) -> None:
    data, url = os.urandom(3_000_000), f"{PLACE}/x"
    store.publish(data, url)

    def troubled() -> None:
        s3_proxy.fault = first(1 if fault is silent else 2, fault)

    troubled()
    assert store.read(url) == data
    troubled()
    assert store.read(url, 1000, 2_000_000) == data[1000:2_001_000]
    troubled()
    assert store.fetch(url, str(tmp_path / "x")) == len(data) and (tmp_path / "x").read_bytes() == data
    troubled()
    assert [(entry.url, entry.bytes) for entry in store.list_objects(PLACE)] == [(url, len(data))]
    if fault is not broken_off:  # of an answer that has no body, nothing is lost
        troubled()
        store.publish(data[::-1], url)
        troubled()
        assert store.size(url) == len(data)
    s3_proxy.fault = None
    assert store.read(url) == (data if fault is broken_off else data[::-1])


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fault", [too_short, other_part], ids=lambda fault: fault.__name__)
def test_a_part_that_is_not_the_one_asked_for_is_noticed_by_its_length_and_place(
    s3_proxy: Proxy, tmp_path: Path, fault: s3_servers.Fault
) -> None:
    data, url = os.urandom(100_000), f"{PLACE}/x"
    store.publish(data, url)
    s3_proxy.fault = first(3, fault, "GET")
    assert store.read(url, 10, 50_000) == data[10:50_010]
    s3_proxy.fault = first(3, fault, "GET")
    assert store.fetch(url, str(tmp_path / "x"), 10, 50_000) == 50_000
    assert (tmp_path / "x").read_bytes() == data[10:50_010]


def test_a_server_that_knows_no_ranges_is_read_all_the_same(s3_proxy: Proxy) -> None:
    data, url = os.urandom(100_000), f"{PLACE}/x"
    store.publish(data, url)
    whole = [("Content-Length", str(len(data))), ("ETag", '"x"')]
    s3_proxy.fault = first(9, lambda request: bool(request.send(200, whole, data)) or True, "GET")
    assert store.read(url, 10, 50_000) == data[10:50_010] and store.read(url, 99_000, 5_000) == data[99_000:]
    assert s3_proxy.counts["GET"] == 2


@pytest.mark.usefixtures("hurried")
def test_a_fetch_goes_on_where_it_broke_off(s3_proxy: Proxy, tmp_path: Path) -> None:
    data, url, asked = os.urandom(8_000_000), f"{PLACE}/x", list[str]()
    store.publish(data, url)

    def half(request: Request) -> bool:
        asked.append(request.headers.get("Range", ""))
        return broken_off(request)

    s3_proxy.fault = first(3, half, "GET")
    assert store.fetch(url, str(tmp_path / "x"), 100) == len(data) - 100
    assert (tmp_path / "x").read_bytes() == data[100:]
    begins = [int(one.removeprefix("bytes=").split("-")[0]) for one in asked]
    assert begins[0] == 100 and begins[0] < begins[1] < begins[2], "each begins where the one before ended"


def test_an_object_that_is_replaced_while_it_is_fetched_is_copied_anew(s3_proxy: Proxy, tmp_path: Path) -> None:
    url, old, new = f"{PLACE}/x", b"a" * 4_000_000, b"b" * 3_500_000
    store.publish(old, url)

    def replaced(request: Request) -> bool:
        broken_off(request)
        s3_proxy.fault = None
        store.publish(new, url)
        return True

    s3_proxy.fault = first(1, replaced, "GET")
    assert store.fetch(url, str(tmp_path / "x")) == len(new)
    assert (tmp_path / "x").read_bytes() == new


def test_a_request_costs_one_request(s3_proxy: Proxy, tmp_path: Path) -> None:
    data, url = os.urandom(9_000_000), f"{PLACE}/folder/x"
    for act, kind in (
        (lambda: store.publish(data, url), "PUT"),
        (lambda: store.read(url), "GET"),
        (lambda: store.read(url, 5, 50), "GET"),
        (lambda: store.fetch(url, str(tmp_path / "x"), 0, len(data)), "GET"),
        (lambda: store.size(url), "HEAD"),
        (lambda: store.exists(url), "HEAD"),
        (lambda: store.exists(f"{url}-nothing"), "HEAD"),
        (lambda: list(store.list_objects(f"{PLACE}/folder")), "LIST"),
        (lambda: store.remove(url), "DELETE"),
    ):
        s3_proxy.counts.clear()
        act()
        assert dict(s3_proxy.counts) == {kind: 1}


def test_a_server_that_is_killed_and_comes_back_is_waited_for(
    s3_server: Rclone, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_TELL_SECONDS", 0.5)
    data = os.urandom(5_000_000)
    store.publish(data, f"{PLACE}/x")
    with s3_server.away(1.5):
        store.publish(data, f"{PLACE}/y")
        assert store.fetch(f"{PLACE}/y", str(tmp_path / "y")) == len(data)
    assert (tmp_path / "y").read_bytes() == data
    told = [record.getMessage() for record in caplog.records if record.name == "pipelines.storage.retry"]
    assert len(told) == 1 and "cannot connect to http://127.0.0.1" in told[0]


@pytest.mark.slow
def test_a_slow_line_is_no_outage(s3_server: Rclone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transfers that last longer than any one timeout, to and from a server at 1 MB/s."""
    monkeypatch.setattr(s3, "_CONNECT_SECONDS", 1)
    s3.forget_client()
    s3_server.kill()
    s3_server.start("--bwlimit", "1M")
    data = os.urandom(3_000_000)
    store.publish(data, f"{PLACE}/x")
    assert store.read(f"{PLACE}/x") == data
    assert len(list((s3_server.folder / BUCKET).iterdir())) == 1


def test_a_large_file_goes_in_parts_and_each_is_tried_again(s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data, url = os.urandom(12 << 20), f"{PLACE}/labels.json"
    s3_proxy.fault = s3_servers.every(3, slow_down)
    with store.publishing(url) as out:
        out.write(data)
    s3_proxy.fault = None
    assert store.read(url) == data
    assert s3_proxy.counts["PUT"] >= 3 and s3_proxy.counts["POST"] >= 2


def test_parts_whose_completion_was_not_heard_of_are_complete(s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data, url = os.urandom(6 << 20), f"{PLACE}/labels.json"

    def done_in_silence(request: Request) -> bool:
        if "uploadId" not in request.path:
            return False
        request.pass_on()
        request.hang_up()
        return True

    begun = first(9, lambda request: done_in_silence(request) if request.command == "POST" else False, "POST")
    s3_proxy.fault = lambda request: begun(request) if s3_proxy.counts["POST"] == 2 else False
    with store.publishing(url) as out:
        out.write(data)
    s3_proxy.fault = None
    assert store.read(url) == data


def test_an_upload_that_fails_is_taken_back(s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    s3_proxy.fault = lambda request: "partNumber=2" in request.path and request.refuse(403, "AccessDenied")
    with pytest.raises(StoreError, match="permission denied"), store.publishing(f"{PLACE}/x") as out:
        out.write(os.urandom(12 << 20))
    assert s3_proxy.counts["DELETE"] == 1 and not store.exists(f"{PLACE}/x")


@pytest.mark.parametrize(
    "status, code, told",
    [
        (403, "AccessDenied", "permission denied by the bucket corpus at http://127.0.0.1"),
        (403, "InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "check AWS_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", "clock is off"),
        (400, "ExpiredToken", "credentials ran out"),
        (400, "EntityTooLarge", "does not take objects of this size"),
        (400, "AuthorizationHeaderMalformed", "set AWS_REGION"),
        (301, "PermanentRedirect", "set AWS_REGION"),
        (404, "NoSuchBucket", "does not exist; create it"),
        (501, "NotImplemented", "does not know this request"),
        (507, "XMinioStorageFull", "is full"),
        (409, "InvalidBucketState", "InvalidBucketState: as the test wants it"),
    ],
)
def test_what_waiting_cannot_help_is_one_line_at_once(s3_proxy: Proxy, status: int, code: str, told: str) -> None:
    s3_proxy.fault = lambda request: request.refuse(status, code, headers=[("x-amz-bucket-region", "eu-north-1")])
    for act in (lambda: store.publish(b"data", f"{PLACE}/x"), lambda: store.read(f"{PLACE}/x"), listed):
        s3_proxy.counts.clear()
        with pytest.raises(StoreError) as caught:
            act()
        text = str(caught.value)
        assert told in text and text.startswith(PLACE) and "\n" not in text and s3_servers.SECRET not in text
        assert not isinstance(caught.value, TransientStoreError) and s3_proxy.counts.total() <= 2


def test_a_redirect_that_names_no_region_is_told_as_one(s3_proxy: Proxy) -> None:
    s3_proxy.fault = lambda request: request.refuse(301, "PermanentRedirect")
    for act in (lambda: store.publish(b"data", f"{PLACE}/x"), lambda: store.read(f"{PLACE}/x"), listed):
        with pytest.raises(StoreError, match="set AWS_REGION to the bucket's region"):
            act()


def listed() -> None:
    list(store.list_objects(PLACE))


def test_a_store_that_can_be_read_but_not_written_is_found_before_any_work(s3_proxy: Proxy) -> None:
    s3_proxy.fault = lambda request: request.command == "PUT" and request.refuse(403, "AccessDenied")
    listed()
    with pytest.raises(StoreError, match="permission denied"):
        store.require_writable(f"{PLACE}/gaze")


def test_a_bucket_that_does_not_exist_is_told_wherever_it_comes_up(s3_server: Rclone) -> None:
    for act in (
        lambda: list(store.list_objects("s3://nothing-here/x")),
        lambda: store.read("s3://nothing-here/x"),
        lambda: store.require_writable("s3://nothing-here/x"),
    ):
        with pytest.raises(StoreError, match=r"bucket nothing-here at http://127.0.0.1:[0-9]+ does not exist"):
            act()


def test_wrong_credentials_and_a_wrong_endpoint_are_told_as_what_they_are(
    s3_server: Rclone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    s3.forget_client()
    with pytest.raises(StoreError, match="AWS_SECRET_ACCESS_KEY") as caught:
        store.read(f"{PLACE}/x")
    assert "another-secret" not in str(caught.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another-key")
    s3.forget_client()
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        store.read(f"{PLACE}/x")
    s3_servers.use(monkeypatch, "localhost/x")
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL"):
        store.read(f"{PLACE}/x")
    monkeypatch.setattr(retry, "_RETRY_SECONDS", 1.0)
    s3_servers.use(monkeypatch, f"http://127.0.0.1:{s3_servers.free_port()}")
    with pytest.raises(TransientStoreError, match="cannot connect to http"):
        retry.retrying(lambda: s3.get(f"{PLACE}/x"), f"{PLACE}/x", store.filesystem_of(PLACE), 1.0)


def test_credentials_that_ran_out_are_looked_up_again_once(
    s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a profile has them whose file is rewritten by whatever logs in."""
    store.publish(b"data", f"{PLACE}/x")
    profile = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    (tmp_path / "credentials").write_text(profile.format("old-key", "old-secret"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3.forget_client()

    def expired(request: Request) -> bool:
        if "old-key" not in request.headers["Authorization"]:
            return False
        (tmp_path / "credentials").write_text(profile.format(s3_servers.KEY, s3_servers.SECRET))
        return request.refuse(400, "ExpiredToken")

    s3_proxy.fault = expired
    assert store.read(f"{PLACE}/x") == b"data"


def test_a_certificate_that_is_not_trusted_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = str(tmp_path / "pem")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", pem, "-out", f"{pem}.crt"]
    try:
        subprocess.run([*words, "-subj", "/CN=127.0.0.1"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    proxy = Proxy("http://127.0.0.1:1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{pem}.crt", pem)
    proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
    proxy.handle_error = lambda *_: None  # type: ignore[method-assign]  # the client hangs up on it
    s3_servers.use(monkeypatch, proxy.url.replace("http:", "https:"))
    with pytest.raises(StoreError, match="AWS_CA_BUNDLE"):
        store.read(f"{PLACE}/x")
    proxy.close()


def test_a_forked_process_and_many_threads_have_connections_of_their_own(s3_server: Rclone) -> None:
    datas = {f"{PLACE}/{number}": os.urandom(200_000) for number in range(8)}
    for url, data in datas.items():
        store.publish(data, url)
    wrong: list[str] = []

    def read() -> None:
        wrong.extend(url for url, data in datas.items() for _ in range(3) if store.read(url) != data)

    threads = [threading.Thread(target=read) for _ in range(8)]
    child = os.fork()
    if child == 0:
        read()
        os._exit(len(wrong))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0 and not wrong


# -- training ----------------------------------------------------------------------------------------------------------


def struck(server: Rclone, when: Callable[[], object], seconds: float) -> threading.Thread:
    """A thread that kills the server at a moment, and starts it again after so many seconds."""

    def strike() -> None:
        assert wait_until(when)
        with server.away(seconds):
            pass

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


def test_an_epoch_is_read_through_an_outage_and_bytes_that_changed_on_the_way_are_asked_for_again(
    s3_server: Rclone, s3_proxy: Proxy, gazes: str
) -> None:
    served = s3_server.folder / BUCKET
    shutil.copytree(gazes, served / "gazes")

    def epoch(data: str) -> list[tuple[list[str], bytes]]:
        config = LoaderConfig([data], global_batch=4, workers=2, prefetch=1, window=2)
        return [(batch.keys, batch.frames.numpy().tobytes()) for batch in loading(ShardLoader(config, epochs=1))]

    def loading(loader: ShardLoader) -> Iterator[Batch]:
        for number, batch in enumerate(loader):
            if number == 1:
                strikes.append(struck(s3_server, lambda: True, 1.5))
            yield batch

    def wrong_bytes(request: Request) -> bool:
        status, headers, body = request.pass_on()
        request.send(status, headers, bytes(len(body)))
        return True

    strikes: list[threading.Thread] = []
    smooth = epoch(gazes)
    strikes[0].join()
    s3_proxy.fault = first(2, wrong_bytes, "GET", ".tar")
    assert epoch(f"{PLACE}/gazes") == smooth
    strikes[1].join()
    assert s3_proxy.counts["GET"] > 0


@pytest.mark.slow
def test_a_training_run_on_s3_goes_on_after_an_outage_with_the_bits_of_an_undisturbed_one(
    s3_server: Rclone, gazes: str, smooth_run: Path
) -> None:
    served = s3_server.folder / BUCKET
    shutil.copytree(gazes, served / "gazes")
    run = served / "run"
    config = training.policy_config(f"{PLACE}/gazes", Path("run"), f"run={PLACE}/run")
    striker = struck(s3_server, lambda: list(run.glob("checkpoints/step-000004/*")), 5)
    assert training.train(config) == "done"
    striker.join()
    assert training.end_of(run) == training.end_of(smooth_run)
    found = audit(f"{PLACE}/run")
    assert not found.count and len(found.attempts) == 1, "it waited, and did not begin again"
    assert not any(s3_servers.SECRET.encode() in path.read_bytes() for path in served.rglob("*") if path.is_file())
