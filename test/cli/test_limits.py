"""``qvla limits`` on the demo's own bags, and on a packed checkpoint."""

from pathlib import Path

import pytest
import yaml

pytest.importorskip("rosbags", reason="bags need the extra 'bag' (rosbags)")

from qvla_ros.cli.main import main
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.policy.action_limits import read_limits

BAGS = sorted(str(path) for path in (Path(__file__).parents[2] / "demo" / "bags").glob("*_?"))
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
    assert "%" in capsys.readouterr().out


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
