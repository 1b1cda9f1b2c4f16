"""The command line: `autogaze JOB KEY=VALUE... [--config FILE] [--print-config]`.

`autogaze submit JOB KEY=VALUE... cluster=FILE` runs a job elsewhere, `autogaze cluster VERB FILE` looks after it.

Exit status: 0 done; 1 the job ran and something is wrong with its result; 2 the command or its surroundings are wrong
(one line on standard error says what to do); 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

from rich.console import Console

from autogaze import __version__
from cluster.errors import ClusterError
from jobs import config as configs
from jobs import terminal
from pipelines.errors import PipelineError
from pipelines.schema import settings_of


@dataclass(frozen=True)
class Subcommand:
    """A subcommand: jobs/<module>.py with a config dataclass and a function of (config, console).

    Attributes:
        positional: the key that a bare argument sets; '' = none.
        check: module:function that raises PipelineError for a config that cannot work; `submit` calls it first.
        takes_file: whether a first bare argument is the config's file.
        resumes: whether the same command goes on with what is there; Setting.on_resume says with which settings.
    """

    module: str
    schema: str
    help: str
    positional: str = ""
    function: str = "run"
    check: str = "pipelines.schema:check"
    dry_run: bool = False
    takes_file: bool = False
    resumes: bool = False

    def load_schema(self) -> type:
        """The config dataclass; importing it takes its time, so only the job that runs is asked."""
        schema: type = getattr(importlib.import_module(self.module), self.schema)
        return schema

    def run(self, config: Any, console: Console, **options: bool) -> int:
        """Run the job in this process; the exit status."""
        config = configs.with_absolute_places(config)
        result = getattr(importlib.import_module(self.module), self.function)(config, console, **options)
        return result if isinstance(result, int) else 0

    def check_config(self, config: Any) -> None:
        """Raise PipelineError, in one line, for a config that cannot work."""
        module, _, function = self.check.partition(":")
        getattr(importlib.import_module(module), function)(config)


_TRAIN = "pipelines.train.config:check_train_config"
JOBS = {
    "scan": Subcommand("jobs.scan", "ScanConfig", "list and probe a video store into a manifest", "input"),
    "preprocess": Subcommand(
        "jobs.preprocess",
        "PreprocessJob",
        "a corpus of videos -> gaze shards",
        check="pipelines.preprocess.config:check_preprocess_config",
        dry_run=True,
        resumes=True,
    ),
    "encode": Subcommand(
        "jobs.encode",
        "EncodeCommand",
        "gazed patches, of a gaze dataset or of videos -> token features",
        check="pipelines.encode.config:check_encode_config",
        dry_run=True,
        resumes=True,
    ),
    "size": Subcommand(
        "jobs.size",
        "SizeConfig",
        "how long preprocess would take on a cluster, and how many nodes",
        check="jobs.size:check_size_config",
    ),
    "verify": Subcommand("jobs.verify", "VerifyConfig", "re-read a dataset and say what is wrong with it", "dataset"),
    "gaze": Subcommand(
        "jobs.gaze",
        "GazeConfig",
        "gaze one video: overlay, contact sheet, JSON",
        "video",
        check="jobs.gaze:check_gaze_config",
    ),
    "report": Subcommand("jobs.report", "ReportConfig", "one HTML file that shows a dataset", "dataset"),
    "evaluate": Subcommand(
        "jobs.evaluate",
        "EvaluateConfig",
        "error, and features of an encoder, against gazing ratio: stored gaze beside others",
        "data",
        check="jobs.evaluate:check_evaluate",
    ),
    "calibrate": Subcommand(
        "jobs.calibrate",
        "CalibrateConfig",
        "where a policy must stop, so that a threshold is kept in new videos",
        check="jobs.calibrate:check_calibrate",
    ),
    "export-labels": Subcommand(
        "jobs.labels", "ExportConfig", "a dataset's gaze -> the reference's label file", "data", "export"
    ),
    "import-labels": Subcommand(
        "jobs.labels", "ImportConfig", "label files -> a dataset with their gaze", "labels", "import_"
    ),
    "train policy": Subcommand(
        "jobs.train", "TrainPolicy", "next-token prediction of the policy on labelled clips", check=_TRAIN, resumes=True
    ),
    "train reconstructor": Subcommand(
        "jobs.train", "TrainReconstructor", "pre-training of the learned reconstructor", check=_TRAIN, resumes=True
    ),
    "train encoder": Subcommand(
        "jobs.train",
        "TrainEncoder",
        "distillation: a vision transformer gets used to few patches",
        function="run_encoder",
        check="pipelines.train.encoder_config:check_encoder_config",
        resumes=True,
    ),
    "rl": Subcommand(
        "jobs.rl",
        "RL",
        "reinforcement learning of the policy by reconstruction error",
        check="pipelines.rl.config:check_rl_config",
        resumes=True,
    ),
    "status": Subcommand("jobs.status", "StatusConfig", "how far a job is, from its output alone", "place"),
    "audit": Subcommand("jobs.audit", "AuditConfig", "prove that a run used every sample once in each epoch", "run"),
}

# Not jobs: their config is a cluster's file.
CLUSTER_VERBS = {
    f"cluster {verb}": Subcommand("jobs.cluster", schema, help, positional, function=verb, takes_file=True)
    for verb, schema, positional, help in (
        ("render", "RenderConfig", "", "print what a submission would send to the launcher"),
        ("preflight", "PreflightConfig", "", "ask every node of a running cluster whether a job could work there"),
        ("status", "SubmittedConfig", "id", "where a submitted job is"),
        ("logs", "SubmittedConfig", "id", "what it has printed"),
        ("down", "SubmittedConfig", "id", "end it"),
    )
}
COMMANDS = JOBS | CLUSTER_VERBS
_SUBMIT = "autogaze submit JOB [KEY=VALUE ...] cluster=FILE [--config FILE] [--dry-run]"


@dataclass(frozen=True)
class CommandLine:
    """A command line, read."""

    name: str
    job: Subcommand
    config: Any
    cluster: str
    """FILE of cluster=FILE, in a submission."""
    print_config: bool
    dry_run: bool


def _help(group: str = "") -> str:
    """What `autogaze --help` prints, or `autogaze GROUP --help` of commands whose first word is GROUP."""
    if group:
        rows = [f"  {name:<21}{each.help}" for name, each in COMMANDS.items() if name.split()[0] == group]
        end = f"`autogaze {group} WORD --help` lists the keys of one."
        return "\n".join([f"usage: autogaze {group} WORD [KEY=VALUE ...]", "", *rows, "", end])
    jobs = "\n".join(f"  {name:<21}{job.help}" for name, job in JOBS.items())
    verbs = "\n".join(f"  {name:<21}{verb.help}" for name, verb in CLUSTER_VERBS.items())
    return f"""usage: autogaze JOB [KEY=VALUE ...] [--config FILE] [--print-config]
       {_SUBMIT}
       autogaze --help | --version

