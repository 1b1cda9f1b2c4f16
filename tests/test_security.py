"""Nothing leaks, nothing untrusted is run: secrets, URLs, archives, weights, the Ray we start. SECURITY.md says what is
promised."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from jobs.cli import main
from pipelines.corpus.tars import tar_members, tar_videos
from pipelines.errors import PipelineError
from pipelines.storage.credentials import refuse_credentials
from tests.support import runs, training

PACKAGES = ("autogaze", "pipelines", "cluster", "jobs")
FILES = sorted(file for package in PACKAGES for file in (runs.ROOT / package).rglob("*.py"))
SECRETS = {
    name: f"{name.lower().replace('_', '-')}-must-not-leak"
    for name in ("AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "DATABASE_PASSWORD", "AZURE_STORAGE_KEY")
}
# Ray takes 32 bytes of hexadecimal digits; this one is known, so that it can be looked for.
TOKEN = "5ec2e7" * 10 + "5ec2"


@pytest.fixture(scope="module")
def short() -> Iterator[Path]:
    """A folder with a short name: Ray puts sockets into it, whose paths may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ag-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(command: list[str], environment: dict[str, str], said: list[str]) -> str:
    """Run a command; its standard output. All it said is added to `said`."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said.append(done.stdout + done.stderr)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def run_in_one(
    jobs: Sequence[Sequence[object]], environment: dict[str, str], said: list[str], ray: bool = True
) -> list[int]:
    """Run jobs one after another in a process of their own, on Ray or by plain loops; their exit statuses."""
    script = """
import contextlib, json, sys
from jobs.cli import main
from tests.support.plain_ray_data import plain_ray_data
with contextlib.nullcontext() if json.loads(sys.argv[2]) else plain_ray_data():
    print(json.dumps([main(words) for words in json.loads(sys.argv[1])]))
