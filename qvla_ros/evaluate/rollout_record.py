"""The results of roll-outs as a file of JSON lines, one distinct episode a line."""

import json
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.success_statistics import SuccessRate, mcnemar_exact

EpisodeKey = tuple[str, int, int]
"""Suite, task and initial state: what makes two episodes a pair."""


@dataclass(frozen=True, slots=True)
class RosFacts:
    """What only an episode through ROS 2 can tell.

    Attributes:
        real_time_factor: Simulated seconds in a second; 0: the clock waited for every command.
        camera_every: Control steps from one image to the next.
        chunks: Chunks that came.
        chunk_age_ms: Median, 95 % point and maximum, over the executed steps, of how old the
            observation behind the command was, in simulated milliseconds.
        deadline_misses: Control steps for which there was no chunk to follow: the robot stood.
        expired_chunks: What the policy node counted as deadline misses: chunks that ran out before
            the next one came.
        drops: What the policy node and the adapter did not use, by reason.
        resent: How often a frame had to be sensed again because nobody answered.
    """

    real_time_factor: float
    camera_every: int
    chunks: int
    chunk_age_ms: tuple[float, float, float]
    deadline_misses: int
    expired_chunks: int
    drops: dict[str, int]
    resent: int


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """One episode of one policy.

    Attributes:
        suite: LIBERO suite.
        task: Index of the task in the suite.
        initial_state: Index of the official initial state.
        success: Whether the goal was reached.
        steps: Executed control steps.
        actions_sha256: Over the executed actions as the simulator takes them (clipped, the gripper
            -1 or 1), as little-endian float32.
        policy_sha256: Of the checkpoint or model folder.
        quant_tag: How the policy is quantized, in words, and how its images are turned, if so.
        mujoco: Version of the simulator.
        ros: How the messages fared; ``None`` for an episode in process.
    """

    suite: str
    task: int
    initial_state: int
    success: bool
    steps: int
    actions_sha256: str
    policy_sha256: str
    quant_tag: str
    mujoco: str
    ros: RosFacts | None = None

    @property
    def key(self) -> EpisodeKey:
        """What makes two episodes a pair."""
        return self.suite, self.task, self.initial_state


def parse_record(line: str) -> RolloutRecord:
    """Read one line, strictly.

    Raises:
        ValueError: The line is not JSON, or its fields or their types are not the record's.
    """
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    ros = values.pop("ros", None)
    plain = {each.name: each.type for each in fields(RolloutRecord) if each.name != "ros"}
    _check_fields(values, plain)
    return RolloutRecord(**values, ros=None if ros is None else parse_ros_facts(ros))


def parse_ros_facts(values: object) -> RosFacts:
    """Read a JSON object, strictly.

    Raises:
        ValueError: Its fields or their types are not those of ``RosFacts``.
    """
    if not isinstance(values, dict):
        raise ValueError("'ros' is not a JSON object")
    kinds: dict[str, object] = {each.name: int for each in fields(RosFacts)}
    kinds |= {"real_time_factor": float, "chunk_age_ms": list, "drops": dict}
    _check_fields(values, kinds)
    ages, drops = values["chunk_age_ms"], values["drops"]
    if [type(age) for age in ages] != [float] * 3:
        raise ValueError(f"'chunk_age_ms' is {ages!r}, which is no three numbers")
    if any(type(count) is not int for count in drops.values()):
        raise ValueError(f"'drops' is {drops!r}, which holds no counts")
    return RosFacts(**{**values, "chunk_age_ms": tuple(ages)})


def _check_fields(values: dict, kinds: dict) -> None:
    if set(values) != set(kinds):
        raise ValueError(f"its fields are {sorted(values)}, not {sorted(kinds)}")
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise ValueError(f"{name!r} is {values[name]!r}, which is no {kind}")


def read_records(path: Path) -> list[RolloutRecord]:
    """Read a file of records, compressed if it is named ``.xz``; none if it does not exist.

    Raises:
        ConfigurationError: A line is no record, an episode stands there twice, or the file mixes
            policies or simulators. The message names the file and the line.
    """
    if not path.exists():
        return []
    try:
        data = path.read_bytes()
        lines = (lzma.decompress(data) if path.suffix == ".xz" else data).decode().splitlines()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from error
    records: list[RolloutRecord] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_record(line))
        except ValueError as error:
            raise ConfigurationError(f"{path}, line {number}: {error}") from error
    _check_distinct(path, records)
    return records


