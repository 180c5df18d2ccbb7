"""Whether the machine runs as fast as it can: clock policy, power mode, heat, throttling."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MachineState:
    """What the system tells; ``None`` where it does not.

    Attributes:
        governor: Clock policy of the processor, e.g. ``"performance"``.
        power_mode: Power mode of a Jetson, as in ``nvpmodel``.
        hottest_c: Temperature of the hottest thermal zone, degrees Celsius.
        throttled_by: Cooling devices that slow a processor down now.
    """

    governor: str | None
    power_mode: str | None
    hottest_c: float | None
    throttled_by: tuple[str, ...]


def machine_state(root: Path = Path("/")) -> MachineState:
    """The present state.

    Args:
        root: Where ``sys`` and ``var`` are found.
    """
    thermal = root / "sys/class/thermal"
    temperatures = [_number(path) for path in thermal.glob("thermal_zone*/temp")]
    known = [value / 1000 for value in temperatures if value is not None]
    return MachineState(
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        power_mode=_text(root / "var/lib/nvpmodel/status"),
        hottest_c=max(known, default=None),
        throttled_by=tuple(sorted(filter(None, map(_throttle, thermal.glob("cooling_device*"))))),
    )


def _throttle(device: Path) -> str | None:
    kind, state = _text(device / "type"), _number(device / "cur_state")
    slows = kind is not None and any(word in kind.lower() for word in ("cpu", "gpu", "processor"))
    return kind if slows and state else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None
