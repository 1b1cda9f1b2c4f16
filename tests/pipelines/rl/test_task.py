"""RL on one rank without actors: the plain loop bit for bit, at any lag, however often it is stopped."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from autogaze.patches import VOCABULARY
from pipelines.errors import PipelineError
from pipelines.rl.config import RLConfig, check_rl_config, temperature, version_of
from pipelines.rl.groups import Group, RolloutRequest
from pipelines.rl.rollouts import RolloutMaker
from pipelines.rl.task import RLTask, bottleneck
from pipelines.runs.audit import audit
from pipelines.runs.events import read_events
from pipelines.runs.ledger import RL_LEDGER_SCHEMA
from pipelines.storage import store
from pipelines.train import stopping
from tests.pipelines.rl.plain_rl import plain_rl
from tests.support import places, training
from tests.support.training import end_of, newest, require_clean, rl_config, train

CPU = torch.device("cpu")


class Undisturbed(dict[int, Path]):
    """A run for each lag, made when a test first asks for it."""

    def __init__(self, gazes: str, folder: Path) -> None:
        self.gazes, self.folder = gazes, folder

    def __missing__(self, lag: int) -> Path:
        self[lag] = self.folder / str(lag)
        assert train(rl_config(self.gazes, self[lag], f"rollouts.lag={lag}")) == "done"
        return self[lag]


@pytest.fixture(scope="module")
def undisturbed_rl(gazes: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(gazes, tmp_path_factory.mktemp("rl"))


@pytest.fixture(autouse=True, scope="module")
def asked_once_a_step() -> Iterator[None]:
    """Whether to stop is not asked again within a step, however slow the machine is: tests count the answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopping, "_ASK_S", math.inf)
        yield


def steps(run: Path) -> pd.DataFrame:
    events = read_events(str(run))
    return events[events["kind"] == "step"]


