"""Checkpoints: whole or not at all, whenever the process dies; and a state that comes back bit for bit."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.errors import PipelineError
from pipelines.runs.checkpoints import CheckpointDamaged, Checkpoints
from pipelines.runs.state import pack_optimizer, pack_random, restore_random, unpack_optimizer
from pipelines.storage import store
from tests.support import places

ROOT = places.ROOT


def content(step: int, size: int = 1000) -> dict[str, bytes]:
    """Three files whose bytes say which step they are of."""
    names = ("policy/config.json", "policy/model.safetensors", "optimizer.safetensors")
    return {name: f"{step} {name} ".encode() * (size // 20 * (k + 1)) for k, name in enumerate(names)}


def save(run: str, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(run, keep)
    for step in steps:
        checkpoints.save(step, content(step), {"consumed": step * 8}, wait=True)
    return checkpoints


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


# -- save and load ---------------------------------------------------------------------------------------------------


def test_what_was_saved_comes_back_and_only_the_newest_are_kept(run: str) -> None:
    assert Checkpoints(run).latest() is None
    with pytest.raises(PipelineError, match="no whole checkpoint"):
        Checkpoints(run).load()
    save(run, 100, 200, 300, 1_000_000, keep=2).close()
    checkpoints = Checkpoints(run)
    assert checkpoints.latest() == 1_000_000
    assert checkpoints.load() == ({"step": 1_000_000, "consumed": 8_000_000}, content(1_000_000))
    assert checkpoints.load(300) == ({"step": 300, "consumed": 2400}, content(300))
    left = {entry.url.rsplit("checkpoints/", 1)[1].split("/")[0] for entry in store.list_objects(run)}
    assert left == {"latest", "step-000300", "step-1000000"}
    with pytest.raises(CheckpointDamaged, match="step-000100"):
        checkpoints.load(100)


def test_a_save_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    checkpoints, files, state = Checkpoints(str(tmp_path)), content(1), {"schedule": [1, 2]}
    checkpoints.save(1, files, state)
    files.clear()
    state["schedule"].append(3)
    checkpoints.wait()
    assert checkpoints.load() == ({"step": 1, "schedule": [1, 2]}, content(1))


def test_save_returns_before_its_bytes_are_written_and_latest_moves_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    go, written, real = threading.Event(), [], store.publish

    def slow(data: bytes, url: str) -> None:
        go.wait()
        written.append(os.path.basename(url))
        real(data, url)

    checkpoints = save(str(tmp_path), 1)
    monkeypatch.setattr(store, "publish", slow)
    checkpoints.save(2, content(2), {})
    assert not written and Checkpoints(str(tmp_path)).latest() == 1
    go.set()
    checkpoints.close()
    assert written[-2:] == ["state.json", "latest"] and len(written) == 5
    assert Checkpoints(str(tmp_path)).latest() == 2


def test_going_on_from_an_earlier_step_replaces_what_came_after_it(run: str) -> None:
    checkpoints = save(run, 100, 200, 300)
    checkpoints.save(150, content(150), {}, wait=True)
    assert checkpoints.latest() == 150
    left = {entry.url.rsplit("checkpoints/", 1)[1].split("/")[0] for entry in store.list_objects(run)}
    assert left == {"latest", "step-000100", "step-000150"}


def test_the_step_that_latest_names_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = save(str(tmp_path), 100)
    monkeypatch.setattr(store, "publish", lambda data, url: pytest.fail(f"{url} was written"))
    checkpoints.save(100, content(100), {}, wait=True)


@pytest.mark.parametrize("name", ["../x", "/x", "state.json", "a/../b", ".hidden", "a//b", "", "a\\b"])
def test_a_file_of_a_checkpoint_stays_in_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        Checkpoints(str(tmp_path)).save(1, {name: b""}, {})
    save(str(tmp_path), 1)
    path = tmp_path / "checkpoints" / "step-000001" / "state.json"
    state = json.loads(path.read_text())
    state["files"][name] = {"size": 0, "sha256": ""}
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointDamaged, match="not a path"):
        Checkpoints(str(tmp_path)).load(1)


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a file is gone": lambda folder: (folder / "policy" / "model.safetensors").unlink(),
    "a file is cut short": lambda folder: os.truncate(folder / "policy" / "model.safetensors", 5),
    "state.json is gone": lambda folder: (folder / "state.json").unlink(),
    "state.json is cut short": lambda folder: os.truncate(folder / "state.json", 50),
    "state.json is of another step": lambda folder: (folder / "state.json").write_text(
        (folder / "state.json").read_text().replace('"step": 200', '"step": 100')
    ),
    "all is gone": lambda folder: [path.unlink() for path in folder.rglob("*") if path.is_file()] and None,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_torn_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, what: str) -> None:
    checkpoints = save(str(tmp_path), 100, 200)
    DAMAGE[what](tmp_path / "checkpoints" / "step-000200")
    with pytest.warns(RuntimeWarning, match="passed over a checkpoint: .*step-000200"):
        assert checkpoints.latest() == 100
    with pytest.raises(CheckpointDamaged, match="step-000200"):
        checkpoints.load(200)
    save(str(tmp_path), 200)
    assert checkpoints.load() == ({"step": 200, "consumed": 1600}, content(200))


@pytest.mark.parametrize("text", [None, "", "step-9", "../../etc", "step-000777"])
def test_without_a_usable_latest_the_newest_whole_one_counts(tmp_path: Path, text: str | None) -> None:
    checkpoints, latest = save(str(tmp_path), 100, 200), tmp_path / "checkpoints" / "latest"
    latest.unlink()
    if text is None:
        assert checkpoints.latest() == 200
        return
    latest.write_text(text)
    with pytest.warns(RuntimeWarning):
        assert checkpoints.latest() == 200


def test_a_flipped_byte_is_found_by_load_and_named(tmp_path: Path) -> None:
    checkpoints = save(str(tmp_path), 100)
    flip(tmp_path / "checkpoints" / "step-000100" / "policy" / "model.safetensors")
    with pytest.raises(CheckpointDamaged, match=r"policy/model\.safetensors: its bytes"):
        checkpoints.load()


def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, real, calls = save(str(tmp_path), 100), os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 4:  # each file is synced, and its folder: the third file meets the end of the disk
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    checkpoints.save(200, content(200), {})
    with pytest.raises(PipelineError, match="no space left on the device") as error:
        checkpoints.save(300, content(300), {})
    assert "\n" not in str(error.value)
    assert checkpoints.latest() == 100 and checkpoints.load()[1] == content(100)
    assert not (tmp_path / "checkpoints" / "step-000200").exists(), "its parts are not left on a full disk"
    monkeypatch.undo()
    checkpoints.save(300, content(300), {}, wait=True)
    assert checkpoints.load()[1] == content(300)


# -- kill -9 ---------------------------------------------------------------------------------------------------------

# One process that imports once and forks the ones to be killed. Each goes on from the latest checkpoint and says which
# steps are durable. "operation N": it dies before its N-th change to the file system; "after S": after S seconds.
KILLED = """
import os, signal, sys, threading
from pipelines.runs.checkpoints import Checkpoints
from tests.pipelines.runs.test_checkpoints import content

