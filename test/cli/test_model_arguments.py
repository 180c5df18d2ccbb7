"""The same words name the same things in bags, whatever the verb."""

import argparse

import pytest

from qvla_ros.cli.main import build_parser
from qvla_ros.cli.model_arguments import add_bag_arguments, bag_layout, sync_settings
from qvla_ros.errors import ConfigurationError
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS

LIBERO = ROBOT_CONSTANTS["libero"]


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_bag_arguments(parser)
    return parser.parse_args(["bag", *words])


def test_without_words_the_topics_are_those_of_the_node():
    layout = bag_layout(parse(), LIBERO)
    assert list(layout.images.values()) == [
        "/camera/primary/image_raw/compressed",
        "/camera/wrist/image_raw/compressed",
    ]
    assert (layout.state, layout.action, layout.spoken) == (
        "/robot/state",
        "/robot/action",
        "/instruction",
    )
    assert not layout.require_actions


def test_every_topic_and_name_can_be_another():
    names = [f"joint_{index}" for index in range(8)]
    layout = bag_layout(
        parse(
            "--camera", "wrist=/hand/image_raw", "--camera", "primary=/head",
            "--state-topic", "/joint_states", "--state-names", ",".join(names),
            "--action-topic", "/command", "--instruction", "pick", "--arrival", "stamped",
            "--image-orientations", "as_is,rotate_180",
        ),
        LIBERO,
    )  # fmt: skip
    assert layout.images == {"primary": "/head", "wrist": "/hand/image_raw"}
    assert list(layout.images) == ["primary", "wrist"], "the order is the robot's"
    assert (layout.state, layout.state_names) == ("/joint_states", tuple(names))
    assert (layout.action, layout.require_actions) == ("/command", True)
    assert (layout.instruction_text, layout.spoken) == ("pick", None)
    assert layout.arrival_from_stamps
    assert layout.orientation_of == {"primary": "as_is", "wrist": "rotate_180"}


def test_the_limits_in_time_are_those_of_the_node_unless_told():
    assert sync_settings(parse()).max_skew_ns == 50_000_000
    given = sync_settings(parse("--max-skew-ms", "80", "--max-observation-age-ms", "300"))
    assert (given.max_skew_ns, given.max_age_ns) == (80_000_000, 300_000_000)
    with pytest.raises(ConfigurationError, match="--max-skew-ms must be positive"):
        sync_settings(parse("--max-skew-ms", "0"))


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (("--camera", "left=/topic"), "cameras primary, wrist"),
        (("--camera", "primary"), "NAME=TOPIC"),
        (("--camera", "primary=/camera/wrist/image_raw/compressed"), "2 inputs at once"),
        (("--state-names", "a,b"), "--state-names has 2 names"),
        (("--action-names", "a"), "--action-names has 1 names"),
        (("--image-orientations", "mirror,flip,as_is"), "--image-orientations has 3 entries"),
        (("--image-orientations", "left"), "as_is, rotate_180, mirror, flip"),
    ],
)
def test_words_that_contradict_the_robot_are_refused(words, culprit):
    with pytest.raises(ConfigurationError, match=culprit):
        bag_layout(parse(*words), LIBERO)


@pytest.mark.parametrize("verb", ["measure", "verify", "replay", "limits", "quantize"])
def test_every_verb_that_reads_bags_understands_them(verb, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([verb, "--help"])
    text = capsys.readouterr().out
    for word in ("--camera", "--state-topic", "--instruction", "--max-skew-ms", "--arrival"):
        assert word in text
