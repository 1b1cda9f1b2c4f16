"""Jobs on a real Slurm of two nodes: the same bytes as on one machine, whatever happens, and nothing left behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.slurm import cancel, logs, status, submit, submit_array
from cluster.spec import (
    ClusterSpec,
    EnvironmentConfig,
    HeadGroup,
    NodeGroup,
    SlurmConfig,
    StorageConfig,
    TimeoutsConfig,
)
from pipelines.preprocess.config import shards_of_part
from tests.support import runs, slurm_host, training
from tests.support.encoders import write_encoder
from tests.support.slurm_host import ended, left, log
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.usefixtures("slurm_cluster"), pytest.mark.timeout(1800)]
JOINED = [sys.executable, str(Path(__file__).parent / "joined.py")]


@pytest.fixture
def spec(tmp_path: Path, node_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterSpec]:
    """Two nodes, one Ray over them. When the test is over, no process and no folder of its jobs may be there."""
    for name in [name for name in runs.os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))
    found = ClusterSpec(
        backend="slurm",
        name="test",
        head=HeadGroup(cpus=2, memory_gb=2),
        decode=NodeGroup(nodes=1, cpus=2, memory_gb=2),
        environment=EnvironmentConfig(python=sys.executable, tmp=str(node_tmp)),
        timeouts=TimeoutsConfig(ready_s=200, grace_s=20),
        slurm=SlurmConfig(logs=str(tmp_path / "logs")),
    )
    yield found
    ids = [path.stem.rsplit("-", 1)[1] for path in (tmp_path / "logs").glob("*.sh")]
    assert wait_until(lambda: not left(ids), every=0.2), left(ids)
    assert not list(node_tmp.iterdir())


def alone(spec: ClusterSpec, cpus: int = 2) -> ClusterSpec:
    return replace(spec, head=HeadGroup(cpus=cpus, memory_gb=2), decode=NodeGroup())


@pytest.fixture(scope="session")
def whole(store_of_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """A command that lacks only its output, and what it makes without Slurm and Ray."""
    output = tmp_path_factory.mktemp("local") / "gaze"
    command = ["preprocess", f"input={store_of_videos}", "shard.clips=2", "workers.decode=1", "workers.gaze=1"]
    done = runs.plainly(*command, f"output={output}")
    assert done.returncode == 0, done.stderr
    return ["autogaze", *command], runs.tree(output)


@pytest.fixture(scope="session")
def all_of_it(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """The same of all clips of 111 real videos."""
    output = tmp_path_factory.mktemp("corpus") / "gaze"
    command = ["preprocess", f"input={corpus / 'train'}", "workers.decode=1", "workers.gaze=1"]
    done = runs.plainly(*command, f"output={output}")
    assert done.returncode == 0, done.stderr
    return ["autogaze", *command], runs.tree(output)


def files_of(files: dict[str, str], folder: str) -> list[str]:
    return [name for name in files if name.startswith(folder)]


def seen(spec: ClusterSpec, job_id: str) -> dict:
    found = re.search(r"seen (\{.*\})", log(spec, job_id))
    assert found, log(spec, job_id)
    return json.loads(found[1])


# -- one Ray over the nodes --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_cancelled_or_off_a_node_goes_on_to_the_bytes_of_a_local_run(
    spec: ClusterSpec, all_of_it: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    command, files = all_of_it
    output = tmp_path / "gaze"
    command = [*command, f"output={output}"]

    def shards() -> int:
        return len(list(output.glob("index/*.parquet")))

    cancelled = submit(spec, command)
    assert wait_until(lambda: shards() or status(spec, cancelled).exit is not None, every=0.05)
    cancel(spec, cancelled)
    assert ended(spec, cancelled).state == "CANCELLED", "and it stays so"
    assert wait_until(lambda: not left([cancelled]), every=0.2), left([cancelled])
    assert not list(Path(spec.environment.tmp).iterdir()), "nothing stays on the nodes"
    before = shards()
    assert 0 < before < len(list((tmp_path / "gaze").glob("shards/*.tar"))) + 1

    again = submit(spec, command)
    assert wait_until(lambda: shards() > before or status(spec, again).exit is not None, every=0.05)
    slurm_host.take_down("n2")
    try:
        assert wait_until(lambda: status(spec, again).state == "PENDING", every=0.2), log(spec, again)
    finally:
        slurm_host.bring_back("n2")
    now = ended(spec, again)
    assert (now.state, now.exit, now.restarts) == ("COMPLETED", 0, 1), log(spec, again)
    assert runs.tree(output) == files
    assert "Ray on 2 node(s)" in log(spec, again) and "4 decode" not in log(spec, again)
    assert logs(spec, again) == [Path(spec.slurm.logs) / f"test-{again}.log"]


@pytest.mark.slow
def test_nodes_of_different_shapes_join_one_ray_and_see_the_spec(spec: ClusterSpec) -> None:
    spec = replace(
        spec,
        head=HeadGroup(cpus=1, memory_gb=1),
        decode=NodeGroup(),
        gpu=NodeGroup(nodes=1, cpus=2, memory_gb=2, gpus=1, gpu_kind="toy"),
        environment=replace(spec.environment, setup="export MARK='of the setup'"),
        storage=StorageConfig(endpoint_url="http://nowhere:1", profile="lab"),
    )
    job_id = submit(spec, JOINED)
    now = ended(spec, job_id)
    assert now.state == "COMPLETED", log(spec, job_id)
    found = seen(spec, job_id)
    assert (found["nodes"], found["cpus"], found["gpus"]) == (2, 3, 1)
    assert found["squares"] == [number**2 for number in range(8)] and found["endpoint"] == "http://nowhere:1"
    assert found["token_shown_in"] == [] and found["folder_mode"] == "0o700"
    assert not re.search(r"[0-9a-f]{64}", log(spec, job_id) + (Path(spec.slurm.logs) / f"test-{job_id}.sh").read_text())


@pytest.mark.slow
def test_two_jobs_on_one_node_do_not_meet_and_a_failure_is_told(spec: ClusterSpec) -> None:
    spec = alone(spec, cpus=1)
    good, bad = submit(spec, JOINED), submit(spec, [*JOINED, "exit=3"])
    assert (ended(spec, good).state, ended(spec, good).exit) == ("COMPLETED", 0), log(spec, good)
    assert (ended(spec, bad).state, ended(spec, bad).exit) == ("FAILED", 3), log(spec, bad)
    for job_id in (good, bad):
        assert (seen(spec, job_id)["nodes"], seen(spec, job_id)["cpus"]) == (1, 1), "each sees a Ray of its own"


@pytest.mark.slow
def test_a_training_job_told_to_stop_saves_goes_back_into_the_queue_and_goes_on(
    spec: ClusterSpec, tmp_path: Path
) -> None:
    data = training.write_dataset(tmp_path / "data")
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    settings = ["epochs=40", "every.checkpoint=0", "every.keep=1"]
    job_id = submit(
        alone(spec), ["autogaze", "train", "policy", *training.settings(data, run, *settings)], joins_ray=False
    )
    events = run / "events.jsonl"
    assert wait_until(lambda: events.exists() and b'"step": 2,' in events.read_bytes()), log(spec, job_id)
    # What Slurm sends before the time limit, and to a job that it preempts: SIGTERM to the batch process alone.
    subprocess.run(["scancel", "--batch", "--signal=TERM", job_id], check=True)
    assert wait_until(lambda: status(spec, job_id).state == "PENDING", every=0.2), log(spec, job_id)
    assert "step-000200" > training.newest(run).name >= "step-000002", "after a checkpoint, before the end"

    now = ended(spec, job_id)
    assert (now.state, now.exit, now.restarts) == ("COMPLETED", 0, 1), log(spec, job_id)
    assert "back in the queue" in log(spec, job_id)
    assert training.train(training.policy_config(data, undisturbed, *settings)) == "done"
    assert training.end_of(run) == training.end_of(undisturbed)
    training.require_clean(run)


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_an_array_plans_once_and_then_starts_each_part_once(spec: ClusterSpec, tmp_path: Path) -> None:
    """Of a command that only notes which part it was asked for; the bytes are test_parts' and the next test's."""
    parts, note = tmp_path / "parts", "import sys; open(sys.argv[1], 'a').write(sys.argv[-1] + '\\n')"
    spec = replace(spec, head=HeadGroup(cpus=1, memory_gb=1), slurm=replace(spec.slurm, array=2))
    job_id = submit_array(spec, [sys.executable, "-c", note, str(parts)])
    assert status(spec, job_id).tasks == {0: "PENDING", 1: "PENDING"}, "until the plan is there"
    now = ended(spec, job_id)
    assert now.state == "COMPLETED" and now.tasks == {0: "COMPLETED", 1: "COMPLETED"}, log(spec, job_id)
    plan, *rest = parts.read_text().split()
    assert plan == "part=plan" and sorted(rest) == ["part=0/2", "part=1/2"]


@pytest.mark.slow
def test_an_array_plans_once_and_makes_the_bytes_of_a_local_run(
    spec: ClusterSpec, whole: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    command, files = whole
    spec = replace(spec, slurm=replace(spec.slurm, array=2))
    job_id = submit_array(spec, [*command, f"output={tmp_path / 'gaze'}"])
    assert status(spec, job_id).tasks == {0: "PENDING", 1: "PENDING"}, "until the plan is there"
    now = ended(spec, job_id)
    assert now.state == "COMPLETED" and now.tasks == {0: "COMPLETED", 1: "COMPLETED"}, log(spec, job_id)
    assert runs.tree(tmp_path / "gaze") == files


@pytest.mark.slow
def test_an_array_encodes_to_the_bytes_of_a_local_run(spec: ClusterSpec, store_of_videos: Path, tmp_path: Path) -> None:
    settings = ["encode", f"input={store_of_videos}", f"encoder.checkpoint={write_encoder(tmp_path / 'siglip')}"]
    settings += ["shard.clips=2", "workers.decode=1", "workers.encode=1"]
    done = runs.plainly(*settings, f"output={tmp_path / 'local'}")
    assert done.returncode == 0, done.stderr
    spec = replace(spec, slurm=replace(spec.slurm, array=2))
    job_id = submit_array(spec, ["autogaze", *settings, f"output={tmp_path / 'features'}"])
    assert ended(spec, job_id).state == "COMPLETED", log(spec, job_id)
    assert runs.tree(tmp_path / "features") == runs.tree(tmp_path / "local")


@pytest.mark.slow
def test_some_tasks_of_an_array_make_their_parts_and_the_rest_are_made_later(
    spec: ClusterSpec, all_of_it: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    command, files = all_of_it
    output = tmp_path / "gaze"
    spec = replace(spec, head=HeadGroup(cpus=2, memory_gb=2), slurm=replace(spec.slurm, array=3, array_parallel=2))
    job_id = submit_array(spec, [*command, f"output={output}"], "0,2")
    waiting = status(spec, job_id)
    assert waiting.state == "PENDING" and waiting.tasks == {0: "PENDING", 2: "PENDING"}
    assert wait_until(lambda: list(output.glob("index/*.parquet")), every=0.1), log(spec, job_id)
    subprocess.run(["scontrol", "requeue", f"{job_id}_2"], check=True)
    now = ended(spec, job_id)
    assert now.state == "COMPLETED" and now.tasks == {0: "COMPLETED", 2: "COMPLETED"}, log(spec, job_id)
    there, shards = {int(path.stem) for path in output.glob("index/*.parquet")}, len(files_of(files, "index/"))
    assert there == {*shards_of_part("0/3", shards), *shards_of_part("2/3", shards)} != set()

    rest = submit_array(spec, [*command, f"output={output}"], "1", plan=False)
    assert ended(spec, rest).state == "COMPLETED", log(spec, rest)
    assert runs.tree(output) == files
    assert [path.name for path in logs(spec, job_id)][1:] == [f"test-{job_id}_{task}.log" for task in (0, 2)]


def test_the_tasks_of_an_array_are_told_however_slurm_writes_them(spec: ClusterSpec, tmp_path: Path) -> None:
    """1-31:2 where they are regular, and a list that it otherwise cuts short."""
    spec = replace(spec, slurm=replace(spec.slurm, array=400, array_parallel=1))
    for tasks in (range(1, 32, 2), [number**2 + 1 for number in range(20)]):
        job_id = submit_array(spec, ["sleep", "600"], ",".join(map(str, tasks)), plan=False)
        assert sorted(status(spec, job_id).tasks) == list(tasks)
        cancel(spec, job_id)
        assert ended(spec, job_id).state == "CANCELLED"


def test_the_job_that_plans_for_an_array_ends_with_it_and_tells_why_it_failed(spec: ClusterSpec) -> None:
    spec = replace(spec, slurm=replace(spec.slurm, array=2, requeue=False))

    def printed(job_id: str) -> str:
        return "".join(path.read_text() for path in logs(spec, job_id))

    job_id = submit_array(spec, ["sleep", "600"])  # which does not know the words that say what is to be planned
    assert wait_until(lambda: "invalid time interval" in printed(job_id), every=0.2)
    cancel(spec, job_id)

    job_id = submit_array(spec, [sys.executable, "-c", "import time; print('plans', flush=True); time.sleep(600)"])
    assert wait_until(lambda: "plans" in printed(job_id), every=0.2)
    [plan] = [path.stem.rsplit("-", 1)[1] for path in logs(spec, job_id)]
    assert status(spec, plan).state == "RUNNING"
    cancel(spec, job_id)
    assert ended(spec, plan).state == ended(spec, job_id).state == "CANCELLED"


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"head": HeadGroup(cpus=64, memory_gb=2)}, "Requested node configuration is not available"),
        ({"decode": NodeGroup(nodes=9, cpus=2, memory_gb=2)}, "Requested node configuration is not available"),
        ({"gpu": NodeGroup(nodes=1, gpus=1, gpu_kind="h9000")}, "Requested node configuration is not available"),
        ({"slurm": SlurmConfig(partition="nowhere")}, "invalid partition specified: nowhere"),
    ],
)
def test_what_slurm_refuses_is_told_in_its_words(spec: ClusterSpec, tmp_path: Path, changed: dict, told: str) -> None:
    changed.setdefault("slurm", SlurmConfig()).logs = str(tmp_path / "logs")
    with pytest.raises(ClusterError, match=f"sbatch: .*{told}") as raised:
        submit(replace(spec, **changed), ["true"])
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "logs").iterdir()), "no script of a job that is none"


def test_a_job_that_nobody_knows(spec: ClusterSpec) -> None:
    with pytest.raises(ClusterError, match="job 987654: Slurm does not know it"):
        status(spec, "987654")
    with pytest.raises(ClusterError, match=r"scancel: .*Invalid job id"):
        cancel(spec, "987654")
    with pytest.raises(ClusterError, match=r"job \.\./etc: a job's id is a number"):
        logs(spec, "../etc")


@pytest.mark.slow
def test_nodes_that_do_not_come_end_the_job_with_a_line(spec: ClusterSpec) -> None:
    broken = replace(spec, environment=replace(spec.environment, setup='[ "$SLURMD_NODENAME" = n1 ] || exit 7'))
    job_id = submit(broken, JOINED)
    assert (ended(spec, job_id).state, ended(spec, job_id).exit) == ("FAILED", 1)
    assert "a node could not join Ray" in log(spec, job_id) and "seen" not in log(spec, job_id)


def test_a_command_that_is_not_there_is_told(spec: ClusterSpec) -> None:
    job_id = submit(alone(spec), ["autogase", "preprocess"], joins_ray=False)
    assert ended(spec, job_id).exit == 1 and "autogase: No such file" in log(spec, job_id)
