"""What a verb found out, printed for people or for programs."""

import json
from collections.abc import Mapping


def print_facts(facts: Mapping[str, object], as_json: bool) -> None:
    """Print to standard output: aligned lines, or one JSON object."""
    print(
        json.dumps(facts, indent=2, allow_nan=False) if as_json else "\n".join(_lines(facts, ""))
    )


def _lines(facts: Mapping[str, object], indent: str) -> list[str]:
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<26} {_text(value)}")
    return lines


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None or value == {} else str(value)