def ledger(run: Path) -> pd.DataFrame:
    files = sorted((run / "ledger").glob("0*/*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files]).reset_index(drop=True)


# -- what it comes to ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_run_equals_the_plain_loop_bit_for_bit(gazes: str, undisturbed_rl: Undisturbed, lag: int) -> None:
    config = rl_config(gazes, Path("unused"), f"rollouts.lag={lag}")
    task = training.task_of(config)(config, CPU)
    assert isinstance(task, RLTask)
    wanted = plain_rl(config, task.policy, training.THRESHOLD, lag)
    found = load_file(newest(undisturbed_rl[lag]) / "policy" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_lags_differ_and_learning_moves_the_weights(gazes: str, undisturbed_rl: Undisturbed) -> None:
    ends = [end_of(undisturbed_rl[lag])["policy/model.safetensors"] for lag in (0, 3)]
    assert len(set(ends)) == 2


@pytest.mark.parametrize("lag", [0, pytest.param(1, marks=pytest.mark.slow), 3])
def test_every_group_is_of_exactly_the_version_the_lag_names(undisturbed_rl: Undisturbed, lag: int) -> None:
    rows = ledger(undisturbed_rl[lag])
    assert len(rows) == 4 * len(steps(undisturbed_rl[lag]))
    assert (rows["version"] == np.maximum(rows["step"] - lag, 0)).all()
    assert (rows["group"] != 0).all() and rows["group"].nunique() == len(rows)
    require_clean(undisturbed_rl[lag])


@pytest.mark.parametrize("lag", [*(pytest.param(lag, marks=pytest.mark.slow) for lag in (0, 1)), 3])
def test_a_run_that_is_stopped_after_any_step_goes_on_to_the_same_bits(
    gazes: str, undisturbed_rl: Undisturbed, tmp_path: Path, lag: int
) -> None:
    config = rl_config(gazes, tmp_path, f"rollouts.lag={lag}", "every.checkpoint=0")
    for count in (0, 1, 4):
        asked = iter([False] * count + [True])
        assert train(config, stopping=lambda asked=asked: next(asked)) == "stopped"
    kept = sorted(path.name for path in (newest(tmp_path) / "versions").glob("*")) if lag else []
    assert kept == [f"{version:06d}.safetensors" for version in range(5 - lag, 5)]
    assert train(config) == "done"
    assert end_of(tmp_path) == end_of(undisturbed_rl[lag])
    require_clean(tmp_path)
    assert train(config) == "finished"


def test_an_event_says_how_sampling_and_learning_went(undisturbed_rl: Undisturbed) -> None:
    run = undisturbed_rl[3]
    frame = steps(run)
    names = {"reward", "reward_spread", "zero_variance", "entropy", "ratio", "kl_behaviour", "effective_samples"}
    names |= {"idle_rollout", "idle_learner", "busy_gaze", "busy_reward", "busy_read", "publish_s", "grpo"}
    assert names <= {*frame.columns} and frame[sorted(names)].notna().all().all()
    assert (frame["reward"] < 0).all() and (frame["entropy"] > 0).all()
    assert frame["zero_variance"].between(0, 1).all() and frame["effective_samples"].between(0, 1.0001).all()
    assert frame["kl_behaviour"].iloc[0] == pytest.approx(0, abs=1e-5), "the first groups are of the policy itself"
    events = read_events(str(run))
    assert events[events["kind"] == "bottleneck"]["which"].str.contains("idle").all()
    assert len(events[events["kind"] == "bottleneck"]) >= 1


@pytest.mark.parametrize(
    ("shares", "actors", "message"),
    [
        ((0.0, 0.6, 0.1, 0.8, 0.1), 2, "mostly sampling gazes .*more rollouts.actors may help where"),
        ((0.0, 0.6, 0.1, 0.2, 0.7), 2, "mostly rebuilding frames"),
        ((0.7, 0.0, 0.1, 0.1, 0.1), 2, "the learner; more ranks .*may help, or fewer rollouts.actors"),
        ((0.02, 0.05, 0.1, 0.8, 0.1), 2, "both are busy"),
        ((0.5, 0.5, 0.1, 0.3, 0.1), 0, "set rollouts.actors"),
    ],
)
def test_the_bottleneck_is_named(shares: tuple[float, ...], actors: int, message: str) -> None:
    names = ("idle_rollout", "idle_learner", "busy_read", "busy_gaze", "busy_reward")
    import re

    measured = dict(zip(names, shares, strict=True))
    assert re.search(f"over 20 steps .*{message}", bottleneck(measured, actors, 20))
    assert bottleneck(measured, actors, 2).endswith("too few steps to say what would help")


# -- objectives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["objective.kl=0.1", "sample.top_k=0"],
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (
                ["sample.strategy=threshold", "objective.ratio=behaviour", "objective.advantage=deviation"],
                ["objective.advantage=deviation"],
                ["objective.ratio=behaviour"],
                ["objective.ratio=behaviour", "objective.clip=0.2"],
                ["objective.log_probs=reference"],
                ["sample.strategy=threshold"],
                ["sample.strategy=ratio"],
                ["sample.min_threshold=0.001", "sample.max_threshold=0.2"],
                ["sample.top_k=0"],
                ["scale.dtype=bfloat16"],
            )
        ),
    ],
)
def test_every_option_trains_and_resumes_to_the_same_bits(gazes: str, tmp_path: Path, words: list[str]) -> None:
    words = [*words, "epochs=0.6", "rollouts.lag=1"]
    assert train(rl_config(gazes, tmp_path / "one", *words)) == "done"
    asked = iter([False, False, True])
    again = rl_config(gazes, tmp_path / "two", *words)
    assert train(again, stopping=lambda: next(asked)) == "stopped"
    assert train(again) == "done"
    assert end_of(tmp_path / "one") == end_of(tmp_path / "two")
    frame = steps(tmp_path / "one")
    assert np.isfinite(frame["loss"]).all()
    if "objective.kl=0.1" in words:
        assert frame["kl_frozen"].iloc[0] == pytest.approx(0, abs=1e-5) and frame["kl_frozen"].iloc[-1] >= 0
    if "objective.clip=0.2" in words:
        assert frame["clip_fraction"].between(0, 1).all()


def test_ratios_against_behaviour_are_1_until_the_policy_changes(gazes: str, tmp_path: Path) -> None:
    """One step at lag 0: the policy that learns is the one that sampled, so ratios are 1 up to rounding."""
    ends = []
    for ratio in ("on_policy", "behaviour"):
        run = tmp_path / ratio
        assert train(rl_config(gazes, run, f"objective.ratio={ratio}", "epochs=0.2")) == "done"
        assert len(steps(run)) == 1
        ends.append(float(steps(run)["grad_norm"].iloc[0]))
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


# -- groups ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maker(gazes: str) -> Iterator[RolloutMaker]:
    made, _ = make_maker(gazes)
    yield made
    made.close()


