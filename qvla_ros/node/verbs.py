"""What an operator can tell the policy node to do, one ``std_srvs/Trigger`` a verb."""

from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import TransitionCallbackReturn
from std_srvs.srv import Trigger

from qvla_ros.errors import ConfigurationError

RCLError = rclpy_implementation.RCLError
"""What a transition raises that the present state does not have."""


class OperatorVerbs:
    """The services ``~/start``, ``~/pause``, ``~/resume``, ``~/stop`` and ``~/reset``.

    They exist from the node's first moment on, so that a button panel can be laid out once.

    Args:
        node: The ``PolicyNode``.
    """

    def __init__(self, node: Any) -> None:
        self._node = node
        verbs: dict[str, Callable[[], str]] = {
            "start": self._start,
            "pause": self._pause,
            "resume": self._resume,
            "stop": self._stop,
            "reset": self._reset,
        }
        for name, act in verbs.items():
            node.create_service(Trigger, f"~/{name}", partial(_answer, act))

    def _start(self) -> str:
        node = self._node
        if not node.configured:
            _require(node.trigger_configure, "configure")
        if node.active:
            node.resume()
            return "active"
        _require(node.trigger_activate, "activate")
        return "active"

    def _stop(self) -> str:
        if not self._node.active:
            return "not active"
        _require(self._node.trigger_deactivate, "deactivate")
        return "stopped with a hold"

    def _pause(self) -> str:
        self._node.pause()
        return "paused with a hold"

    def _resume(self) -> str:
        self._node.resume()
        return "a new episode begins"

    def _reset(self) -> str:
        self._node.reset()
        return "the fault is forgotten"


def _require(trigger: Callable[[], TransitionCallbackReturn], transition: str) -> None:
    try:
        result = trigger()
    except RCLError as error:  # e.g. of a finalized node, which nothing leads out of
        raise ConfigurationError(f"{transition} is not possible now: {error}") from error
    if result is not TransitionCallbackReturn.SUCCESS:
        raise ConfigurationError(f"{transition} failed; see /diagnostics and the log")


def _answer(
    act: Callable[[], str], request: Trigger.Request, response: Trigger.Response
) -> Trigger.Response:
    try:
        response.message = act()
        response.success = True
    except ConfigurationError as error:
        response.message = str(error)
    return response
