"""``qvla verify``: is a packed checkpoint intact, and does it act like its model?"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.model_arguments import (
    add_bag_arguments,
    add_model_arguments,
    load_model_of,
    read_observations,
)
from qvla_ros.cli.progress import Progress

if TYPE_CHECKING:
    from qvla_ros.observation import Observation

HELP = "check a packed checkpoint against the model that it was made of, on recorded bags"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("checkpoint", type=Path, help="packed checkpoint")
    add_model_arguments(parser)
    add_bag_arguments(parser)
    parser.add_argument("--frames", type=int, default=64, help="frames compared (default 64)")
    parser.add_argument(
        "--max-error",
        type=float,
        metavar="L1",
        help="exit with 1 if the mean absolute action error in normalised space is greater",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Read everything, compare the actions, print."""
    from qvla_ros.checkpoint.reader import read_manifest
    from qvla_ros.errors import CheckpointError
    from qvla_ros.evaluate.comparison import answer_all
    from qvla_ros.policy.policy import Policy, PolicyIdentity, load_policy

    policy = load_policy(arguments.checkpoint)  # compares the checksum and every shape
    manifest = read_manifest(arguments.checkpoint)
    model = load_model_of(arguments)
    if manifest.source_fingerprint != model.fingerprint:
        raise CheckpointError(
            f"{arguments.checkpoint} was made of another model than {arguments.model}"
        )
    reference = Policy(
        model.network,
        model.processing,
        PolicyIdentity(model.model_id, model.fingerprint, "float32"),
    )
    observations = _spread(read_observations(arguments.bags), arguments.frames)
    with Progress(2 * len(observations), "comparing actions") as progress:
        expected = answer_all(reference, observations, lambda done, _: progress.advance())
        answered = answer_all(policy, observations, lambda done, _: progress.advance())
    error = answered.error_against(expected, policy.action_names)
    facts: dict[str, object] = {
        "checkpoint": str(arguments.checkpoint),
        "intact": True,
        "file_bytes": arguments.checkpoint.stat().st_size,
        "share_of_bf16": round(arguments.checkpoint.stat().st_size / model.bf16_bytes, 4),
        "frames": len(observations),
        "action_error_l1": error.mean_l1,
        "action_error_rms": error.rms,
        "gripper_flips": f"{error.gripper_flips} of {error.gripper_values}",
    }
    if arguments.json:
        print(json.dumps(facts | {"action_error": error.to_json()}, indent=2))
    else:
        print("\n".join(f"{key:<18} {value}" for key, value in facts.items()))
    if arguments.max_error is not None and error.mean_l1 > arguments.max_error:
        print(f"action error {error.mean_l1:.4f} > {arguments.max_error}", file=sys.stderr)
        return 1
    return 0


def _spread(observations: "list[Observation]", count: int) -> "list[Observation]":
    if count >= len(observations):
        return observations
    return [observations[i * len(observations) // count] for i in range(count)]