def make_maker(data: str, *words: str) -> tuple[RolloutMaker, RLTask]:
    config = rl_config(data, Path("unused"), *words)
    task = training.task_of(config)(config, CPU)
    assert isinstance(task, RLTask)
    made = RolloutMaker(config, task.policy.config, task.threshold, 12, CPU)
    made.load(0, task._weights())
    return made, task


def test_a_group_does_not_depend_on_who_makes_it_or_what_was_made_before(gazes: str, maker: RolloutMaker) -> None:
    wanted = [maker.make(RolloutRequest(step, 0, number, 0)).digest() for step, number in ((3, 5), (4, 6))]
    other, _ = make_maker(gazes)
    found = [other.make(RolloutRequest(step, 0, number, 0)).digest() for step, number in ((4, 6), (0, 1), (3, 5))]
    assert [found[2], found[0]] == wanted
    assert maker.make(RolloutRequest(3, 1, 5, 0)).digest() != wanted[0], "another epoch draws anew"
    other.close()


def test_a_group_is_small_and_holds_no_pixels(maker: RolloutMaker) -> None:
    group = maker.make(RolloutRequest(0, 0, 2, 0))
    data = group.to_npz()
    assert len(data) < 20_000 < maker.reader.read([2]).frames.nbytes
    again = Group.from_npz(data)
    assert again.digest() == group.digest() and again.to_npz() == data
    with pytest.raises(ValueError, match="not an"):
        Group.from_npz(data[:100])


def test_hash_and_file_of_a_group_are_those_of_earlier_versions() -> None:
    """Ledgers hold the hash, and recordings the file."""
    group = Group(
        request=RolloutRequest(step=3, epoch=1, id=5, version=2),
        clip="a/b.mp4:000016",
        temperature=0.75,
        threshold=float("nan"),
        at=np.array([0, 2]),
        seeds=np.array([7, -8]),
        slots=np.array([2, 0, 1]),
        drawn=np.arange(6, dtype=np.int16).reshape(2, 3),
        used=np.ones((2, 3), bool),
        log_probs=np.full((2, 3), -0.5, np.float32),
        errors=np.full((2, 2), 0.25, np.float32),
        seconds=np.zeros(3),
    )
    assert group.digest() == 3889458026872678610
    digest = hashlib.sha256(group.to_npz()).hexdigest()
    assert digest == "ebf6f814b24a63ea19815a05f79f369991fc6cd8a998c697d56c220c7d4fbbfb"


def test_members_of_a_group_have_the_lengths_of_one_sample(maker: RolloutMaker) -> None:
    group = maker.make(RolloutRequest(0, 0, 3, 0))
    lengths = group.gaze(VOCABULARY).lengths
    assert (lengths == lengths[0]).all() and group.used.all()
    assert len({tuple(row) for row in group.drawn.tolist()}) == len(group.drawn), "and gaze differently"
    assert len(group.slots) == group.at[-1] + 1, "no frame beyond the last that earns a reward"


def test_rewards_are_the_reconstructors_errors(maker: RolloutMaker) -> None:
    from autogaze import reconstruction

    group = maker.make(RolloutRequest(0, 0, 4, 0))
    clip = maker.reader.read([4]).frames[:, : len(group.slots)]
    for member, gaze in enumerate(group.gaze(VOCABULARY)):
        error = reconstruction.load("canvas").reconstruct(clip, gaze, group.at.tolist()).error
        assert np.array_equal(error[0].numpy(), group.errors[member])


def test_log_probabilities_of_a_group_are_those_the_learner_recomputes(gazes: str) -> None:
    for words in ([], ["sample.strategy=threshold", "max_ratio=0.06"]):
        made, task = make_maker(gazes, *words)
        group = made.make(RolloutRequest(1, 0, 7, 0))
        frames = made.reader.read([7]).frames
        measures = task.module(frames, [group])
        assert float(measures["kl_behaviour"][0].detach()) == pytest.approx(0, abs=1e-6)
        assert float(measures["effective_samples"][0].detach()) == pytest.approx(1, abs=1e-3)
        made.close()


def test_weights_of_another_version_are_not_used(maker: RolloutMaker) -> None:
    with pytest.raises(ValueError, match="asked for version 4, the weights here are of version 0"):
        maker.make(RolloutRequest(5, 0, 1, 4))


