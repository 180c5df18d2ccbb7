"""The results of roll-outs as a file of JSON lines, one distinct episode a line."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.success_statistics import SuccessRate, mcnemar_exact

EpisodeKey = tuple[str, int, int]
"""Suite, task and initial state: what makes two episodes a pair."""


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """One episode of one policy.

    Attributes:
        suite: LIBERO suite.
        task: Index of the task in the suite.
        initial_state: Index of the official initial state.
        success: Whether the goal was reached.
        steps: Executed control steps.
        actions_sha256: Over the executed actions as little-endian float32.
        policy_sha256: Of the checkpoint or model folder.
        quant_tag: How the policy is quantized, in words.
        mujoco: Version of the simulator.
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
    wanted = {each.name: each.type for each in fields(RolloutRecord)}
    if set(values) != set(wanted):
        raise ValueError(f"its fields are {sorted(values)}, not {sorted(wanted)}")
    for name, kind in wanted.items():
        if type(values[name]) is not kind:
            raise ValueError(f"{name!r} is {values[name]!r}, which is no {kind}")
    return RolloutRecord(**values)


def read_records(path: Path) -> list[RolloutRecord]:
    """Read a file of records; none if it does not exist.

    Raises:
        ConfigurationError: A line is no record, an episode stands there twice, or the file mixes
            policies or simulators. The message names the file and the line.
    """
    if not path.exists():
        return []
    records: list[RolloutRecord] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(parse_record(line))
        except ValueError as error:
            raise ConfigurationError(f"{path}, line {number}: {error}") from error
    _check_distinct(path, records)
    return records


def write_records(path: Path, records: Iterable[RolloutRecord]) -> None:
    """Write all records atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        for record in records:
            stream.write(f"{json.dumps(asdict(record), sort_keys=True)}\n".encode())


def check_same_run(path: Path, records: Sequence[RolloutRecord], policy: str, mujoco: str) -> None:
    """Refuse to go on with the file of another policy or simulator.

    Raises:
        ConfigurationError: The records have another policy's digest or another MuJoCo version.
    """
    for record in records:
        if (record.policy_sha256, record.mujoco) != (policy, mujoco):
            raise ConfigurationError(
                f"{path} holds episodes of policy {record.policy_sha256[:12]} on MuJoCo "
                f"{record.mujoco}, this is policy {policy[:12]} on MuJoCo {mujoco}; "
                "write to another file"
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
        check_same_run(path, records, records[0].policy_sha256, records[0].mujoco)
