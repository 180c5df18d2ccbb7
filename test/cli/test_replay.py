"""``qvla replay`` from its arguments to its exit code, with a policy that the test knows."""

import argparse
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.cli import replay as verb
from qvla_ros.errors import CalibrationError, ConfigurationError
from qvla_ros.evaluate import replay as replaying
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_writer import write_episode
from qvla_ros.evaluate.episode import Episode
from qvla_ros.models.robot_constants import RobotConstants
from qvla_ros.observation import Observation
from qvla_ros.policy.inference import Inference

PERIOD = 50_000_000
STEPS = 12


ROBOT = RobotConstants(
    name="arm",
    horizon=4,
    action_names=("dx", "gripper"),
    state_names=("x", "y"),
    image_names=("primary",),
    normalization="q99",
    period_ns=PERIOD,
)


class Scale:
    settings = SimpleNamespace(
        unnorm_key="somewhere", robot=ROBOT, action_low=[-1, 0], action_high=[1, 1]
    )

    def normalized_actions(self, actions):
        return actions


class Constant:
    """Answers ``value`` in every dimension, or what is no number."""

    horizon = 4
    period_ns = PERIOD
    action_names = ("dx", "gripper")
    image_names = ("primary",)
    processing = Scale()
    model_id = "constant"
    quant_tag = "4.00 bits"

    def __init__(self, value: float) -> None:
        self.value = value

    def memory_bytes(self):
        return {}

    def infer(self, observation):
        actions = np.full((4, 2), self.value, np.float32)
        return Inference(ActionChunk(observation.stamp_ns, PERIOD, actions), {"model": 1.0})


@pytest.fixture
def bag(tmp_path):
    pytest.importorskip("rosbags")
    image = np.zeros((16, 16, 3), np.uint8)
    observations = [
        Observation(
            1_000_000_000 + step * PERIOD, {"primary": image}, np.zeros(2, np.float32), "go"
        )
        for step in range(STEPS)
    ]
    actions = np.full((STEPS, 2), 0.5, np.float32)
    write_episode(
        tmp_path / "bag", Episode.in_step(observations, actions), BagLayout.of_robot(ROBOT)
    )
    write_episode(tmp_path / "silent", Episode.in_step(observations), BagLayout.of_robot(ROBOT))
    return tmp_path / "bag"


@pytest.fixture
def load(monkeypatch):
    """Makes the verb load constant policies of the given values."""

    def install(value: float, reference: float = 0.0) -> None:
        module = ModuleType("qvla_ros.policy.policy")
        module.load_policy = lambda _path: Constant(value)
        module.float_policy = lambda _folder, _key, _robot: Constant(reference)
        monkeypatch.setitem(sys.modules, "qvla_ros.policy.policy", module)

    return install


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def arguments(bag, *more: object) -> argparse.Namespace:
    words = ("--checkpoint", "c", "--latency-ms", 0, "--request-period-ms", 50)
    return parse(bag, *words, *more)


def test_it_prints_a_table_with_the_error_against_the_recording(bag, load, capsys):
    load(0.75)
    assert verb.run(arguments(bag)) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["episode", "steps"]
    assert row.split()[:4] == ["bag", "12", "12", "0.2500"]


def test_several_bags_get_a_row_each_and_one_for_all(bag, load, capsys):
    load(0.75)
    verb.run(parse(bag, bag, "--checkpoint", "c", "--latency-ms", 0))
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["episode", "bag", "bag", "all"]


@pytest.mark.parametrize(("limit", "code"), [(0.26, 0), (0.24, 1)])
def test_the_exit_code_tells_whether_the_error_is_within_its_limit(bag, load, limit, code):
    load(0.75)
    assert verb.run(arguments(bag, "--max-error", limit)) == code


def test_with_a_reference_the_limit_is_on_the_difference_from_it(bag, load):
    load(0.75, reference=0.74)
    limited = arguments(bag, "--reference", "folder", "--max-error", 0.02)
    assert verb.run(limited) == 0


def test_a_policy_that_answers_nothing_usable_is_not_within_any_limit(bag, load, capsys):
    load(float("nan"))
    assert verb.run(arguments(bag, "--max-error", 1000)) == 1
    errors = capsys.readouterr().err
    assert "5 observations got no usable answer" in errors
    assert "stopped for good: 5 inferences failed in a row, the last one: the chunk" in errors


def test_a_limit_without_anything_to_compare_with_is_refused(bag, load):
    load(0.75)
    with pytest.raises(ConfigurationError, match="--reference, or bags with actions"):
        verb.run(arguments(bag.parent / "silent", "--max-error", 1))


def test_actions_that_are_asked_for_by_topic_must_be_there(bag, load):
    load(0.75)
    with pytest.raises(CalibrationError, match="no topic /robot/action"):
        verb.run(arguments(bag.parent / "silent", "--action-topic", "/robot/action"))