Turn videos into gaze data.

jobs:
{jobs}

elsewhere:
  {"submit JOB":<21}run a job where cluster=FILE says: here, on Slurm, on Kubernetes
{verbs}

`autogaze JOB --help` lists a job's keys."""


def _submit_help() -> str:
    """What `autogaze submit --help` prints."""
    jobs = "\n".join(f"  {name:<21}{job.help}" for name, job in JOBS.items())
    return f"""usage: {_SUBMIT}

Run a job where FILE says: on this machine, on Slurm or on Kubernetes. Keys are those that the job takes here.

  cluster=FILE         what the cluster is: docs/launch.md describes its keys
  --dry-run            print what would be submitted, submit nothing

jobs:
{jobs}

`autogaze submit JOB --help` lists a job's keys, `autogaze cluster --help` what looks after a submitted job."""


def _command_name(arguments: list[str], submitting: bool) -> str:
    """The command that the first words name. Exits after --help and --version. Raises PipelineError: there is none."""
    for name in (" ".join(arguments[:2]), *arguments[:1]):
        if name in COMMANDS:
            return name
    first, second = [*arguments, "", ""][:2]
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if submitting and not first:
        raise PipelineError(f"no job is named: {_SUBMIT}")
    if first == "--version":
        _print(f"autogaze-pipelines {__version__}")
    if first in ("", "-h", "--help"):
        _print(_submit_help() if submitting else _help())
    if first in groups and second in ("-h", "--help"):
        _print(_help(first))
    given = f"{first} {second}".strip() if first in groups else first
    near: list[str] = []
    if first in groups:
        verbs = [name.split()[1] for name in COMMANDS if name.startswith(f"{first} ")]
        near = [f"{first} {verb}" for verb in difflib.get_close_matches(second, verbs, 1, 0.6) or verbs]
    near = near or [name for name in COMMANDS if len(first) > 2 and name.startswith(first)]
    near = near or difflib.get_close_matches(f"{first} {second}", COMMANDS, 1, 0.75)
    near = near or difflib.get_close_matches(first, [*COMMANDS, *groups, "submit"], 1, 0.6)
    *others, last = [f"autogaze {name}" for name in near] or [""]
    meant = f"; did you mean {' or '.join(filter(None, (', '.join(others), last)))}?" if near else ""
    raise PipelineError(f"{given}: no such job{meant or '; `autogaze --help` lists all'}")


