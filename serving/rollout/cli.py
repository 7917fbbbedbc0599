"""``python -m serving.rollout``: which versions callers get, on every replica at once.

Exit codes: 0 if it is done, 1 if a replica did not come along, 2 if it can't be asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.rollout import plans, rolling
from serving.rollout.config import ModelsConfig, alone
from serving.rollout.errors import Failed, Refused
from serving.rollout.replicas import Replica

_WORDS = """commands:
  status            show the file, and what every replica serves; exits with 1 if they differ
  canary VERSION    put a version on trial, under the label canary; the stable one ends the trial
  promote VERSION   what callers of the label stable get from now on
  rollback          the stable version from before the last promotion again

Replicas load a version before a label moves to it, on all of them, and keep the one from before:
no call fails, and going back takes no time. If one can't, all are put back. Killed at any moment,
the same command goes on.

examples:
  python -m serving.rollout promote 1 --model=digits --models_config=models/models.config \\
      --base_path=/models/digits --targets=          # a first file, for replicas to start with
  python -m serving.rollout canary 7 --model=digits --models_config=models/models.config \\
      --targets=10.0.0.1:8500,10.0.0.2:8500
"""


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except Refused as error:
        return _complain(f"{error}", 2)
    except Failed as error:
        return _complain(f"{error}", 1)
    except OSError as error:
        return _complain(f"{options.models_config} can't be written: {error}", 1)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on", 130)


def _run(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        if options.command != "status":
            stack.enter_context(alone(options.models_config))
        config = ModelsConfig(options.models_config, options.model, options.base_path)
        servers = [Replica(target, options.model) for target in options.targets]
        for server in servers:
            stack.callback(server.close)
        if options.command == "status":
            return _status(config, servers)
        labels = config.placement.labels
        if options.command == "rollback":
            wanted = plans.rollback(labels)
            if wanted == labels and not rolling.unfinished(config, servers):
                raise Refused(
                    f"there is nothing to go back to: {config.path} has no label "
                    f"{plans.PREVIOUS!r}, which `promote` leaves"
                )
        else:
            plan = plans.canary if options.command == "canary" else plans.promote
            wanted = plan(labels, options.version)
        rolling.move(config, servers, wanted, options.timeout_s, _say)
    return 0


def _status(config: ModelsConfig, servers: Sequence[Replica]) -> int:
    placement = config.placement
    labels = [f"{label} {version}" for label, version in sorted(placement.labels.items())]
    versions = [str(version) for version in sorted(placement.versions)]
    print(f"{config.path}: {', '.join(labels) or 'no labels'}", end="; ")
    print(f"versions {', '.join(versions)}" if versions else "no versions by number")
    differences = rolling.report(config, servers)
    for server in servers:
        difference = differences[server.target]
        print(f"{server.target}: {f'differs: {difference}' if difference else 'as the file says'}")
    return 1 if any(differences.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.rollout",
        description="Move TF Serving's version labels, on every replica.",
        epilog=_WORDS,
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
            help="the file that the replicas read when they start",
        )
        sub.add_argument(
            "--targets",
            required=True,
            type=_targets,
            metavar="HOST:PORT,…",
            help="the gRPC port of every replica, each by itself; empty if none runs yet",
        )
        sub.add_argument(
            "--base_path",
            help="adds what is not there, file or model: where replicas find the versions",
        )
        sub.add_argument(
            "--timeout_s",
            type=_seconds,
            default=120.0,
            help="seconds allowed for each step on all replicas (%(default)g)",
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


def _say(line: str) -> None:
    print(f"serving.rollout: {line}", flush=True)


def _complain(line: str, code: int) -> int:
    print(f"serving.rollout: {line}", file=sys.stderr)
    return code
