"""Faults as a command: jobs on a real Ray cluster of three nodes and a real S3 server, while things die around them.

    python -m tests.chaos.chaos --seed 1 --faults 8                    # all jobs
    python -m tests.chaos.chaos --job rl --faults 20

Each job runs undisturbed once, then again under faults drawn by the seed:
  actor     kill -9 of a Ray worker process: a decode, gaze or rollout actor, a learner rank, or one of Ray's own
  node      kill -9 of a node with all its processes; another takes its place
  driver    kill -9 of the job's own process; the same command is run again
  stop      SIGTERM to it; the same command is run again
  storage   the S3 server is killed, and back some seconds later
  hang      the S3 server answers nothing for some seconds
  disk      the disk of the output is full for some seconds (where this process may mount one of its own)
The videos hold broken and cut off ones throughout. A job passes if it comes to its end and what it leaves behind has
the hashes of the undisturbed run, and the ledger audits clean.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import places, runs, s3_servers, training
from tests.support.videos import write_video

ROOT = places.ROOT

JOBS = ("preprocess", "train", "rl")
FAULTS = ("actor", "node", "driver", "stop", "storage", "hang", "disk")
_STARTS = 12  # of one job, before it counts as lost
_LASTS_S = 300  # one start of a job


class Nodes:
    """A Ray of a head and two more nodes, real processes on this host. All but the head can be killed and replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster(initialize_head=True, head_node_args=self._size(2))
        self.others = [self.cluster.add_node(**self._size(2)) for _ in range(2)]
        self.cluster.wait_for_nodes()

    @staticmethod
    def _size(cpus: int) -> dict[str, Any]:
        return {"num_cpus": cpus, "object_store_memory": 200 << 20, "include_dashboard": False}

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def workers(self) -> dict[int, str]:
        """Processes of actors at work, on all these nodes, and what they are.

        A node's agents are none: its raylet ends with them, and the head's death ends the cluster.
        """
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()]
        below = {pid: line for raylet in raylets for pid, line in runs.descendants(raylet).items()}
        titles = {pid: line.split()[0].removeprefix("ray::") for pid, line in below.items() if line[:5] == "ray::"}
        return {pid: title for pid, title in titles.items() if not title.startswith("IDLE") and "Agent" not in title}

    def kill_one(self, chance: random.Random) -> None:
        node = chance.choice(self.others)
        below = runs.descendants(node.all_processes["raylet"][0].process.pid)
        self.cluster.remove_node(node, allow_graceful=False)
        for pid in below:
            runs.kill(pid)
        self.others[self.others.index(node)] = self.cluster.add_node(**self._size(2))

    def close(self) -> None:
        self.cluster.shutdown()


@dataclass
class Disk:
    """A small disk of its own for outputs, which can be filled; a plain folder where mounting is not allowed."""

    folder: Path
    mounted: bool = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        words = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(self.folder)]
        self.mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        filler = self.folder / "filler"
        try:
            with filler.open("wb") as out:
                while True:
                    out.write(b"\0" * (1 << 20))
                    out.flush()
        except OSError:
            return

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