def _print(text: str) -> NoReturn:
    """End with this text, as a command line that asks for help does."""
    print(text)
    raise SystemExit(0)


def _job_parser(name: str, schema: type, submitting: bool) -> argparse.ArgumentParser:
    job = COMMANDS[name]
    rows = [(f"{key.name}={'null' if key.value is None else key.value}", key.help) for key in settings_of(schema())]
    if submitting:
        rows.insert(0, ("cluster=", "YAML file of the cluster (docs/launch.md); must be given"))
    width = max(len(left) for left, _ in rows) + 2
    parser = argparse.ArgumentParser(
        prog=f"autogaze submit {name}" if submitting else f"autogaze {name}",
        usage=_SUBMIT.replace("JOB", name) if submitting else None,
        description=job.help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys, with their defaults:\n" + "\n".join(f"  {left:<{width}}{right}" for left, right in rows),
    )
    bare = [word.upper() for word in ("file" if job.takes_file else "", job.positional) if word]
    parser.add_argument("settings", nargs="*", metavar="|".join([*bare, "KEY=VALUE"]))
    parser.add_argument("--config", metavar="FILE", help="YAML file with keys; KEY=VALUE arguments win over it")
    parser.add_argument("--print-config", action="store_true", help="print the config as YAML and exit")
    if submitting:
        parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, submit nothing")
    elif job.dry_run:
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="say what would be done; write nothing but what the scan of the input found",
        )
    return parser


def read_command(arguments: list[str], submitting: bool = False) -> CommandLine:
    """The job that a command line names, with its config.

    Raises PipelineError for a job, key or value that is wrong; exits, as argparse does, after --help and --version.
    """
    for word in arguments:  # first, so that no message can repeat a secret
        configs.refuse_secrets(word)
    name = _command_name(arguments, submitting)
    words = len(name.split())
    job = COMMANDS[name]
    schema = job.load_schema()
    # intermixed: flags may stand before, between and after the settings
    options = _job_parser(name, schema, submitting).parse_intermixed_args(arguments[words:])
    settings, cluster, file = list(options.settings), "", options.config
    if submitting:
        cluster = next((word[8:] for word in reversed(settings) if word.startswith("cluster=")), "")
        settings = [word for word in settings if not word.startswith("cluster=")]
        if not cluster and not options.print_config:
            raise ClusterError(f"cluster= is missing: autogaze submit {name} KEY=VALUE... cluster=FILE")
    if job.takes_file and file is None and settings and "=" not in settings[0]:
        file = settings.pop(0)
    config: Any = configs.load(schema, settings, file, job.positional)
    return CommandLine(name, job, config, cluster, options.print_config, getattr(options, "dry_run", False))


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    submitting = arguments[:1] == ["submit"]
    terminal.escape_what_is_missing()
    console = Console()
    try:
        command = read_command(arguments[submitting:], submitting)
        if command.print_config:
            sys.stdout.write(configs.to_yaml(command.config, sys.stdout.encoding))
            return 0
        if submitting:
            return _submit(command, console)
        options = {"dry_run": True} if command.dry_run else {}
        return command.job.run(command.config, console, **options)
    except (PipelineError, ClusterError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; what is committed stays, run the same command again to continue", 130)
    except BrokenPipeError:
        return 0


def _submit(command: CommandLine, console: Console) -> int:
    from jobs import submit  # with the launchers, which no job needs

    command.job.check_config(command.config)
    if command.dry_run:
        terminal.write_exactly(submit.rendered(submit.load_spec(command.cluster), command.name, command.config))
        return 0
    return submit.submit(command.cluster, command.name, command.config, command.job.run, console)


def _fail(message: str, status: int = 2) -> int:
    print(f"autogaze: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
