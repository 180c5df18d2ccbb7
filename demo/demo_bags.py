"""Where the demo's bags lie, by their use and their task."""

from collections.abc import Collection
from pathlib import Path

import yaml

BAGS = Path(__file__).parent / "bags"


def demo_bags(use: str, tasks: Collection[int] | None = None) -> list[Path]:
    """The demo's bags for ``calibration`` or ``heldout``, of all tasks or of these."""
    bags = sorted(BAGS.glob(f"{use}_*"))
    return bags if tasks is None else [bag for bag in bags if _task_of(bag) in tasks]


def _task_of(bag: Path) -> int:
    told = yaml.safe_load((bag / "metadata.yaml").read_text(encoding="utf-8"))
    return int(told["rosbag2_bagfile_information"]["custom_data"]["task"])
