"""``qvla limits`` on the demo's own bags, and on a packed checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rosbags", reason="bags need the extra 'bag' (rosbags)")

from qvla_ros.cli.main import main
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.episode import read_episode
from qvla_ros.evaluate.limit_calibration import calibrate_limits, count_trips, windows
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.policy.action_limits import read_limits
from qvla_ros.policy.frame_sync import SyncSettings

ROOT = Path(__file__).parents[2]
BAGS = sorted(str(path) for path in (ROOT / "demo" / "bags").glob("*_?"))
NAMES = ROBOT_CONSTANTS["libero"].action_names


def test_recorded_actions_give_limits_that_clean_bags_do_not_trip(tmp_path, capsys):
    out = tmp_path / "limits.yaml"
    assert main(["limits", *BAGS, "--robot", "libero", "--out", str(out)]) == 0
    assert "0 (0.00%) would be refused" in capsys.readouterr().out
    content = yaml.safe_load(out.read_text())
    assert content["provenance"]["source"] == "recorded actions"
    assert content["provenance"]["bags"] == [Path(bag).name for bag in BAGS]
    assert set(content["false_positive_rate"]) == set(NAMES)
    limits = read_limits(out, NAMES)
    assert limits.lower[NAMES.index("gripper")] < 0
    assert limits.upper[NAMES.index("gripper")] > 1


def test_a_margin_of_nothing_shows_in_the_rates(tmp_path, capsys):
    out = tmp_path / "limits.yaml"
    words = ["limits", *BAGS, "--robot", "libero", "--margin", "0", "--out", str(out)]
    assert main(words) == 0
    rates = yaml.safe_load(out.read_text())["false_positive_rate"]
    assert max(rate for one in rates.values() for rate in one.values()) > 0
    told = capsys.readouterr()
    assert "%" in told.out
    margin = told.err.split("with --margin ")[1].split()[0]
    assert main([*words[:-3], margin, "--out", str(out)]) == 0
    assert "0 of 12 clean bags had a chunk refused" in capsys.readouterr().err


def test_it_says_how_many_bags_show_the_rate_that_is_wanted(tmp_path, capsys):
    out = tmp_path / "limits.yaml"
    words = ["limits", "--robot", "libero", "--out", str(out), "--wanted-rate"]
    assert main([*words, "0.01", *BAGS]) == 0
    told = capsys.readouterr().err
    assert "at 95 %, at most 22.1% of clean episodes will" in told
    assert "it takes 299 clean bags, none refused" in told
    assert main([*words, "0.1", BAGS[0]]) == 0
    assert "it needs two bags or more" in capsys.readouterr().err
    assert main([*words, "0.5", *BAGS]) == 0
    assert "it takes" not in capsys.readouterr().err
    assert main([*words, "1.5", *BAGS]) == 2


def test_json_says_what_the_file_says(tmp_path, capsys):
    out = tmp_path / "limits.yaml"
    assert main(["limits", *BAGS, "--robot", "libero", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(out.read_text())


def test_limits_of_some_bags_refuse_nothing_of_others_in_the_demo():
    """With the node's own limits in time, and the margin that is the default."""
    layout = BagLayout.of_robot(ROBOT_CONSTANTS["libero"])
    section = yaml.safe_load((ROOT / "config" / "libero.yaml").read_text())["/**/policy"]
    told = section["ros__parameters"]
    settings = SyncSettings(
        max_age_ns=round(told["max_observation_age_s"] * 1e9),
        max_skew_ns=round(told["max_skew_s"] * 1e9),
    )
    recordings = {}
    for bag in BAGS:
        episode = read_episode(Path(bag), layout, settings)
        assert dict(episode.drops) == {}, "a clean recording trips no limit in time"
        recordings[Path(bag).name] = windows(episode.actions, 8, 50_000_000)
    calibration = [one for name, one in recordings.items() if name.startswith("calibration")]
    limits = calibrate_limits(calibration, NAMES, margin=0.5).limits
    heldout = [one for name, one in recordings.items() if name.startswith("heldout")]
    assert count_trips(limits, np.concatenate(heldout)).refused == 0


def test_what_a_checkpoint_says_gives_limits(packed_checkpoint, tmp_path):
    out = tmp_path / "limits.yaml"
    words = ["--checkpoint", str(packed_checkpoint), "--out", str(out)]
    assert main(["limits", *BAGS[:2], *words]) == 0
    provenance = yaml.safe_load(out.read_text())["provenance"]
    assert provenance["source"] == "chunks of a checkpoint"
    assert len(provenance["checkpoint_sha256"]) == 64
    assert provenance["chunks"] == provenance["heldout_chunks"] > 100
    read_limits(out, NAMES)


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        ([], "give --checkpoint, or --robot"),
        (["--robot", "nobody"], "nobody"),
        (["--robot", "libero", "--margin", "-1"], "--margin"),
        (["--robot", "libero", "--action-topic", "/nowhere"], "/nowhere"),
        (["--robot", "aloha"], "/camera/left_wrist"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(tmp_path, capsys, words, culprit):
    assert main(["limits", BAGS[0], *words, "--out", str(tmp_path / "limits.yaml")]) == 2
    assert culprit in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
