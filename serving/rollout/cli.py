"""``python -m serving.rollout``: changes which versions callers get, on every replica.

Exit codes: 0 if the command succeeded, 1 if a replica failed, 2 if the command can't be applied.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.rollout import apply
from serving.rollout import labels as labels_module
from serving.rollout.errors import Failed, Refused
from serving.rollout.models_config import ModelsConfig, exclusive_lock
from serving.rollout.replicas import Replica

_DETAILS = """commands:
  status            show the file and the difference of every replica; exits with 1 if any differs
  canary VERSION    put a version on trial, under the label canary; the stable one ends the trial
  promote VERSION   move the label stable to this version
  rollback          move the label stable back to the version before the last promotion

All replicas load a version before a label moves to it, and keep the previous version loaded: no
call fails, and a rollback takes no time. If a replica fails, all are restored. If the command is
killed, the same command continues.

examples:
  python -m serving.rollout promote 1 --model=digits --models_config=models/models.config \\
      --base_path=/models/digits --targets=          # the first file, before replicas start
  python -m serving.rollout canary 7 --model=digits --models_config=models/models.config \\
      --targets=10.0.0.1:8500,10.0.0.2:8500
"""


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except Refused as error:
        return _print_error(f"{error}", 2)
    except Failed as error:
        return _print_error(f"{error}", 1)
    except OSError as error:
        return _print_error(f"{options.models_config} can't be written: {error}", 1)
    except KeyboardInterrupt:
        return _print_error("interrupted; the same command continues", 130)


def _run(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        if options.command != "status":
            stack.enter_context(exclusive_lock(options.models_config))
        config = ModelsConfig(options.models_config, options.model, options.base_path)
        replicas = [Replica(target, options.model) for target in options.targets]
        for replica in replicas:
            stack.callback(replica.close)
        if options.command == "status":
            return _status(config, replicas)
        old = config.assignment.labels
        if options.command == "rollback":
            labels = labels_module.rollback(old)
            if labels == old and not apply.is_unfinished(config, replicas):
                raise Refused(
                    f"there is nothing to go back to: {config.path} has no label "
                    f"{labels_module.PREVIOUS!r}, which `promote` sets"
                )
        elif options.command == "canary":
            labels = labels_module.canary(old, options.version)
        else:
            labels = labels_module.promote(old, options.version)
        apply.apply_labels(config, replicas, labels, options.timeout_s, _print)
    return 0


def _status(config: ModelsConfig, replicas: Sequence[Replica]) -> int:
    assignment = config.assignment
    labels = [f"{label} {version}" for label, version in sorted(assignment.labels.items())]
    versions = [str(version) for version in sorted(assignment.versions)]
    print(f"{config.path}: {', '.join(labels) or 'no labels'}", end="; ")
    print(f"versions {', '.join(versions)}" if versions else "no versions by number")
    differences = apply.differences(config, replicas)
    for replica in replicas:
        difference = differences[replica.target]
        print(f"{replica.target}: {f'differs: {difference}' if difference else 'as in the file'}")
    return 1 if any(differences.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.rollout",
        description="Move TF Serving's version labels, on every replica.",
        epilog=_DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name in ("status", "canary", "promote", "rollback"):
        sub = commands.add_parser(name)
        if name in ("canary", "promote"):
            sub.add_argument("version", type=_version)
        sub.add_argument("--model", required=True, help="the model's name")
        sub.add_argument(
            "--models_config",
            required=True,
            type=Path,
            metavar="PATH",
            help="the file that replicas read when they start",
        )
        sub.add_argument(
            "--targets",
            required=True,
            type=_targets,
            metavar="HOST:PORT,…",
            help="the gRPC address of each replica; empty if none runs yet",
        )
        sub.add_argument(
            "--base_path",
            help="creates a missing file or entry: the folder of versions, as replicas see it",
        )
        sub.add_argument(
            "--timeout_s",
            type=_seconds,
            default=120.0,
            help="time limit in seconds of each step on all replicas (%(default)g)",
        )
    return parser


def _version(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} has to be a version's number")
    return int(text)


def _targets(text: str) -> list[str]:
    targets = [part.strip() for part in text.split(",") if part.strip()]
    if len(set(targets)) < len(targets):
        raise argparse.ArgumentTypeError(f"{text!r} names a replica twice")
    return targets


def _seconds(text: str) -> float:
    if not (seconds := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} has to be above 0")
    return seconds


def _print(line: str) -> None:
    print(f"serving.rollout: {line}", flush=True)


def _print_error(line: str, code: int) -> int:
    print(f"serving.rollout: {line}", file=sys.stderr)
    return code
