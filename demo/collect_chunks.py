"""An independent subscriber: write down every chunk and every diagnosis until interrupted.

python -m demo.collect_chunks --out chunks.jsonl
"""

import argparse
import json
import signal
import threading
import time
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile

from qvla_ros.msg import ActionChunk
from qvla_ros.sensor_messages import stamp_to_ns


class ChunkCollector(Node):
    """Writes one JSON line a message, with the time of its arrival."""

    def __init__(self, topic: str, out: Path) -> None:
        super().__init__("chunk_collector")
        self._out = out.open("w")
        self.create_subscription(ActionChunk, topic, self._on_chunk, QoSProfile(depth=100))
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_chunk(self, message: ActionChunk) -> None:
        self._write(
            kind="hold" if message.hold_reason else "chunk",
            received=time.time_ns(),
            stamp=stamp_to_ns(message.header.stamp),
            valid_until=stamp_to_ns(message.valid_until),
            published=stamp_to_ns(message.publish_stamp),
            seq=message.seq,
            episode=message.episode_id,
            horizon=message.horizon,
            dim=message.dim,
            data=[float(value) for value in message.data],
            stage_ms=dict(zip(message.stage_names, map(float, message.stage_ms), strict=True)),
            hold_reason=message.hold_reason,
            sha256=message.checkpoint_sha256,
        )

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            self._write(
                kind="diagnostics",
                received=time.time_ns(),
                level=int.from_bytes(status.level, "big"),
                message=status.message,
                values=values,
            )

    def _write(self, **fields: object) -> None:
        self._out.write(json.dumps(fields) + "\n")
        self._out.flush()

    def close(self) -> None:
        """Close the file."""
        self._out.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topic", default="/policy/action_chunk")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    collector = ChunkCollector(arguments.topic, arguments.out)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        rclpy.spin_once(collector, timeout_sec=0.1)
    collector.close()
    collector.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
