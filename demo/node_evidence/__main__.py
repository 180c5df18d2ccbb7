"""``make evidence-node``: measure what is promised of the node, print it, and write it down.

    python -m demo.node_evidence --out evidence/node.json

At most half an hour: what is not measured until then is a fault. Nothing is read from an earlier
run but the checkpoint of ``make demo``; where it is missing or of an older format, one is made. A
part that fails is a fault, and the others go on; so is a promise that the figures do not keep, or
that they are too few to show. With a fault the exit status is 1. With ``--quick`` or ``--only`` it
is not the evidence, and has to be written elsewhere.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from demo.demo_bags import demo_bags
from demo.node_evidence.figures import broken_promises, merged, table_text
from demo.node_evidence.parts import PARTS, Part
from demo.node_evidence.processes import ROOT
from demo.provenance import provenance, write_evidence
from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.errors import CheckpointError

VERSIONS = ("numpy", "torch", "rosbags", "ros-jazzy-rclpy", "ros-jazzy-rmw-fastrtps-cpp")
CHECKPOINT = ROOT / "demo_output" / "policy.qvla.safetensors"
QUICK_SHARE = 0.1
EVIDENCE = ROOT / "evidence" / "node.json"
LIMIT_S = 29 * 60
"""Of all parts together, so that half an hour is kept; each has a limit of its own beside it."""
QUANTIZE_S = 600
GRACE_S = 20


def main() -> int:
    """Command line."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the part under way ends too
    found: dict[str, object] = provenance(VERSIONS)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        figures, faults, seconds = measure(options, Path(name))
    found |= merged(figures) | {"share_of_the_work": QUICK_SHARE if options.quick else 1.0}
    faults += broken_promises(found)
    found |= {
        "seconds": seconds | {"all": round(time.monotonic() - began)},
        "faults_of_the_evidence": faults,
    }
    write_evidence(options.out, found)
    print(table_text(found))
    print(f"\n{options.out}")
    for text in faults:
        print(f"evidence-node: {text}", file=sys.stderr)
    return 1 if faults else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what is promised of the node.")
    parser.add_argument("--out", type=Path, default=EVIDENCE)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="of make demo")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    options = parser.parse_args()
    is_whole = not options.quick and set(options.only) == set(PARTS)
    if not is_whole and options.out.resolve() == EVIDENCE.resolve():
        parser.error(f"{EVIDENCE} is for the whole evidence: name another file with --out")
    return options


def measure(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[str, Mapping[str, object]], list[str], dict[str, int]]:
    """Run the parts: figures by part, faults, and seconds by part."""
    end = time.monotonic() + LIMIT_S
    figures: dict[str, Mapping[str, object]] = {}
    faults: list[str] = []
    seconds: dict[str, int] = {}
    try:
        read_checkpoint(options.checkpoint)
    except CheckpointError as error:
        _say(f"{error}; one is made")
        options.checkpoint = folder / "policy.qvla.safetensors"
        faults += _quantize(options.checkpoint)
    for name in options.only:
        _say(name)
        began = time.monotonic()
        found = run_part(name, options, folder, end - began)
        seconds[name] = round(time.monotonic() - began)
        if isinstance(found, str):
            faults.append(f"{name}: {found}")
        else:
            figures[name] = found
    return figures, faults, seconds


def run_part(
    name: str, options: argparse.Namespace, folder: Path, left_s: float
) -> dict[str, object] | str:
    """The figures of a part, or why there are none; it has to end within ``left_s``."""
    part: Part = PARTS[name]
    if left_s < 1:
        return f"not measured: the others took all of the {LIMIT_S / 60:.0f} minutes"
    out = folder / f"{name}.json"
    command = [
        *(sys.executable, "-m", "demo.node_evidence.parts", name, "--out", str(out)),
        *("--checkpoint", str(options.checkpoint.resolve())),
        *("--share", str(QUICK_SHARE if options.quick else 1.0)),
    ]
    trouble = _run(command, min(part.limit_s, int(left_s)))
    if trouble:
        return trouble
    return json.loads(out.read_text())


def _quantize(out: Path) -> list[str]:
    model = ROOT / "demo_output" / "model"
    bags = [str(path) for path in demo_bags("calibration")]
    for command in (
        [sys.executable, "-m", "demo.assemble", "--out", str(model)],
        [
            "qvla",
            "quantize",
            str(model),
            *bags,
            "--bits",
            "4",
            "--frames",
            "16",
            "--out",
            str(out),
        ],
    ):
        trouble = _run(command, QUANTIZE_S)
        if trouble:
            return [f"checkpoint: {trouble}"]
    return []


def _run(command: list[str], limit_s: int) -> str:
    """Why a command failed, or nothing; with it end all the processes that it started."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end_group(process)
        if status == 0:
            return ""
        log.seek(0)
        tail = log.read().decode(errors="replace").splitlines()[-15:]
    print("\n".join(tail), file=sys.stderr)
    last = tail[-1] if tail else "it said nothing"
    return f"took more than {limit_s} s" if status is None else f"exit status {status}: {last}"


def _end_group(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        time.sleep(0.5)  # children of the part get their chance to end too


def _say(text: str) -> None:
    print(f"evidence-node: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