# -- the schedule ----------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for whoever makes groups: writes down what was published and asked for, in order."""

    def __init__(self) -> None:
        self.versions: set[int] = set()
        self.asked: dict[int, int] = {}

    def publish(self, version: int, weights: bytes) -> None:
        assert weights == str(version).encode(), "a version is always the same weights"
        self.versions.add(version)

    def request(self, requests: list[RolloutRequest]) -> None:
        [version] = {request.version for request in requests}
        assert version in self.versions, "a group is asked for when its version exists, not before"
        assert requests[0].step not in self.asked
        self.asked[requests[0].step] = version

    def take(self, step: int) -> list[Group]:
        raise AssertionError

    def close(self) -> None:
        pass


@settings(max_examples=25, deadline=None)
@given(lag=st.integers(0, 5), lives=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_versions_follow_the_rule_over_any_number_of_restarts(schedules, lag: int, lives: list[int]) -> None:
    """Each life takes some steps and saves, sometimes after one more step that is lost."""
    task_of, loader_of, steps_in_all = schedules
    task, saved, done = task_of(lag), {}, 0
    used: dict[int, set[int]] = {}
    for number, life in enumerate(lives):
        recorder = Recorder()
        task._rollouts = lambda loader, steps, recorder=recorder: recorder
        task.versions = dict(saved)
        task._weights = lambda at=done: str(at).encode()
        task.begin(loader_of(done), done, steps_in_all)
        end = min(done + life, steps_in_all)
        for step in range(done, min(end + number % 2, steps_in_all)):
            used.setdefault(step, set()).add(recorder.asked[step])
            task.spent, task.waited = np.zeros(3), 0.0
            task._weights = lambda at=step + 1: str(at).encode()
            task.stepped(step + 1)
            if step + 1 <= end:  # what is done after the save is lost
                kept = {v: data for v, data in task.versions.items() if step + 1 - lag <= v < step + 1}
        saved, done = (kept if end > done else saved), end
        assert max(recorder.asked, default=0) <= done + lag + 1, "no more steps are begun than the lag allows"
    assert used == {step: {version_of(step, lag)} for step in used}


@pytest.fixture(scope="module")
def schedules(gazes: str):
    from pipelines.loading.config import LoaderConfig
    from pipelines.loading.loader import ShardLoader

    config = rl_config(gazes, Path("unused"))
    task = training.task_of(config)(config, CPU)

    def task_of(lag: int) -> RLTask:
        assert isinstance(task, RLTask)
        task.config.rollouts.lag = lag
        task.recent.clear()
        return task

    def loader_of(done: int) -> ShardLoader:
        return ShardLoader(LoaderConfig(data=[gazes], global_batch=4, workers=0, window=2), consumed=4 * done)

    return task_of, loader_of, 30


def test_the_temperature_falls_evenly_in_its_logarithm() -> None:
    """The reference's schedule of 3 to 0.3 over 1000 steps, as it computed it."""
    meta = json.loads((places.GOLDEN / "meta.json").read_text())["temperature_schedule"]
    config = RLConfig().sample
    config.temperature, config.min_temperature = 3.0, 0.3
    pairs = list(zip(meta["steps"], meta["temperatures"], strict=True)) if "steps" in meta else list(meta.items())
    assert len(pairs) > 2
    for step, wanted in pairs:
        assert temperature(config, int(step), 1000) == pytest.approx(wanted, rel=1e-6)


# -- recordings ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recording_replayed_gives_the_same_policy_without_sampling(
    gazes: str, undisturbed_rl: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["rollouts.lag=1"]
    dump = tmp_path / "dump"
    assert train(rl_config(gazes, tmp_path / "one", *words, f"rollouts.dump={dump}")) == "done"
    monkeypatch.setattr(RolloutMaker, "make_all", None)
    assert train(rl_config(gazes, tmp_path / "two", *words, f"rollouts.replay={dump}")) == "done"
    assert end_of(tmp_path / "two") == end_of(undisturbed_rl[1])
    require_clean(tmp_path / "two")

    with pytest.raises(PipelineError, match="replay a run with the same lag"):
        train(rl_config(gazes, tmp_path / "other", f"rollouts.replay={dump}", "rollouts.lag=0"))
    [first, *_] = sorted(dump.rglob("*.npz"))
    first.write_bytes(first.read_bytes()[:-30])
    with pytest.raises(PipelineError, match=f"{first.name}: damaged"):
        train(rl_config(gazes, tmp_path / "three", *words, f"rollouts.replay={dump}"))
    first.unlink()
    with pytest.raises(PipelineError, match=f"{first.name}: is missing; rollouts.replay="):
        train(rl_config(gazes, tmp_path / "four", *words, f"rollouts.replay={dump}"))


# -- the audit -------------------------------------------------------------------------------------------------------


def test_the_audit_names_a_group_of_another_version(undisturbed_rl: Undisturbed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed_rl[3], run)
    import pyarrow as pa
    import pyarrow.parquet as pq

    [*_, segment] = sorted((run / "ledger").glob("0*/*.parquet"))
    frame = pd.read_parquet(segment)
    row = frame.iloc[-1]
    frame.loc[len(frame) - 1, "version"] = row["version"] + 1
    frame.loc[len(frame) - 2, "group"] = 0
    pq.write_table(pa.Table.from_pandas(frame, RL_LEDGER_SCHEMA, preserve_index=False), segment)
    problems = audit(str(run)).problems
    wrong = (
        f"of sample {row['id']} is of version {row['version'] + 1}; with lag 3 it must be of version {row['version']}"
    )
    assert any(wrong in problem for problem in problems)
    assert any("no group of sample" in problem for problem in problems)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample.group=1"], "sample.group=1: must be at least 2"),
        (["sample.temperature=0"], "sample.temperature=0.0: must be a positive number"),
        (["sample.min_temperature=nan"], "sample.min_temperature=nan"),
        (["objective.discount=1.5"], "objective.discount=1.5"),
        (["objective.clip=0.2"], "set objective.ratio=behaviour"),
        (["objective.ratio=behaviour", "objective.log_probs=reference"], "use objective.log_probs=sampled"),
        (["objective.kl=0.1"], "set sample.top_k=0"),
        (["objective.advantage=median"], "must be one of mean, deviation"),
        (["sample.strategy=best"], "must be one of self, threshold, ratio"),
        (["sample.min_threshold=0.1"], "given together"),
        (["sample.min_threshold=0.3", "sample.max_threshold=0.1"], "at most sample.max_threshold"),
        (["sample.strategy=ratio", "sample.min_threshold=0.1", "sample.max_threshold=0.2"], "has no threshold"),
        (["rollouts.lag=-1"], "rollouts.lag=-1: must be at least 0"),
        (["rollouts.dump=a", "rollouts.replay=b"], "leave one of them empty"),
        (["rollouts.replay=b", "rollouts.actors=2"], "set it to 0"),
        (["loader.bad_samples=skip"], "only fail works here"),
        (["rollouts.gpus=1.5"], "rollouts.gpus=1.5: above 1 only whole numbers"),
        (["max_ratio=0"], "max_ratio=0.0"),
    ],
)
def test_a_config_that_cannot_work_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(PipelineError) as error:
        check_rl_config(rl_config("/data", Path("/run"), *words))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_dataset_without_a_threshold_needs_one(gazes: str, tmp_path: Path) -> None:
    shutil.copytree(gazes, tmp_path / "data")
    about = json.loads(store.read(str(tmp_path / "data" / "dataset.json")))
    about["config"]["threshold"] = None
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(PipelineError, match=r"give threshold=, or use sample\.strategy=ratio"):
        train(rl_config(str(tmp_path / "data"), tmp_path / "run"))
    words = ["sample.strategy=ratio", "epochs=0.2"]
    assert train(rl_config(str(tmp_path / "data"), tmp_path / "run", *words)) == "done"


def test_a_flipped_byte_is_named_by_whoever_reads_it(gazes: str, tmp_path: Path) -> None:
    shutil.copytree(gazes, tmp_path / "data")
    for shard in (tmp_path / "data" / "shards").iterdir():
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    with pytest.raises(PipelineError, match=r"\.tar: .*\(sample \d+\)"):
        train(rl_config(str(tmp_path / "data"), tmp_path / "run"))


def test_a_run_does_not_go_on_with_another_lag_or_group(gazes: str, undisturbed_rl: Undisturbed) -> None:
    for word, message in (("rollouts.lag=2", "rollouts.lag=3, not 2"), ("sample.group=4", "sample.group=3, not 4")):
        with pytest.raises(PipelineError, match=f"was begun with {message}"):
            train(rl_config(gazes, undisturbed_rl[3], "rollouts.lag=3", word))