def write_records(path: Path, records: Iterable[RolloutRecord]) -> None:
    """Write all records atomically, compressed if the file is named ``.xz``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{_line(record)}\n" for record in records).encode()
    with atomic_file(path) as stream:
        stream.write(lzma.compress(data, preset=9) if path.suffix == ".xz" else data)


def _line(record: RolloutRecord) -> str:
    values = asdict(record)
    if record.ros is None:
        del values["ros"]
    return json.dumps(values, sort_keys=True)


def check_same_run(
    path: Path, records: Sequence[RolloutRecord], policy: str, quant_tag: str, mujoco: str
) -> None:
    """Refuse to go on with the file of another policy or simulator.

    Raises:
        ConfigurationError: The records have another policy's digest or words, or another MuJoCo
            version.
    """
    for record in records:
        if (record.policy_sha256, record.quant_tag, record.mujoco) != (policy, quant_tag, mujoco):
            raise ConfigurationError(
                f"{path} holds episodes of policy {record.policy_sha256[:12]} "
                f"({record.quant_tag}) on MuJoCo {record.mujoco}, this is policy {policy[:12]} "
                f"({quant_tag}) on MuJoCo {mujoco}; write to another file"
            )


def rates_by_task(records: Iterable[RolloutRecord]) -> dict[tuple[str, int], SuccessRate]:
    """Success rate of each (suite, task), in order."""
    groups: dict[tuple[str, int], list[bool]] = {}
    for record in records:
        groups.setdefault((record.suite, record.task), []).append(record.success)
    return {key: SuccessRate(sum(group), len(group)) for key, group in sorted(groups.items())}


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two policies on the same episodes.

    Attributes:
        both: Pairs in which both succeeded.
        only_first: Pairs in which only the first one succeeded.
        only_second: Pairs in which only the second one succeeded.
        neither: Pairs in which none succeeded.
        unpaired: Episodes that only one of the two has run; they do not count.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    unpaired: int

    @property
    def pairs(self) -> int:
        """Episodes that both have run."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p_value(self) -> float:
        """Two-sided, exact McNemar."""
        return mcnemar_exact(self.only_first, self.only_second)

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs: both {self.both}, only this {self.only_first}, "
            f"only the other {self.only_second}, neither {self.neither}; "
            f"exact McNemar p = {self.p_value:.3g}"
        )


def compare_paired(
    first: Sequence[RolloutRecord], second: Sequence[RolloutRecord]
) -> PairedComparison:
    """Compare the episodes that both have run.

    Raises:
        ConfigurationError: They have none in common, or ran on different simulators.
    """
    versions = sorted({record.mujoco for record in (*first, *second)})
    if len(versions) > 1:
        raise ConfigurationError(
            f"the episodes ran on MuJoCo {' and '.join(versions)} and are no pairs; "
            "run both policies on the same simulator"
        )
    ours = {record.key: record.success for record in first}
    theirs = {record.key: record.success for record in second}
    common = ours.keys() & theirs.keys()
    if not common:
        raise ConfigurationError("the two have no episode in common; run the same tasks")
    outcomes = [(ours[key], theirs[key]) for key in common]
    return PairedComparison(
        both=outcomes.count((True, True)),
        only_first=outcomes.count((True, False)),
        only_second=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
        unpaired=len(ours.keys() ^ theirs.keys()),
    )


def _check_distinct(path: Path, records: Sequence[RolloutRecord]) -> None:
    seen: dict[EpisodeKey, int] = {}
    for number, record in enumerate(records, start=1):
        if record.key in seen:
            suite, task, state = record.key
            raise ConfigurationError(
                f"{path}, line {number}: {suite} task {task} initial state {state} stands in "
                f"line {seen[record.key]} already; a repeated episode is not another sample"
            )
        seen[record.key] = number
    if records:
        first = records[0]
        check_same_run(path, records, first.policy_sha256, first.quant_tag, first.mujoco)
