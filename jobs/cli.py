"""The command line: `autogaze JOB KEY=VALUE... [--config FILE] [--print-config]`.

`autogaze submit JOB KEY=VALUE... cluster=FILE` runs a job elsewhere, `autogaze cluster VERB FILE` looks after it.

Exit status: 0 done; 1 the job ran and something is wrong with its result; 2 the command or its surroundings are wrong
(one line on standard error says what to do); 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from cluster import ClusterError
from jobs import config as configs
from pipelines.errors import PipelineError


@dataclass(frozen=True)
class _Job:
    """A subcommand: jobs/<module>.py with a config dataclass and a function of (config, console)."""

    module: str
    schema: str
    positional: str
    help: str
    dry_run: bool = False
    function: str = "run"
    check: str = ""
    """module:function that raises PipelineError for a config that cannot work: what `submit` asks before it submits."""
    takes_file: bool = False
    """Whether a first bare argument is the config's file."""


_TRAIN = "pipelines.train.config:check_train_config"
JOBS = {
    "scan": _Job("jobs.scan", "ScanConfig", "input", "list and probe a video store into a manifest"),
    "preprocess": _Job(
        "jobs.preprocess",
        "PreprocessJob",
        "",
        "a corpus of videos -> gaze shards",
        dry_run=True,
        check="pipelines.preprocess.config:check_config",
    ),
    "verify": _Job("jobs.verify", "VerifyConfig", "dataset", "re-read a dataset and say what is wrong with it"),
    "gaze": _Job("jobs.gaze", "GazeConfig", "video", "gaze one video: overlay, contact sheet, JSON"),
    "report": _Job("jobs.report", "ReportConfig", "dataset", "one HTML file that shows a dataset"),
    "evaluate": _Job(
        "jobs.evaluate", "EvaluateConfig", "data", "error against gazing ratio: stored gaze beside others"
    ),
    "export-labels": _Job(
        "jobs.labels", "ExportConfig", "data", "a dataset's gaze -> the reference's label file", function="export"
    ),
    "import-labels": _Job(
        "jobs.labels", "ImportConfig", "labels", "label files -> a dataset with their gaze", function="import_"
    ),
    "train policy": _Job(
        "jobs.train", "TrainPolicy", "", "next-token prediction of the policy on labelled clips", check=_TRAIN
    ),
    "train reconstructor": _Job(
        "jobs.train", "TrainReconstructor", "", "pre-training of the learned reconstructor", check=_TRAIN
    ),
    "rl": _Job(
        "jobs.rl",
        "RL",
        "",
        "reinforcement learning of the policy by reconstruction error",
        check="pipelines.rl.config:check_rl_config",
    ),
    "status": _Job("jobs.status", "StatusConfig", "place", "how far a job is, from its output alone"),
    "audit": _Job("jobs.audit", "AuditConfig", "run", "prove that a run used every sample once in each epoch"),
}

# Not jobs: their config is a cluster's file.
_VERBS = {
    f"cluster {verb}": _Job("jobs.cluster", schema, positional, help, function=verb, takes_file=True)
    for verb, schema, positional, help in (
        ("render", "RenderConfig", "", "print what a submission would send to the launcher"),
        ("preflight", "PreflightConfig", "", "ask every node of a running cluster whether a job could work there"),
        ("status", "AskConfig", "id", "where a submitted job is"),
        ("logs", "AskConfig", "id", "what it has printed"),
        ("down", "AskConfig", "id", "end it"),
    )
}


@dataclass(frozen=True)
class Parsed:
    """A command line, read: which job, its config, what runs and what checks it."""

    name: str
    config: Any
    run: Callable[..., Any]
    check: Callable[[Any], None]
    options: argparse.Namespace
    cluster: str = ""
    """FILE of cluster=FILE, in a submission."""


