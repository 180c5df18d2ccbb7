"""``qvla verify``: is a packed checkpoint intact, and does it act like its model?"""

import argparse
import sys
from pathlib import Path

from qvla_ros.cli.facts import print_facts
from qvla_ros.cli.model_arguments import (
    add_bag_arguments,
    add_model_arguments,
    open_model_of,
    read_observations,
)
from qvla_ros.cli.progress import Progress
from qvla_ros.cli.run_config import add_config_argument
from qvla_ros.errors import CheckpointError, ConfigurationError

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
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Read everything, compare the actions with the model's, and with what the file says."""
    from qvla_ros.checkpoint.reader import read_manifest
    from qvla_ros.evaluate.deployed_error import deployed_error, spread

    if arguments.frames < 1:
        raise ConfigurationError(f"--frames must be at least 1, not {arguments.frames}")
    manifest = read_manifest(arguments.checkpoint)
    model = open_model_of(arguments)
    if manifest.source_fingerprint != model.fingerprint:
        raise CheckpointError(
            f"{arguments.checkpoint} was made of another model than {arguments.model}"
        )
    observations = read_observations(arguments, model.processing.settings.robot)
    frames = [model.processing.prepare(one) for one in spread(observations, arguments.frames)]
    with Progress(len(frames), "comparing actions") as progress:
        # Loading it compares the checksum of the whole file.
        error = deployed_error(arguments.checkpoint, model, frames, progress.set)
    size = arguments.checkpoint.stat().st_size
    facts: dict[str, object] = {
        "checkpoint": str(arguments.checkpoint),
        "intact": True,
        "file_bytes": size,
        "share_of_bf16": round(size / model.bf16_bytes, 4),
        "frames": len(frames),
        "action_error_l1": error.mean_l1,
        "action_error_rms": error.rms,
        "gripper_flips": f"{error.gripper_flips} of {error.gripper_values}",
        "as_the_checkpoint_says": dict(manifest.quality),
    }
    if arguments.json:
        facts["action_error"] = error.to_json()
    print_facts(facts, arguments.json)
    # Written so that a threshold that is not a number fails too.
    if arguments.max_error is not None and not error.mean_l1 <= arguments.max_error:
        print(f"action error {error.mean_l1:.4f} > {arguments.max_error}", file=sys.stderr)
        return 1
    return 0