def test_a_bag_without_actions_is_compared_with_the_reference_alone(bag, load, capsys):
    load(0.75, reference=0.5)
    assert verb.run(arguments(bag.parent / "silent", "--reference", "folder", "--json")) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["recorded_error"] is None
    assert summary["reference_error"]["mean_l1"] == pytest.approx(0.25)


def test_without_a_period_the_policy_is_asked_every_half_horizon_as_on_the_robot(
    bag, load, capsys
):
    load(0.75)
    verb.run(parse(bag, "--checkpoint", "c", "--latency-ms", 0, "--json"))
    assert json.loads(capsys.readouterr().out)["summary"]["inferences"] == STEPS / 2


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (("--max-seam-jump", "-1"), "--max-seam-jump"),
        (("--max-latency-ms", "0"), "--max-latency-ms 0 is exceeded"),
        (("--max-deadline-misses", "0", "--ttl-ms", "20"), "--max-deadline-misses 0"),
        (
            ("--max-dropped", "0", "--max-observation-age-ms", "0.001", "--latency-ms", "60"),
            "--max-dropped 0",
        ),
    ],
)
def test_every_threshold_decides_the_exit_code(bag, load, capsys, words, culprit):
    load(0.75)
    assert verb.run(arguments(bag, *words)) == 1
    assert culprit in capsys.readouterr().err


def test_a_chunk_beyond_the_limits_is_told_and_may_fail_the_run(bag, load, tmp_path, capsys):
    load(0.75)
    text = "{{lower: 0, upper: {}, max_step: 1}}"
    for upper, code in ((1, 0), (0.7, 1)):  # 0.75 is said
        entry = text.format(upper)
        path = tmp_path / "limits.yaml"
        path.write_text(f"limits: {{dx: {entry}, gripper: {entry}}}")
        assert verb.run(arguments(bag, "--limits", path, "--max-trips", 0, "--json")) == code
    assert '"dx.upper": 5' in capsys.readouterr().out


def test_json_goes_to_standard_output_alone(bag, load, capsys):
    load(0.75)
    verb.run(arguments(bag, "--json"))
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["recorded_error"]["mean_l1"] == pytest.approx(0.25)
    assert found["episodes"][0]["name"] == "bag"
    assert "processor" in found["machine"]


def test_the_page_tells_the_settings(bag, load, tmp_path):
    pytest.importorskip("matplotlib")
    load(0.75)
    out = tmp_path / "page.html"
    verb.run(arguments(bag, "--html", out, "--reference", "folder"))
    text = out.read_text(encoding="utf-8")
    assert text.count("<svg") == 7
    assert "simulated latency" in text
    assert "0 ms" in text


@pytest.mark.parametrize(
    "words",
    [
        ("--latency-ms", "-1"),
        ("--ttl-ms", 0),
        ("--warmup", "-1"),
        ("--threads", 0),
        ("--max-observation-age-ms", 0),
        ("--blend-ms", 0, "--strategy", "blend"),
        ("--failure-limit", 0),
        ("--sync-wait-ms", -1),
    ],
)
def test_times_that_make_no_sense_are_refused_by_name(bag, load, words):
    load(0.75)
    with pytest.raises(ConfigurationError, match=words[0]):
        verb.run(arguments(bag, *words))


@pytest.mark.parametrize("word", ["primary", "side=/topic"])
def test_a_topic_for_no_camera_of_the_robot_is_refused(bag, load, word):
    load(0.75)
    with pytest.raises(ConfigurationError, match="NAME=TOPIC with one of the cameras primary"):
        verb.run(arguments(bag, "--camera", word))