def _parser(name: str | None, schema: type | None, submitting: bool = False) -> argparse.ArgumentParser:
    words = ["autogaze", *(["submit"] if submitting else []), *([name] if name else [])]
    known = JOBS | _VERBS
    parser = argparse.ArgumentParser(
        prog=" ".join(words),
        description=known[name].help if name else "Turn videos into gaze data.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if name is None or schema is None:
        rows = "\n".join(f"  {job:<21}{about.help}" for job, about in JOBS.items())
        verbs = "\n".join(f"  {verb:<21}{about.help}" for verb, about in _VERBS.items())
        parser.epilog = (
            f"jobs:\n{rows}\n\nelsewhere:\n"
            f"  {'submit JOB':<21}run a job where cluster=FILE says: here, on Slurm, on Kubernetes\n{verbs}\n\n"
            "`autogaze JOB --help` lists a job's keys."
        )
        parser.add_argument("job", choices=[*known, "submit"], metavar="JOB")
        return parser
    shown = [(f"{key.name}={'null' if key.default is None else key.default}", key.help) for key in configs.keys(schema)]
    if submitting:
        shown.insert(0, ("cluster=", "YAML file of the cluster (docs/launch.md); must be given"))
    width = max(len(left) for left, _ in shown) + 2
    parser.epilog = "keys, with their defaults:\n" + "\n".join(f"  {left:<{width}}{right}" for left, right in shown)
    bare = [word.upper() for word in ("file" if known[name].takes_file else "", known[name].positional) if word]
    parser.add_argument("settings", nargs="*", metavar="|".join([*bare, "KEY=VALUE"]))
    parser.add_argument("--config", metavar="FILE", help="YAML file with keys; KEY=VALUE arguments win over it")
    parser.add_argument("--print-config", action="store_true", help="print the config as YAML and exit")
    if submitting:
        parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, submit nothing")
    elif known[name].dry_run:
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    return parser


def parse_job(arguments: list[str], submitting: bool = False) -> Parsed:
    """The job that a command line names, with its config.

    Raises PipelineError for a key or value that is wrong; exits, as argparse does, where there is no such job.
    """
    known = JOBS | _VERBS
    for word in arguments:  # before anything can repeat one
        configs.refuse_secrets(word)
    if not {arguments[0] if arguments else "", " ".join(arguments[:2])} & known.keys():
        _parser(None, None).parse_args(arguments or ["--help"])
    words = 1 if arguments[0] in known else 2
    name = " ".join(arguments[:words])
    job = known[name]
    module = importlib.import_module(job.module)
    schema = getattr(module, job.schema)
    # intermixed: flags may stand before, between and after the settings
    options = _parser(name, schema, submitting).parse_intermixed_args(arguments[words:])
    settings, cluster = list(options.settings), ""
    if submitting:
        cluster = next((word[8:] for word in reversed(settings) if word.startswith("cluster=")), "")
        settings = [word for word in settings if not word.startswith("cluster=")]
        if not cluster and not options.print_config:
            raise ClusterError(f"cluster= is missing: autogaze submit {name} KEY=VALUE... cluster=FILE")
    file = options.config
    if job.takes_file and file is None and settings and "=" not in settings[0]:
        file = settings.pop(0)
    config = configs.load(schema, settings, file, job.positional)
    check_module, _, check = job.check.partition(":")
    checker = getattr(importlib.import_module(check_module), check) if check else lambda config: None
    return Parsed(name, config, getattr(module, job.function), checker, options, cluster)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    submitting = arguments[:1] == ["submit"]
    console = Console()
    try:
        job = parse_job(arguments[submitting:], submitting)
        dry_run = getattr(job.options, "dry_run", False)
        if job.options.print_config:
            sys.stdout.write(configs.to_yaml(job.config))
            return 0
        if submitting:
            from jobs import submit

            job.check(job.config)
            if dry_run:
                sys.stdout.write(submit.rendered(submit.load_spec(job.cluster), job.name, job.config))
                return 0
            return submit.submit(job.cluster, job.name, job.config, job.run, console)
        result = job.run(job.config, console, dry_run=True) if dry_run else job.run(job.config, console)
        return result if isinstance(result, int) else 0
    except (PipelineError, ClusterError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; what is committed stays, run the same command again to continue", 130)
    except BrokenPipeError:
        return 0


def _fail(message: str, status: int = 2) -> int:
    print(f"autogaze: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
