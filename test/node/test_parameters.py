"""Parameters are declared once; what repeats them elsewhere must agree."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from qvla_ros.errors import ConfigurationError
from qvla_ros.node.parameters import NodeParameters, descriptor

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {entry.name: entry for entry in dataclasses.fields(NodeParameters)}


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


def test_the_table_in_the_documentation_is_that_of_the_code() -> None:
    lines = (ROOT / "docs" / "ros-interface.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `") and " | `" in line]
    documented = [line for line in rows if line.split("`")[1] in FIELDS]
    assert documented == [shown(entry) for entry in FIELDS.values()]


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_a_config_file_sets_only_parameters_that_exist_to_values_that_are_allowed(
    path: Path,
) -> None:
    (node,) = yaml.safe_load(path.read_text()).values()
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in node["ros__parameters"].items()
    }
    parameters = NodeParameters(**values)
    for name, value in values.items():
        assert type(getattr(parameters, name)) is type(FIELDS[name].default), name
        assert value == getattr(parameters, name)


def test_every_parameter_is_described_and_numbers_have_a_range() -> None:
    for entry in FIELDS.values():
        message = descriptor(entry)
        assert message.description.endswith("."), entry.name
        if entry.name.endswith(("_s", "_count", "_limit")):
            assert message.floating_point_range or message.integer_range, entry.name


@pytest.mark.parametrize(
    "change", [{"rotation": "quaternion"}, {"threads": -1}, {"max_observation_age_s": 0.0}]
)
def test_a_value_that_is_not_allowed_is_refused_by_name(change: dict) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        NodeParameters(**change)
