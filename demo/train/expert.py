"""A scripted expert that sees the simulator's state: picks a bowl by its rim, puts it down.

It plans once from the true poses of bowl and destination and then servoes the gripper through a
fixed list of stages, so it also recovers from the noise with which its actions are executed. It
knows bowls only, which is all that the tasks of ``libero_spatial`` move.
"""

from dataclasses import dataclass

import numpy as np

from qvla_ros.evaluate.libero import LiberoTask

TRANSLATION_PER_UNIT = 0.05  # metres that an action of 1 asks for (OSC_POSE)
ROTATION_PER_UNIT = 0.5  # radians that an action of 1 asks for (OSC_POSE)
TRANSLATION_GAIN = 1.5
ROTATION_GAIN = 0.5

APPROACH_HEIGHT = 0.10  # metres above the grasp
GRASP_DEPTH = 0.038  # metres of the finger below the rim
RIM_INSET = 0.0235  # metres from the outer edge of the bowl to the middle of the fingers
CARRY_CLEARANCE = 0.06
RELEASE_CLEARANCE = 0.012
RETREAT_HEIGHT = 0.05
FINGER_STEPS = 7  # control steps until the fingers have closed or opened
STAGE_TIMEOUT = 80  # control steps after which the next stage begins regardless

OPEN, CLOSED = 1.0, 0.0
_ANY = float("inf")


@dataclass(frozen=True, slots=True)
class Stage:
    """One leg of the motion: where to go, with which fingers, and when it is done.

    Attributes:
        target: Where the grip site has to go, metres ``[3]`` in the world.
        gripper: ``OPEN`` or ``CLOSED``.
        across: Horizontal distance to the target below which the stage is done, metres.
        along: Vertical distance to the target below which the stage is done, metres.
        tilt: Angle to the wanted orientation below which the stage is done, radians.
        steps: Control steps that the stage lasts at least.
    """

    target: np.ndarray
    gripper: float
    across: float = _ANY
    along: float = _ANY
    tilt: float = _ANY
    steps: int = 1


