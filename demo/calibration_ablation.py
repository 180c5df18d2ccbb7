"""Does it matter whose states a checkpoint was calibrated with? ``make closed-loop-calibration``.

Three sets of bags, the same number of frames of each, one budget; each checkpoint is rolled out
from the same initial states. Everything goes on where it stopped.

    demonstrations       the demo's calibration bags
    own_rollouts         episodes that the float policy ran, failed ones too
    quantized_rollouts   episodes that the checkpoint of the first set ran, failed ones too
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from demo.closed_loop_runs import (
    Settings,
    add_arguments,
    keep_records,
    roll_out,
    run_in_simulator,
    settings_of,
)
from demo.demo_bags import demo_bags
from qvla_ros.atomic_file import atomic_file
from qvla_ros.checkpoint.reader import read_manifest
from qvla_ros.cli.main import main as qvla
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.episode import read_episode
from qvla_ros.evaluate.rollout_record import read_records
from qvla_ros.models.released_folder import fingerprint
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS

BITS = 2.0
"""Where this policy's checkpoints begin to lose, so that a better set could be told."""
FRAMES = 128
HELDOUT_FRAMES = 320
EPISODES = 2
"""Recorded of each task."""
MARGIN = 8
"""Control steps before and after the gripper moves that count as contact, or as release."""
FIRST = "demonstrations"
ARMS = (FIRST, "own_rollouts", "quantized_rollouts")
FOLDER = "calibration"


def phases(closed: np.ndarray) -> np.ndarray:
    """Phase of each step, ``int [steps]``: 0 approach, 1 contact, 2 transport, 3 release.

    Args:
        closed: Whether the gripper is told to be closed, ``bool [steps]``.
    """
    steps = np.arange(len(closed))
    if not closed.any():
        return np.zeros(len(closed), int)
    grasp, last = int(np.argmax(closed)), len(closed) - 1 - int(np.argmax(closed[::-1]))
    found = np.where(steps < grasp - MARGIN, 0, np.where(steps <= grasp + MARGIN, 1, 2))
    return np.where((steps > last - MARGIN) & (last + 1 < len(closed)), 3, found)


def phase_shares(bags: Sequence[Path]) -> list[float]:
    """Share of the steps of these bags that each phase has."""
    robot = ROBOT_CONSTANTS["libero"]
    layout, gripper = BagLayout.of_robot(robot), robot.action_names.index("gripper")
    counts = np.zeros(4, int)
    for bag in bags:
        actions = read_episode(bag, layout).actions
        if actions is None:
            raise ConfigurationError(f"{bag} holds no actions, so its phases are not known")
        counts += np.bincount(phases(actions.values[:, gripper] < 0.5), minlength=4)
    return [round(float(share), 3) for share in counts / counts.sum()]


def bags_of(settings: Settings, arm: str) -> list[Path]:
    """The bags of one set, so far."""
    if arm == FIRST:
        return demo_bags("calibration")
    return sorted((settings.work / FOLDER / f"bags_{arm}").glob("rollout_*"))


def _record(settings: Settings, arm: str) -> None:
    policy = settings.model if arm == "own_rollouts" else _checkpoint(settings, FIRST)
    words = ["-m", "demo.train.record_rollouts", "--policy", policy]
    words += ["--out", settings.work / FOLDER / f"bags_{arm}"]
    words += ["--tasks", *settings.tasks, "--episodes", EPISODES]
    run_in_simulator(settings, words, f"recording {arm}")


def _checkpoint(settings: Settings, arm: str) -> Path:
    return settings.work / FOLDER / f"{arm}.qvla.safetensors"


def quantize_words(settings: Settings, arm: str) -> list[str]:
    """The command line by which a checkpoint is made."""
    words = ["quantize", settings.model, *bags_of(settings, arm)]
    words += ["--bits", BITS, "--frames", FRAMES]
    words += ["--heldout", *demo_bags("heldout"), "--heldout-frames", HELDOUT_FRAMES]
    return [str(word) for word in (*words, "--out", _checkpoint(settings, arm))]


def run(settings: Settings) -> None:
    """Quantize with each set and roll out.

    Raises:
        ConfigurationError: A step failed, or what is there already is of another model.
    """
    source = fingerprint(settings.model)
    for arm in ARMS:
        out = _checkpoint(settings, arm)
        if out.exists():
            if read_manifest(out).source_fingerprint != source:
                raise ConfigurationError(f"{out} is of another model: remove {out.parent}")
        else:
            if arm != FIRST:
                _record(settings, arm)
            if qvla(quantize_words(settings, arm)) != 0:
                raise ConfigurationError(f"qvla quantize failed with {arm}, see above")
        roll_out(settings, out, f"{FOLDER}/{arm}", settings.episodes)


def keep(settings: Settings, kept: Path) -> None:
    """Compress the episodes into ``kept/calibration``, beside what is known of the checkpoints."""
    facts = {}
    for arm in ARMS:
        records = read_records(settings.records(f"{FOLDER}/{arm}"))
        if not records:
            continue
        keep_records(kept / FOLDER / f"{arm}.jsonl.xz", records)
        manifest = read_manifest(_checkpoint(settings, arm))
        facts[arm] = {
            "bits": BITS,
            "frames": FRAMES,
            "phase_shares": phase_shares(bags_of(settings, arm)),
            "heldout_action_error": manifest.quality["heldout_action_error"],
            "checkpoint_sha256": manifest.sha256,
        }
    if facts:
        with atomic_file(kept / FOLDER / "checkpoints.json") as file:
            file.write(f"{json.dumps(facts, indent=1)}\n".encode())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    options = parser.parse_args()
    settings = settings_of(options)
    run(settings)
    keep(settings, options.kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