def work(how, number):
    left = [float(number)]
    def count(event, arguments):
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        if changes or (event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa")):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    if how == "operation":
        sys.addaudithook(count)
    else:
        threading.Timer(float(number), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    checkpoints = Checkpoints(sys.argv[1], keep=2)
    step = checkpoints.latest() or 0
    if step:
        checkpoints.load()
    while how == "after" or step < 1000:
        step += 100
        checkpoints.save(step, content(step, 50_000), {"consumed": step * 8})
        checkpoints.wait()
        os.write(1, f"durable {step}\\n".encode())
    os._exit(0)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        work(*line.split())
    os.waitpid(pid, 0)
    os.write(1, b"dead\\n")
"""


class Victim:
    def __init__(self, run: str) -> None:
        command = [sys.executable, "-c", KILLED, run]
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def die(self, how: str, number: float) -> int:
        """Have it save until it is killed; the newest step it called durable (0: none)."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(how, number, file=self.process.stdin, flush=True)
        durable = 0
        for line in self.process.stdout:
            if line == "dead\n":
                return durable
            durable = int(line.split()[1])
        raise AssertionError("the process that forks has ended")

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()


def check(run: str, durable: int) -> int:
    """What `latest` names is whole, like all that has a state.json, and not older than what was called durable."""
    checkpoints = Checkpoints(run)
    step = checkpoints.latest()
    latest = Path(run, "checkpoints", "latest")
    assert not latest.exists() or latest.read_text() == f"step-{step:06d}\n", "there is never a need to fall back"
    for state in Path(run).glob("checkpoints/*/state.json"):
        found = int(state.parent.name[5:])
        assert checkpoints.load(found) == ({"step": found, "consumed": found * 8}, content(found, 50_000))
    assert (step or 0) >= durable
    return step or 0


@pytest.mark.filterwarnings("ignore:passed over:RuntimeWarning")
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_killed_before_every_single_change_to_the_disk(tmp_path: Path, every: int) -> None:
    """From no checkpoint at all to the removal of old ones: each change in turn is the one that does not happen."""
    with Victim(str(tmp_path / "run")) as victim:
        for operation in range(1, 60, every):
            for _ in range(2):  # the second goes on from what the first left
                check(str(tmp_path / "run"), victim.die("operation", operation))
    assert check(str(tmp_path / "run"), 0) > 300 // every, "a good many saves succeeded between the kills"
    assert len(list((tmp_path / "run").rglob(".tmp-*"))) <= 2, "what killed saves left was cleared by later ones"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:passed over:RuntimeWarning")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    chance, kills, durable = random.Random(3), 0, 0
    with Victim(str(tmp_path / "run")) as victim:
        while kills < 25 or durable <= 500:  # on a slow machine more of them die before their first save
            kills += 1
            durable = max(durable, victim.die("after", chance.uniform(0.01, 0.2)))
            assert check(str(tmp_path / "run"), durable) >= durable


class Killed(BaseException):
    """Stands for kill -9: nothing in the code under test can catch it."""


def test_an_upload_torn_at_any_object_leaves_the_checkpoint_before_it(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, publish, remove = f"{bucket}/torn", store.publish, store.remove
    save(run, 100, 200, keep=2)
    for changes in range(40):
        left = [changes]

        def dying(act: Callable[..., None], left: list[int] = left) -> Callable[..., None]:
            def do(*arguments: Any) -> None:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                act(*arguments)

            return do

        before = Checkpoints(run).latest()
        assert before is not None
        checkpoints = Checkpoints(run, keep=2)
        with monkeypatch.context() as patch:
            patch.setattr(store, "publish", dying(publish))
            patch.setattr(store, "remove", dying(remove))
            checkpoints.save(before + 100, content(before + 100), {})
            try:
                checkpoints.wait()
                done = True
            except Killed:
                done = False
        step = Checkpoints(run).latest()
        assert step in ({before + 100} if done else {before, before + 100})
        assert store.read(f"{run}/checkpoints/latest").decode() == f"step-{step:06d}\n"
        assert Checkpoints(run).load()[1] == content(step)
        if done:
            return
    pytest.fail("no save came to its end")


# -- optimizer and random states -------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[list[Any]], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, betas=(0.8, 0.95)),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.1), amsgrad=True, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "plain sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(4, 5, dtype=next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(x).pow(2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_bit_for_bit_from_a_packed_state(kind: str, dtype: torch.dtype) -> None:
    def groups(model: nn.Module) -> list[Any]:
        return [
            {"params": list(model[0].named_parameters("first"))},  # type: ignore[index,operator]
            {"params": list(model[2].named_parameters("second")), "lr": 0.01},  # type: ignore[index,operator]
        ]

    model = network(dtype)
    optimizer = OPTIMIZERS[kind](groups(model))
    learn(model, optimizer, 3)
    packed, randomness = pack_optimizer(optimizer), json.loads(json.dumps(pack_random()))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    learn(model, optimizer, 3)

    again = network(dtype)
    again.load_state_dict(weights)
    resumed = OPTIMIZERS[kind](groups(again))
    unpack_optimizer(resumed, packed)
    assert pack_optimizer(resumed) == packed
    restore_random(randomness)
    learn(again, resumed, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert pack_optimizer(resumed) == pack_optimizer(optimizer)


def test_an_optimizer_of_other_parameters_is_refused_and_left_unchanged() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.named_parameters())
    learn(model, optimizer, 1)
    packed = pack_optimizer(optimizer)

    wider = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))
    cases: list[tuple[torch.optim.Optimizer, str]] = [
        (torch.optim.Adam(wider.named_parameters()), r"parameter 2.weight is torch.float32 \[3, 7\].*\[4, 7\]"),
        (torch.optim.Adam(network(torch.float64).named_parameters()), "0.weight is torch.float32.*torch.float64"),
        (torch.optim.Adam(model[0].named_parameters()), "is of 4 parameters, this run has 2"),  # type: ignore[index]
        (torch.optim.Adam(model[0:3].named_parameters("net")), "0.weight.*this run has net.0.weight"),  # type: ignore[index]
        (torch.optim.Adam([{"params": [p]} for p in network().named_parameters()]), "parameter 0.bias"),
        (torch.optim.SGD(model.parameters()), "is of Adam, this run uses SGD"),
    ]
    for other, message in cases:
        before = pack_optimizer(other)
        with pytest.raises(PipelineError, match=message):
            unpack_optimizer(other, packed)
        assert pack_optimizer(other) == before
    for data in (b"", packed[:-5], b"\xff" * 100, packed.replace(b"groups", b"gruops")):
        with pytest.raises(CheckpointDamaged):
            unpack_optimizer(optimizer, data)
    assert pack_optimizer(optimizer) == packed


def test_random_numbers_go_on_where_they_were() -> None:
    def draw() -> list[Any]:
        numbers = [random.gauss(0, 1), random.random(), *np.random.standard_normal(3), np.random.randint(100)]
        return [*numbers, *torch.rand(3).tolist()]

    draw()  # leaves half a pair of gaussians behind in each
    state = json.loads(json.dumps(pack_random()))
    expected = draw()
    draw()
    restore_random(state)
    assert draw() == expected
    with pytest.raises(CheckpointDamaged):
        restore_random(state | {"torch": "AAAA"})


def test_nothing_of_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    learn(model, optimizer, 1)
    data = pack_optimizer(optimizer)
    assert not re.search(rb"\x80[\x02-\x05]|torch\.storage|PK\x03\x04", data[: 8 + int.from_bytes(data[:8], "little")])
