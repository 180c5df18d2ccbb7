"""Poses from TF, with a stand-in for tf2_ros, which the wheels do not have."""

from types import SimpleNamespace

import pytest
from geometry_msgs.msg import TransformStamped

from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.transform_source import TransformSource


class NoTransformError(Exception):
    """As tf2_ros.TransformException."""


class Buffer:
    def __init__(self, node: object) -> None:
        self.known: TransformStamped | None = None

    def lookup_transform(self, parent: str, child: str, time: object) -> TransformStamped:
        if self.known is None:
            raise NoTransformError(f"{parent} to {child} is not known")
        return self.known


def test_each_transform_is_given_once_and_none_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = SimpleNamespace(unregister=lambda: None)
    stand_in = SimpleNamespace(
        Buffer=Buffer,
        TransformListener=lambda buffer, node: listener,
        TransformException=NoTransformError,
    )
    monkeypatch.setitem(__import__("sys").modules, "tf2_ros", stand_in)
    source = TransformSource(None, "base", "tool")
    assert source.newer_sample() is None
    known = TransformStamped()
    known.header.stamp = ns_to_stamp(5_000_000_007)
    known.transform.translation.y = 0.5
    source._buffer.known = known
    sample = source.newer_sample()
    assert (sample.stamp_ns, sample.message["pose.y"]) == (5_000_000_007, 0.5)
    assert source.newer_sample() is None
    source.close()
