"""What the system tells of clocks, heat and throttling."""

from pathlib import Path

from qvla_ros.policy.machine_state import MachineState, machine_state


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_the_hottest_zone_and_what_throttles_are_found(tmp_path):
    thermal = "sys__class__thermal__"
    write(
        tmp_path,
        **{
            f"{thermal}thermal_zone0__temp": "41000",
            f"{thermal}thermal_zone1__temp": "77500",
            f"{thermal}thermal_zone2__temp": "not a number",
            f"{thermal}cooling_device0__type": "Processor",
            f"{thermal}cooling_device0__cur_state": "3",
            f"{thermal}cooling_device1__type": "gpu-cooling",
            f"{thermal}cooling_device1__cur_state": "0",
            f"{thermal}cooling_device2__type": "pwm-fan",
            f"{thermal}cooling_device2__cur_state": "2",
            "sys__devices__system__cpu__cpu0__cpufreq__scaling_governor": "schedutil",
            "var__lib__nvpmodel__status": "pmode:0000",
        },
    )
    assert machine_state(tmp_path) == MachineState("schedutil", "pmode:0000", 77.5, ("Processor",))


def test_what_is_not_told_is_left_open(tmp_path):
    assert machine_state(tmp_path) == MachineState(None, None, None, ())