class Expert:
    """Answers the clean action for the present state of a task; one instance an episode."""

    def __init__(self, task: LiberoTask) -> None:
        self._simulation = task.simulation
        self._model = self._simulation.sim.model._model
        self._data = self._simulation.sim.data._data
        self._grip_site = self._model.site("gripper0_grip_site").id
        self._orientation = _pointing_down(self._grip_rotation())
        self._stages = self._plan(task.object_to_move, task.place_to_reach)
        self._stage = 0
        self._steps_in_stage = 0

    def act(self) -> np.ndarray:
        """The next action, ``float32 [7]`` in dataset convention."""
        stage = self._stages[self._stage]
        offset = stage.target - self._grip_position()
        turn = _rotation_vector(self._orientation @ self._grip_rotation().T)
        self._advance(stage, offset, turn)
        translation = np.clip(offset / TRANSLATION_PER_UNIT * TRANSLATION_GAIN, -1, 1)
        rotation = np.clip(turn / ROTATION_PER_UNIT, -1, 1) * ROTATION_GAIN
        return np.concatenate([translation, rotation, [stage.gripper]]).astype(np.float32)

    def _advance(self, stage: Stage, offset: np.ndarray, turn: np.ndarray) -> None:
        self._steps_in_stage += 1
        done = (
            np.linalg.norm(offset[:2]) < stage.across
            and abs(offset[2]) < stage.along
            and np.linalg.norm(turn) < stage.tilt
            and self._steps_in_stage >= stage.steps
        ) or self._steps_in_stage > STAGE_TIMEOUT
        if done and self._stage + 1 < len(self._stages):
            self._stage += 1
            self._steps_in_stage = 0

    def _plan(self, moved: str, destination: str) -> list[Stage]:
        if "bowl" not in moved:
            raise ValueError(f"the expert grasps bowls only, not {moved!r}")
        low, high = self._bounds(moved)
        rim = self._towards_near_rim(low, high)
        centre = (low + high) / 2
        pick = np.array([centre[0], centre[1], high[2] - GRASP_DEPTH]) + rim
        grip_over_bottom = pick[2] - low[2]

        low, high = self._bounds(destination)
        centre = (low + high) / 2
        rest = high[2] + grip_over_bottom
        place = np.array([centre[0], centre[1], rest + RELEASE_CLEARANCE]) + rim
        carry_height = max(pick[2], rest) + CARRY_CLEARANCE
        above_pick, above_place = _at_height(pick, carry_height), _at_height(place, carry_height)
        approach = pick + np.array([0, 0, APPROACH_HEIGHT])
        retreat = above_place + np.array([0, 0, RETREAT_HEIGHT])
        return [
            Stage(approach, OPEN, across=0.012, along=0.03, tilt=0.08),
            Stage(pick, OPEN, across=0.007, along=0.007),
            Stage(pick, CLOSED, steps=FINGER_STEPS),
            Stage(above_pick, CLOSED, along=0.02),
            Stage(above_place, CLOSED, across=0.012),
            Stage(place, CLOSED, along=0.012),
            Stage(place, OPEN, steps=FINGER_STEPS),
            Stage(retreat, OPEN),
        ]

    def _towards_near_rim(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """From the bowl's axis to the middle of the fingers, metres ``[3]``, horizontal."""
        left = self._data.xpos[self._model.body("gripper0_leftfinger").id]
        right = self._data.xpos[self._model.body("gripper0_rightfinger").id]
        across_fingers = (left - right)[:2] / np.linalg.norm((left - right)[:2])
        if across_fingers[1] > 0:  # one and the same side of the bowl in all episodes
            across_fingers = -across_fingers
        radius = float(np.mean(high[:2] - low[:2])) / 2
        return np.array([*across_fingers * (radius - RIM_INSET), 0.0])

    def _bounds(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner of the box around all collision shapes of an object, metres."""
        owners = {**self._simulation.fixtures_dict, **self._simulation.objects_dict}
        root = self._model.body_rootid[self._model.body(owners[name].root_body).id]
        corners = [
            self._corners(geom)
            for geom in range(self._model.ngeom)
            if self._model.geom_contype[geom]
            and self._model.body_rootid[self._model.geom_bodyid[geom]] == root
        ]
        points = np.concatenate(corners)
        return points.min(axis=0), points.max(axis=0)

    def _corners(self, geom: int) -> np.ndarray:
        centre, half = np.split(self._model.geom_aabb[geom], 2)
        signs = 2 * np.array(list(np.ndindex(2, 2, 2))) - 1
        rotation = self._data.geom_xmat[geom].reshape(3, 3)
        return (centre + half * signs) @ rotation.T + self._data.geom_xpos[geom]

    def _grip_position(self) -> np.ndarray:
        return self._data.site_xpos[self._grip_site].copy()

    def _grip_rotation(self) -> np.ndarray:
        return self._data.site_xmat[self._grip_site].reshape(3, 3).copy()


def _at_height(point: np.ndarray, height: float) -> np.ndarray:
    return np.array([point[0], point[1], height])


def _pointing_down(rotation: np.ndarray) -> np.ndarray:
    """The nearest orientation whose tool axis points straight down."""
    axis = np.cross(rotation[:, 2], [0, 0, -1])
    sine = float(np.linalg.norm(axis))
    if sine < 1e-6:
        return rotation
    x, y, z = axis / sine
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.arcsin(min(1.0, sine))
    return (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ rotation


def _rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (rad) of a rotation matrix whose angle is well below 180 degrees."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    if angle < 1e-6:
        return np.zeros(3)
    skew = rotation - rotation.T
    return np.array([skew[2, 1], skew[0, 2], skew[1, 0]]) / (2 * np.sin(angle)) * angle
