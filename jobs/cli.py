"""The command line: `autogaze JOB KEY=VALUE... [--config FILE] [--print-config]`.

Exit status: 0 done; 1 the job ran and something is wrong with its result; 2 the command or its surroundings are wrong
(one line on standard error says what to do); 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import dataclass

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


_JOBS = {
    "scan": _Job("jobs.scan", "ScanConfig", "input", "list and probe a video store into a manifest"),
    "preprocess": _Job("jobs.preprocess", "PreprocessJob", "", "a corpus of videos -> gaze shards", dry_run=True),
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
    "train policy": _Job("jobs.train", "TrainPolicy", "", "next-token prediction of the policy on labelled clips"),
    "train reconstructor": _Job("jobs.train", "TrainReconstructor", "", "pre-training of the learned reconstructor"),
    "audit": _Job("jobs.audit", "AuditConfig", "run", "prove that a run used every sample once in each epoch"),
}


def _parser(name: str | None, schema: type | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autogaze" + (f" {name}" if name else ""),
        description=_JOBS[name].help if name else "Turn videos into gaze data.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if name is None or schema is None:
        rows = "\n".join(f"  {job:<21}{about.help}" for job, about in _JOBS.items())
        parser.epilog = f"jobs:\n{rows}\n\n`autogaze JOB --help` lists a job's keys."
        parser.add_argument("job", choices=list(_JOBS), metavar="JOB")
        return parser
    shown = [(f"{key.name}={'null' if key.default is None else key.default}", key.help) for key in configs.keys(schema)]
    width = max(len(left) for left, _ in shown) + 2
    parser.epilog = "keys, with their defaults:\n" + "\n".join(f"  {left:<{width}}{right}" for left, right in shown)
    positional = _JOBS[name].positional
    parser.add_argument("settings", nargs="*", metavar=f"{positional.upper()}|KEY=VALUE" if positional else "KEY=VALUE")
    parser.add_argument("--config", metavar="FILE", help="YAML file with keys; KEY=VALUE arguments win over it")
    parser.add_argument("--print-config", action="store_true", help="print the config as YAML and exit")
    if _JOBS[name].dry_run:
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not {arguments[0] if arguments else "", " ".join(arguments[:2])} & _JOBS.keys():
        _parser(None, None).parse_args(arguments or ["--help"])
    words = 1 if arguments[0] in _JOBS else 2
    name = " ".join(arguments[:words])
    job = _JOBS[name]
    console = Console()
    try:
        module = importlib.import_module(job.module)
        schema = getattr(module, job.schema)
        # intermixed: flags may stand before, between and after the settings
        options = _parser(name, schema).parse_intermixed_args(arguments[words:])
        config = configs.load(schema, options.settings, options.config, job.positional)
        if options.print_config:
            sys.stdout.write(configs.to_yaml(config))
            return 0
        run = getattr(module, job.function)
        result = run(config, console, dry_run=True) if getattr(options, "dry_run", False) else run(config, console)
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
