"""Parameters are declared once; what repeats them elsewhere must agree."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from qvla_ros.errors import ConfigurationError
from qvla_ros.node.adapter_parameters import AdapterParameters
from qvla_ros.node.declaration import descriptor
from qvla_ros.node.fault_parameters import FaultParameters
from qvla_ros.node.parameters import NodeParameters

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"policy": NodeParameters, "adapter": AdapterParameters, "faults": FaultParameters}
FIELDS = [entry for kind in KINDS.values() for entry in dataclasses.fields(kind)]


def shown(entry: dataclasses.Field) -> str:
    """The row of the table in the documentation."""
    default = entry.default
    if isinstance(default, tuple):
        default = list(default)
    text = f'"{default}"' if isinstance(default, str) else str(default).replace("'", '"')
    limits, choices = entry.metadata["limits"], entry.metadata["choices"]
    allowed = ", ".join(f"`{choice}`" for choice in choices)
    if limits is not None:
        allowed = f"{limits[0]} to {limits[1]}"
    when = "launch only" if entry.metadata["read_only"] else "while unconfigured"
    name = text.lower() if isinstance(default, bool) else text
    description = entry.metadata["description"]
    return f"| `{entry.name}` | `{name}` | {allowed} | {when} | {description} |"


@pytest.mark.parametrize("name", KINDS)
def test_the_table_in_the_documentation_is_that_of_the_code(name: str) -> None:
    text = (ROOT / "docs" / "ros-interface.md").read_text()
    table = text.split(f"<!-- parameters: {name} -->\n")[1].split("\n\n")[0].splitlines()
    assert table[2:] == [shown(entry) for entry in dataclasses.fields(KINDS[name])]


SECTIONS = [
    (path, name)
    for path in sorted((ROOT / "config").glob("*.yaml"))
    for name in yaml.safe_load(path.read_text())
]


@pytest.mark.parametrize(("path", "name"), SECTIONS, ids=lambda part: Path(part).name)
def test_a_config_file_sets_only_parameters_that_exist_to_values_that_are_allowed(
    path: Path, name: str
) -> None:
    kind = {"/**/policy": NodeParameters, "/**/adapter": AdapterParameters}[name]
    section = yaml.safe_load(path.read_text())[name]["ros__parameters"]
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in section.items()}
    parameters = kind(**values)
    defaults = {entry.name: entry.default for entry in dataclasses.fields(kind)}
    for key, value in values.items():
        assert type(value) is type(defaults[key]), key
        assert value == getattr(parameters, key)


def test_every_parameter_is_described_and_numbers_have_a_range() -> None:
    for entry in FIELDS:
        message = descriptor(entry)
        assert message.description.endswith("."), entry.name
        if entry.name.endswith(("_s", "_count", "_limit", "_hz", "_mb")):
            assert message.floating_point_range or message.integer_range, entry.name


@pytest.mark.parametrize(
    "change", [{"rotation": "quaternion"}, {"threads": -1}, {"max_observation_age_s": 0.0}]
)
def test_a_value_that_is_not_allowed_is_refused_by_name(change: dict) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        NodeParameters(**change)