@pytest.mark.parametrize("strategy", ["blend", "ensemble"])
def test_overlapping_chunks_may_be_averaged_as_on_the_robot(bag, load, capsys, strategy):
    load(0.75)
    assert verb.run(arguments(bag, "--strategy", strategy, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["seam_maximum"] == pytest.approx(0)


def test_names_that_the_model_does_not_count_are_refused(bag, load):
    load(0.75)
    with pytest.raises(ConfigurationError, match=r"--state-names has 1 names, .* 2 \(x, y\)"):
        verb.run(arguments(bag, "--state-names", "x"))


def test_names_of_another_robot_are_picked_in_the_order_of_the_model(bag, load, capsys):
    load(0.75)
    words = ("--state-names", "y,x", "--action-names", "gripper,dx", "--instruction", "go home")
    assert verb.run(arguments(bag, *words)) == 0


def parameter_file(folder, text: str):
    path = folder / "robot.yaml"
    path.write_text(f"/**/policy:\n  ros__parameters: {{{text}}}\n")
    return path


def replayed_settings(monkeypatch, bag, *words: object):
    """How the verb has the robot simulated."""
    seen = []

    def replay(policy, episode, settings, *_):
        seen.append(settings)
        return real(policy, episode, settings)

    real = replaying.replay
    monkeypatch.setattr(replaying, "replay", replay)
    verb.run(parse(bag, "--checkpoint", "c", "--latency-ms", 0, *words))
    return seen[0]


def test_the_nodes_parameter_file_configures_the_replay(bag, load, tmp_path, monkeypatch):
    """A replay had no word for several parameters, so it was not the robot's configuration."""
    load(0.75)
    limits = tmp_path / "limits.yaml"
    limits.write_text(
        "limits: {dx: {lower: 0, upper: 0.5, max_step: 1}, "
        "gripper: {lower: 0, upper: 1, max_step: 1}}"
    )
    path = parameter_file(
        tmp_path,
        f"limits_file: {limits}, out_of_limits: clamp, failure_limit: 7, warmup_count: 0, "
        "future_tolerance_s: 0.03, chunk_ttl_s: 0.15, request_period_s: 0.1, blend_s: 0.2, "
        "chunk_strategy: blend, gripper_name: gripper, absolute: true, checkpoint: elsewhere",
    )
    settings = replayed_settings(monkeypatch, bag, "--params-file", path, "--ttl-ms", 120)
    scheduler = settings.scheduler
    assert (scheduler.clamp, scheduler.future_tolerance_ns) == (True, 30_000_000)
    assert scheduler.limits.upper.tolist() == [0.5, 1]
    assert scheduler.ttl_ns == 120_000_000, "the word wins over the file"
    assert (settings.failure_limit, settings.warmup_count) == (7, 0)
    assert settings.strategy.duration_ns == 200_000_000
    assert settings.strategy.averaged.tolist() == [True, False]


def test_limits_in_time_of_the_file_hold_for_reading_the_bag(bag, load, tmp_path, capsys):
    load(0.75)
    path = parameter_file(tmp_path, "max_observation_age_s: 0.000001")
    words = ("--latency-ms", 60, "--params-file", path, "--max-dropped", 0)
    assert verb.run(arguments(bag, *words)) == 1
    assert "--max-dropped 0" in capsys.readouterr().err


def test_images_are_turned_as_the_file_says(bag, load, tmp_path):
    load(0.75)
    path = parameter_file(tmp_path, "image_orientations: [mirror]")
    told = arguments(bag, "--params-file", path)
    assert verb.run(told) == 0
    assert told.image_orientations == ("mirror",)


@pytest.mark.parametrize("strategy", ["blend", "ensemble"])
@pytest.mark.parametrize(
    ("rotation", "absolute"), [("axis_angle", "true"), ("quaternion_xyzw", "false")]
)
def test_rotations_that_the_node_would_not_average_are_not_averaged_here(
    bag, load, tmp_path, strategy, rotation, absolute
):
    load(0.75)
    text = f"chunk_strategy: {strategy}, rotation: {rotation}, absolute: {absolute}"
    for words in (
        ("--params-file", parameter_file(tmp_path, text)),
        ("--strategy", strategy, "--rotation", rotation)
        + (("--absolute",) if absolute == "true" else ()),
    ):
        with pytest.raises(ConfigurationError, match="would average rotations"):
            verb.run(arguments(bag, *words))


def test_what_is_said_of_the_node_wins_over_what_is_said_of_all(bag, load, tmp_path, monkeypatch):
    load(0.75)
    path = tmp_path / "robot.yaml"
    path.write_text(
        "arm: {policy: {ros__parameters: {failure_limit: 3}}}\n"
        "/**: {ros__parameters: {failure_limit: 9, warmup_count: 1}}\n"
        "/**/adapter: {ros__parameters: {failure_limit: 8}}\n"
    )
    settings = replayed_settings(monkeypatch, bag, "--params-file", path)
    assert (settings.failure_limit, settings.warmup_count) == (3, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("failure_limit: many", "failure_limit is 'many', it has to be a int"),
        ("chunk_strategy: best", "chunk_strategy is 'best': use one of latest_only"),
        ("blend_s: 0.0", "blend_s has to be positive"),
        ("sync_wait_s: -1.0", "sync_wait_s cannot be negative"),
        ("chunk_strategy: blend, gripper_name: hand", "gripper_name is 'hand', but the actions"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_name(bag, load, tmp_path, text, reason):
    load(0.75)
    with pytest.raises(ConfigurationError, match=reason):
        verb.run(arguments(bag, "--params-file", parameter_file(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("policy: {}", "no parameters of the policy node"), ("{", "cannot be read")],
)
def test_a_file_without_parameters_of_the_policy_is_refused(bag, load, tmp_path, text, reason):
    load(0.75)
    path = tmp_path / "robot.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        verb.run(arguments(bag, "--params-file", path))