class Chaos:
    """Everything that jobs run on, and what can be done to it."""

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None] = print) -> None:
        self.folder, self.say, self.chance = folder, say, random.Random(seed)
        self.disk = Disk(folder / "disk")
        self.server = s3_servers.Rclone(folder / "served") if s3_servers.rclone() else None
        self.patch = pytest.MonkeyPatch()
        if self.server is not None:
            self.server.start()
            s3_servers.use(self.patch, self.server.url)
        self.nodes = Nodes()
        self.data = training.write_dataset(folder / "gazes")
        self._write_videos(folder / "videos")

    def close(self) -> None:
        self.nodes.close()
        if self.server is not None:
            self.server.kill()
        self.patch.undo()
        self.disk.close()

    def _write_videos(self, folder: Path) -> None:
        """Good ones, one cut off, one that is none."""
        for number in range(8):
            write_video(folder / f"{number}.mp4", frames=60, seed=number)
        whole = (folder / "0.mp4").read_bytes()
        (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
        (folder / "none.mp4").write_bytes(b"this is no video" * 500)
        if self.server is not None:
            shutil.copytree(folder, self.server.folder / s3_servers.BUCKET / "videos")

    # -- jobs ------------------------------------------------------------------------------------------------------

    def places(self, job: str, name: str, local: bool) -> tuple[str, Path]:
        """Where a job's output goes: its URL, and the folder on this machine that holds it."""
        if self.server is None or local:
            folder = self.disk.folder / f"{job}-{name}"
            return str(folder), folder
        return f"s3://{s3_servers.BUCKET}/{job}-{name}", self.server.folder / s3_servers.BUCKET / f"{job}-{name}"

    def words(self, job: str, output: str) -> list[str]:
        ray = f"ray.address={self.nodes.address}"
        if job == "preprocess":
            remote = output.startswith("s3://")
            videos = f"s3://{s3_servers.BUCKET}/videos" if remote else str(self.folder / "videos")
            words = ["preprocess", f"input={videos}", f"output={output}", "clip.frames=4", "shard.clips=6"]
            return [*words, "workers.decode=2", "workers.gaze=2", ray]
        changed = ["epochs=12", "every.checkpoint=4", "scale.max_failures=4"]
        if job == "train":
            words = training.settings(self.data, Path(output), *changed, "scale.min_workers=2", "scale.max_workers=2")
            return ["train", "policy", *[f"run={output}" if word.startswith("run=") else word for word in words], ray]
        changed = ["epochs=4", "every.checkpoint=4", "rollouts.actors=3", "rollouts.lag=1"]
        words = training.settings(self.data, Path(output), *training.RL, *changed)
        return ["rl", *[f"run={output}" if word.startswith("run=") else word for word in words], ray]

    def result(self, job: str, folder: Path) -> dict[str, str]:
        """What must be the same: every byte of a dataset; the newest checkpoint of a run, whose ledger is clean."""
        if job == "preprocess":
            return {name: digest for name, digest in runs.tree(folder).items() if "/.tmp-" not in f"/{name}"}
        training.require_clean(folder)
        return training.end_of(folder)

    def run(self, job: str, faults: int, kinds: Sequence[str], local: bool = False) -> list[str]:
        """Run a job undisturbed, and under so many faults; the faults there were. Raises AssertionError."""
        output, folder = self.places(job, "undisturbed", local)
        self._to_the_end(job, output)
        wanted = self.result(job, folder)
        assert wanted
        output, folder = self.places(job, "disturbed", local)
        over = threading.Event()
        done: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        kinds = [kind for kind in kinds if self._can(kind, local)]
        # The job is watched in a thread, and faults are made here: Ray starts nodes in a main thread only.
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(self._to_the_end, job, output)
            going.add_done_callback(lambda _: over.set())
            self._trouble(kinds, faults, over, done)
            starts = going.result()
        found = self.result(job, folder)
        different = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        assert not different, f"{job}: after {done} these differ: {different[:8]}"
        self.say(f"{job}: the same {len(found)} hashes after {starts} starts and {len(done)} faults: {' '.join(done)}")
        return done

    def _to_the_end(self, job: str, output: str) -> int:
        """Run the same command until it succeeds; how often."""
        log = self.folder / f"{job}.log"
        for number in range(1, _STARTS + 1):
            words = self.words(job, output)
            with log.open("ab") as out:
                env = runs.environment(joins=True)
                self.process = subprocess.Popen(runs.command(*words), env=env, stdout=out, stderr=out)
                try:
                    status = self.process.wait(_LASTS_S)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    raise AssertionError(f"{job}: hangs; see {log}") from None
            if status == 0 and not self._stopped(log):
                return number
            time.sleep(1.0)
        raise AssertionError(f"{job}: not done after {_STARTS} starts: {log.read_text(errors='replace')[-2000:]}")

    @staticmethod
    def _stopped(log: Path) -> bool:
        """Whether a run that ended well says that there is more to do."""
        lines = log.read_text(errors="replace").strip().splitlines()
        return bool(lines) and "the same command again" in lines[-1]

    # -- faults ------------------------------------------------------------------------------------------------------

    def _can(self, kind: str, local: bool) -> bool:
        if kind in ("storage", "hang"):
            return self.server is not None and not local
        return kind != "disk" or (local and self.disk.mounted)

    def _trouble(self, kinds: Sequence[str], faults: int, over: threading.Event, done: list[str]) -> None:
        while len(done) < faults and not over.wait(self.chance.uniform(1.0, 4.0)):
            kind = self.chance.choice(kinds)
            if struck := self._strike(kind, over):
                done.append(struck)
                self.say(f"  {struck}")

    def _strike(self, kind: str, over: threading.Event) -> str:
        """Make a fault; what was struck, empty if there was nothing to strike."""
        process = self.process
        if kind == "actor":
            alive = self.nodes.workers()
            if not alive:
                return ""
            chosen = self.chance.choice(sorted(alive))
            runs.kill(chosen)
            return f"actor:{alive[chosen]}"
        if kind == "node":
            self.nodes.kill_one(self.chance)
            return kind
        if kind in ("driver", "stop"):
            if process is None or process.poll() is not None:
                return ""
            process.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
            return kind
        if kind == "disk":
            self.disk.fill()
            over.wait(self.chance.uniform(1.0, 4.0))
            self.disk.free()
            return kind
        assert self.server is not None and self.server.process is not None
        if kind == "storage":
            with self.server.away(self.chance.uniform(1.0, 15.0)):
                pass
            return kind
        self.server.process.send_signal(signal.SIGSTOP)
        over.wait(self.chance.uniform(1.0, 8.0))
        self.server.process.send_signal(signal.SIGCONT)
        return kind


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=[*JOBS, "all"], default="all")
    parser.add_argument("--faults", type=int, default=8, help="of each job")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    chaos = Chaos(folder, arguments.seed)
    try:
        for job in JOBS if arguments.job == "all" else [arguments.job]:
            chaos.run(job, arguments.faults, FAULTS)
        if arguments.job in ("preprocess", "all") and chaos.disk.mounted:
            chaos.say("preprocess on a disk that fills up")
            chaos.run("preprocess", max(arguments.faults // 2, 1), ("disk", "actor"), local=True)
    finally:
        chaos.close()
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    os.environ.update(RAY_USAGE_STATS_ENABLED="0")
    sys.exit(main())