"""
    told = json.dumps([[str(word) for word in words] for words in jobs])
    statuses: list[int] = json.loads(
        run([sys.executable, "-c", script, told, json.dumps(ray)], environment, said).splitlines()[-1]
    )
    return statuses


# 0: one rank, and preprocess without Ray; 2: ranks on a Ray of their own.
@pytest.mark.slow  # tests/jobs/test_s3_jobs.py has the credentials of S3
@pytest.mark.parametrize("ranks", [0, 1, 2])
def test_no_secret_of_the_environment_is_in_anything_that_jobs_write_or_say(
    bucket: str, store_of_videos: Path, short: Path, tmp_path: Path, ranks: int
) -> None:
    environment = runs.environment() | SECRETS | {"HOME": str(tmp_path / "home"), "RAY_TMPDIR": str(short)}
    environment |= {"AWS_SECRET_ACCESS_KEY": "secret-access-key-must-not-leak", "RAY_AUTH_MODE": "token"}
    environment |= {"RAY_AUTH_TOKEN": TOKEN}
    (tmp_path / "home").mkdir()
    out, said = tmp_path / "out", list[str]()
    gaze, trained, few = out / "gaze", out / "run", tmp_path / "few"
    few.mkdir()
    for number in range(2):
        shutil.copy(store_of_videos / f"clip{number}.mp4", few)
    shutil.copy(store_of_videos / "broken.mp4", few)
    settings = [f"input={few}", f"output={gaze}", "shard.clips=2", "clip.frames=3", "ray.cpus=2"]
    several: list[list[object]] = [["preprocess", *settings]]
    size = [word for word in training.SMALL if word.startswith("policy.")]
    settings = [*size, f"data={gaze}", "max_ratio=0.03", "epochs=1", "global_batch=2", "micro_batch=2", "val_clips=0"]
    settings += [
        "loader.val_fraction=0",
        f"scale.max_workers={ranks or 1}",
        f"scale.min_workers={ranks or 1}",
        "ray.cpus=2",
    ]
    several += [["train", "policy", *settings, f"run={trained}"]]
    several += [["report", gaze, f"output={out / 'report.html'}"], ["verify", gaze], ["audit", trained]]
    several += [["status", gaze], ["status", trained], ["gaze", few / "clip0.mp4", f"output={out / 'one'}"]]
    missing = [["scan", f"input={bucket}-that-is-not/x", f"output={out / 'm.parquet'}"], ["verify", f"{bucket}/none"]]
    told = [0] * len(several) + [2, 2]
    assert run_in_one([*several, *missing], environment, said, ray=ranks > 0) == told, said

    text = "".join(said)
    files = [path for folder in (out, short, tmp_path / "home") for path in folder.rglob("*") if path.is_file()]
    names = {"dataset.json", "events.jsonl", "report.html", "gaze.json"} | ({"raylet.out"} if ranks else set())
    assert names <= {path.name for path in files}
    for secret in (*SECRETS.values(), "secret-access-key-must-not-leak", TOKEN):
        assert secret not in text
        for path in files:
            assert secret.encode() not in path.read_bytes(), path
    assert not list((tmp_path / "home").rglob("auth_token")), (
        "it would switch authentication on for all of the user's Ray"
    )


STARTED = """
import sys
from cluster.local import RayConfig, running
with running(RayConfig(cpus=2, object_store_mb=100)):
    import ray
    from ray._common.usage import usage_lib
    from ray._private.worker import get_dashboard_url
    said = (ray.get_runtime_context().gcs_address, bool(get_dashboard_url()), usage_lib.usage_stats_enabled())
    print(*said, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_the_ray_we_start_is_closed_where_a_user_has_said_nothing(short: Path) -> None:
    """No token, no mode, nothing of usage."""
    bare = {k: v for k, v in runs.environment().items() if not k.startswith("RAY_")} | {"RAY_TMPDIR": str(short)}
    ours = subprocess.Popen(
        [sys.executable, "-c", STARTED], env=bare, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert ours.stdin is not None and ours.stdout is not None
    try:
        address, dashboard, usage = ours.stdout.readline().split()
        assert (dashboard, usage) == ("False", "False")
        require_closed(address, bare)
    finally:
        ours.communicate("\n")


SAID_NOTHING = """
import os
from cluster import local
def start(**options):
    print(os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"], os.environ["RAY_USAGE_STATS_ENABLED"])
    print(options["include_dashboard"])
    raise SystemExit
local.start_ray = start
with local.running(local.RayConfig()):
    pass
"""


def test_where_a_user_has_said_nothing_ray_is_told_to_be_closed() -> None:
    """What Ray makes of it is the next test's and, with a Ray of its own, the slow one's."""
    bare = {k: v for k, v in runs.environment().items() if not k.startswith("RAY_")}
    said = [run([sys.executable, "-c", SAID_NOTHING], bare, []).split() for _ in range(2)]
    for mode, token, usage, dashboard in said:
        assert (mode, usage, dashboard) == ("token", "0", "False") and len(token) == 64
    assert said[0][1] != said[1][1], "each run has its own"


def test_the_ray_we_start_is_closed_has_no_dashboard_and_reports_no_usage(ray_session: str) -> None:
    from ray._common.usage import usage_lib
    from ray._private.worker import get_dashboard_url

    assert not get_dashboard_url() and not usage_lib.usage_stats_enabled()
    ask = (
        "from ray._raylet import GcsClient\n"
        f"print(len(GcsClient(address='{ray_session}').get_all_node_info(timeout=60)))"
    )
    asking = [
        subprocess.Popen([sys.executable, "-c", ask], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for environment in (runs.environment(joins=True), *strangers(runs.environment()))
    ]
    (known, _), *others = (process.communicate() for process in asking)
    assert known == b"1\n"
    for answered, why in others:
        assert answered == b"" and b"InvalidAuthToken" in why


def strangers(environment: dict[str, str]) -> list[dict[str, str]]:
    """Those of processes without the token and with another one."""
    modes = ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    return [environment | mode for mode in modes]


def require_closed(address: str, environment: dict[str, str]) -> None:
    """Nobody joins without the token or with another one."""
    join = f"import ray; ray.init('{address}', logging_level='ERROR'); print(ray.cluster_resources())"
    joining = [
        subprocess.Popen([sys.executable, "-c", join], env=stranger, stdout=subprocess.PIPE, text=True)
        for stranger in strangers(environment)
    ]
    for stranger in joining:
        told, _ = stranger.communicate()
        assert stranger.returncode != 0 and "CPU" not in told, "somebody without the token got in"


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/videos",
        "s3://AKIA:se/cret@bucket/videos",
        "https://user:pass@host/videos",
        "https://ghp_token@host/videos",
        "sftp://user:pass@host/videos",
        "https://bucket.host/v.mp4?X-Amz-Signature=0123&X-Amz-Date=1",
        "https://host/v.mp4?versionId=1&sig=0123",
        "/data/a,s3://key:secret@bucket/b",
    ],
)
def test_credentials_in_a_url_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(PipelineError, match="holds credentials") as error:
        refuse_credentials(url, "input")
    assert str(error.value).startswith("input=") and "\n" not in str(error.value)
    for secret in ("secret", "se/cret", "pass@", "ghp_token", "0123", "key:", "AKIA"):
        assert secret not in str(error.value)


@pytest.mark.parametrize("job", ["scan", "preprocess", "verify", "gaze", "report", "status", "audit", "train policy"])
def test_a_job_that_is_given_credentials_in_a_url_says_so_and_does_nothing(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = {"scan": "input", "preprocess": "input", "gaze": "video", "status": "place", "audit": "run"}
    key = {"train policy": "data"}.get(job) or first.get(job, "dataset")
    for words in ([f"{key}=s3://key:se/cret@bucket/x"], [f"{key}=s3://key:se/cret@bucket/x", "--print-config"]):
        assert main([*job.split(), *words]) == 2
        told = capsys.readouterr()
        assert f"{key}=s3://...: holds credentials" in told.err and "cret" not in told.err + told.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["preprocess", "s3://key:se/cret@bucket/videos", "output=x"],
        ["preprocess", "--input=s3://key:se/cret@bucket/videos"],
        ["preprocess", "clip.frames=s3://key:se/cret@bucket/videos"],
        ["verify", "dataset=/a", "s3://key:se/cret@bucket/videos"],
        ["submit", "scan", "s3://key:se/cret@bucket/videos", "cluster=x.yaml"],
        ["s3://key:se/cret@bucket/videos"],
        ["preprocess", "--config=typed.yaml"],
    ],
)
def test_credentials_are_not_repeated_by_what_else_is_wrong_with_a_command(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("typed.yaml").write_text("clip: {frames: 's3://key:se/cret@bucket/videos'}")
    assert main(words) == 2
    told = capsys.readouterr()
    assert "s3://...: holds credentials" in told.err and "cret" not in told.err + told.out


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a@b/c:d",
        "s3://arn:aws:s3:us-west-2:123:accesspoint/name/videos",
        "http://127.0.0.1:9000/videos",
        "http://[::1]:9000/videos",
        "https://host/v.mp4?versionId=3&page=token",
        "abfs://container@account.dfs.core.windows.net/videos",
        "hf://datasets/org/name@main",
        "/data/user:name@host/videos",
        "nvidia/AutoGaze",
        "",
    ],
)
def test_a_url_without_credentials_is_left_alone(url: str) -> None:
    refuse_credentials(url, "input")


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_code_reads_what_could_run_code() -> None:
    """No pickle, eval, unsafe YAML or shell; weights are loaded as weights only, arrays without objects."""
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for file in FILES:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not unsafe & {name.split(".")[0] for name in names}, file
        for name, call in calls(tree):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert name not in ("eval", "exec", "os.system", "os.popen"), (file, name)
            assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), (file, name)
            assert given.get("shell", "False") == "False", (file, name)
            if name == "torch.load":
                assert given.get("weights_only") == "True", file
            if name in ("np.load", "np.save", "np.lib.format.write_array"):
                assert given.get("allow_pickle") == "False", file
            assert not name.endswith((".extractall", ".unpack_archive")), (file, name)
            assert given.get("trust_remote_code", "False") == "False", (file, name)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(Path(tempfile.gettempdir()) / "autogaze-was-here"),))


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    torch.save({"model": Payload()}, tmp_path / "model.pt")
    with pytest.raises(Exception, match=r"model\.pt"):
        VideoMAE.from_pretrained(str(tmp_path / "model.pt"))
    assert not (Path(tempfile.gettempdir()) / "autogaze-was-here").exists()


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = "a.mp4") -> bytes:
    """A tar header with a size that tarfile itself would not write."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (size % (1 << 96) | 1 << 95).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


@pytest.mark.parametrize("size", [10**12, 1 << 87])
def test_a_member_that_says_it_is_huge_ends_the_tar(tmp_path: Path, size: int) -> None:
    (tmp_path / "t.tar").write_bytes(header(size) + bytes(4096))
    with pytest.raises(EOFError):
        list(tar_members(str(tmp_path / "t.tar")))


@pytest.mark.parametrize("size", [10**12, 3 << 30, 1 << 87, -1024])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_says_it_is_huge_is_a_damaged_tar_and_takes_no_memory(
    tmp_path: Path, kind: bytes, size: int
) -> None:
    with (tmp_path / "t.tar").open("wb") as file:
        file.write(header(size, kind) + b"1" * 512)
        file.truncate(4 << 30)  # so that there is something to read; it takes no room on the disk
    tracemalloc.start()
    with pytest.raises(tarfile.TarError):
        list(tar_members(str(tmp_path / "t.tar")))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_member_of_less_than_nothing_is_a_damaged_tar(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(header(-1024) + bytes(4096))
    with pytest.raises(tarfile.TarError, match="-1024"):
        list(tar_members(str(tmp_path / "t.tar")))


@pytest.mark.parametrize("name", ["/etc/passwd.mp4", "../../../up.mp4", "a/../../b.mp4", "..\\up.mp4", "-rf.mp4"])
def test_a_members_name_is_only_a_label(tmp_path: Path, name: str) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    (tmp_path / "t.tar").write_bytes(sink.getvalue())
    before = runs.tree(tmp_path)
    assert [(member.name, member.size) for member in tar_members(str(tmp_path / "t.tar"))] == [(name, 3)]
    assert runs.tree(tmp_path) == before


def test_what_is_no_file_in_a_tar_is_passed_over(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for number, kind in enumerate(kinds):
            member = tarfile.TarInfo(f"{number}.mp4")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    found = tar_videos(str(tmp_path / "t.tar"))
    assert found.videos == {} and found.passed.total == 5  # a folder is nothing to tell


def test_the_policy_and_the_guides_hold_no_secret() -> None:
    words = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|ghp_[0-9A-Za-z]{36}|hf_[A-Za-z]{34}")
    for file in [*FILES, *runs.ROOT.glob("*.md"), *(runs.ROOT / "docs").rglob("*.md")]:
        assert not words.search(file.read_text()), file
