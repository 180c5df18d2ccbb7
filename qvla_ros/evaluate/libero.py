"""One task of the LIBERO simulation benchmark, seen through the words of this project.

LIBERO is an optional extra (``pip install qvla_ros[libero]``): it and MuJoCo are imported by the
constructor, not by this module. Rendering in software is the bottleneck of a roll-out, so the
scene is drawn without shadows, reflections and anti-aliasing, and only when ``observe`` is
called. Training data, bags and closed loop all use this renderer.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import os
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.image_codec import through_jpeg
from qvla_ros.observation import Observation

CONTROL_PERIOD_NS = 50_000_000
CAMERAS = {"primary": "agentview", "wrist": "robot0_eye_in_hand"}
STATE_NAMES = (
    "eef_x", "eef_y", "eef_z", "eef_rx", "eef_ry", "eef_rz", "gripper_left", "gripper_right",
)  # fmt: skip
ACTION_NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
SETTLING_STEPS = 10

_STAND_STILL_OPEN = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
_RESET_ATTEMPTS = 100
_INSTALL = (
    "install the simulation with pip install 'qvla_ros[libero]' and the system packages "
    "libegl1 and libgl1-mesa-dri"
)


class LiberoTask:
    """A simulated robot in front of one task.

    Args:
        suite: Name of the suite, e.g. ``"libero_spatial"``.
        task_index: Position of the task in the suite's default order.
        image_size: Height and width of both camera images, pixels.
        randomized_start: Whether ``reset_randomly`` disturbs the arm's start pose, as the official
            initial states do. Needed when demonstrations are collected.

    Raises:
        ConfigurationError: LIBERO is not installed, or there is no such suite or task.
    """

    def __init__(
        self,
        suite: str,
        task_index: int,
        image_size: int = 128,
        randomized_start: bool = False,
    ) -> None:
        self._libero = _import_libero()
        self._image_size = image_size
        self._suite = _open_suite(self._libero, suite)
        if not 0 <= task_index < self._suite.n_tasks:
            raise ConfigurationError(
                f"suite {suite!r} has tasks 0 to {self._suite.n_tasks - 1}, not {task_index}"
            )
        self._task_index = task_index
        self._randomized_start = randomized_start
        self._environment = self._libero.ControlEnv(
            bddl_file_name=self._suite.get_task_bddl_file_path(task_index),
            initialization_noise="default" if randomized_start else None,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            hard_reset=True,  # a soft reset leaves objects in wrong places on their fixtures
            ignore_done=True,
        )
        self._initial_states: np.ndarray | None = None
        self._renderer: _PlainRenderer | None = None
        self._after_reset: np.ndarray | None = None  # physics behind the hard reset with seed 0
        self._state = np.zeros(len(STATE_NAMES), np.float32)

    @property
    def instruction(self) -> str:
        """What the robot is asked to do."""
        return str(self._suite.get_task(self._task_index).language)

    @property
    def success(self) -> bool:
        """Whether the goal of the task is reached at this instant."""
        return bool(self._environment.check_success())

    @property
    def state(self) -> np.ndarray:
        """Proprioception now, ``float32 [8]`` in the order of ``STATE_NAMES`` (m, rad, m)."""
        return self._state.copy()

    @property
    def simulation(self) -> Any:
        """The robosuite environment, for privileged experts only."""
        return self._environment.env

    @property
    def object_to_move(self) -> str:
        """Name of the object that the task is about."""
        return self._environment.obj_of_interest[0]

    @property
    def place_to_reach(self) -> str:
        """Name of the object or fixture on which the object has to end."""
        return self._environment.obj_of_interest[1]

    def initial_state_count(self) -> int:
        """Number of official initial states."""
        return len(self._official_initial_states())

    def reset_to_initial_state(self, index: int) -> None:
        """Put the scene into an official initial state and let it settle.

        The fixtures' places come from the random numbers of a hard reset and not from the stored
        state, therefore each episode starts from the hard reset with the same seed: its course
        does not depend on the episodes before it. That reset takes a second, so it is done once;
        afterwards robot and controller are reset and the physics is put back, bit for bit.

        Raises:
            ConfigurationError: There is no such state.
            ValueError: The start is randomized, which this reset would undo at the second time.
        """
        if self._randomized_start:
            raise ValueError("official initial states need a task whose start is not randomized")
        states = self._official_initial_states()
        if not 0 <= index < len(states):
            raise ConfigurationError(
                f"the task has initial states 0 to {len(states) - 1}, not {index}"
            )
        self._reset_as_with_seed_0()
        self._remember(self._environment.set_init_state(states[index]))
        self._settle()

    def reset_randomly(self, seed: int) -> None:
        """Put the scene into a fresh random state, reproducible by ``seed``, and let it settle."""
        self._remember(self._hard_reset(seed))
        self._settle()

    def step(self, action: np.ndarray) -> None:
        """Execute one action, ``[7]`` in dataset convention (gripper 1 opens, 0 closes)."""
        with _positions_computed_once(self._libero.mujoco, self.simulation.sim):
            self._remember(self._environment.step(to_environment_convention(action))[0])

    def render(self) -> dict[str, np.ndarray]:
        """Both cameras now, ``uint8 [image_size, image_size, 3]`` RGB, before any JPEG."""
        if self._renderer is None:
            self._renderer = _PlainRenderer(self._libero.mujoco, self.simulation, self._image_size)
        return {name: self._renderer.draw(camera) for name, camera in CAMERAS.items()}

    def observe(self, stamp_ns: int) -> Observation:
        """What a robot would sense now; images have passed through JPEG like in a recording."""
        images = {name: through_jpeg(image) for name, image in self.render().items()}
        return Observation(stamp_ns, images, self.state, self.instruction)

    def close(self) -> None:
        """Free the renderer and the simulation."""
        self._drop_renderer()
        self._environment.close()

    def _reset_as_with_seed_0(self) -> None:
        mujoco, simulation = self._libero.mujoco, self.simulation
        what = mujoco.mjtState.mjSTATE_INTEGRATION
        if self._after_reset is None:
            self._hard_reset(seed=0)
            model, data = simulation.sim.model._model, simulation.sim.data._data
            self._after_reset = np.empty(mujoco.mj_stateSize(model, what))
            mujoco.mj_getState(model, data, self._after_reset, what)
            return
        simulation.deterministic_reset = True  # neither a new model nor new places
        try:
            simulation.reset()
        finally:
            simulation.deterministic_reset = False
        for robot in simulation.robots:  # such a reset leaves out what the gripper last did
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        model, data = simulation.sim.model._model, simulation.sim.data._data
        mujoco.mj_setState(model, data, self._after_reset, what)

    def _hard_reset(self, seed: int) -> Mapping[str, np.ndarray]:
        self._drop_renderer()  # it draws the model that the reset is going to replace
        self._after_reset = None
        self._environment.seed(seed)
        for _ in range(_RESET_ATTEMPTS):
            # ControlEnv.reset would swallow every exception, KeyboardInterrupt included.
            with contextlib.suppress(self._libero.RandomizationError):
                return self.simulation.reset()
        raise ConfigurationError(
            f"no free placement of the objects was found in {_RESET_ATTEMPTS} attempts "
            f"with seed {seed}; use another seed"
        )

    def _settle(self) -> None:
        for _ in range(SETTLING_STEPS):
            self.step(_STAND_STILL_OPEN)

    def _remember(self, sensors: Mapping[str, np.ndarray]) -> None:
        axis_angle = self._libero.quat2axisangle(sensors["robot0_eef_quat"].copy())
        self._state = np.concatenate(
            [sensors["robot0_eef_pos"], axis_angle, sensors["robot0_gripper_qpos"]]
        ).astype(np.float32)

    def _official_initial_states(self) -> np.ndarray:
        if self._initial_states is None:
            self._initial_states = np.asarray(self._suite.get_task_init_states(self._task_index))
        return self._initial_states

    def _drop_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def to_environment_convention(action: np.ndarray) -> np.ndarray:
    """Turn dataset convention (gripper 1 open, 0 closed) into LIBERO's (-1 open, +1 closed)."""
    command = np.clip(np.asarray(action, np.float64), -1, 1)
    command[6] = -1.0 if action[6] > 0.5 else 1.0
    return command


def actions_digest(actions: np.ndarray) -> str:
    """SHA-256 of executed actions ``[steps, 7]``, as the simulator takes them, in float32."""
    commands = np.array([to_environment_convention(action) for action in actions], "<f4")
    return hashlib.sha256(commands.tobytes()).hexdigest()


def mujoco_version() -> str:
    """Version of MuJoCo, to be stated with every result: success rates depend on it.

    Raises:
        ConfigurationError: MuJoCo is not installed.
    """
    try:
        return importlib.metadata.version("mujoco")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigurationError(f"MuJoCo is not installed; {_INSTALL}") from error


@contextlib.contextmanager
def _positions_computed_once(mujoco: ModuleType, sim: Any) -> Iterator[None]:
    """Within a control step, compute what follows from positions and velocities once a substep.

    robosuite computes the same dynamics three times in each substep: before the controller, in the
    controller, and in ``mj_step``. Positions and velocities change only in the last, so the first
    result of their stages is kept and only the stages of the forces (whose solver starts from
    its last solution) run again: the result is the same, bit for bit, in a seventh less time.
    """
    model, data = sim.model._model, sim.data._data
    known = False

    def forward() -> None:
        nonlocal known
        if known:
            mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, 0)
        else:
            mujoco.mj_forward(model, data)
        known = True

    def step(with_udd: bool = True) -> None:
        nonlocal known
        (mujoco.mj_step2 if known else mujoco.mj_step)(model, data)
        known = False

    sim.forward, sim.step = forward, step
    try:
        yield
    finally:
        del sim.forward, sim.step


class _PlainRenderer:
    """MuJoCo's renderer without shadows, reflections, anti-aliasing and collision shapes."""

    def __init__(self, mujoco: ModuleType, simulation: Any, size: int) -> None:
        model = simulation.sim.model._model
        self._data = simulation.sim.data._data
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._renderer = mujoco.Renderer(model, height=size, width=size)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes

    def draw(self, camera: str) -> np.ndarray:
        """Render ``uint8 [size, size, 3]`` RGB, upright."""
        self._renderer.update_scene(self._data, camera=camera, scene_option=self._options)
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


class _Libero:
    """The few names that are needed of LIBERO, robosuite and MuJoCo."""

    def __init__(self) -> None:
        import mujoco
        from libero.libero import benchmark
        from libero.libero.envs.env_wrapper import ControlEnv
        from robosuite.utils.errors import RandomizationError
        from robosuite.utils.transform_utils import quat2axisangle

        self.mujoco = mujoco
        self.benchmark = benchmark
        self.ControlEnv = ControlEnv
        self.RandomizationError = RandomizationError
        self.quat2axisangle = quat2axisangle


def _import_libero() -> _Libero:
    os.environ.setdefault("MUJOCO_GL", "egl")  # has to be known before the first import
    os.environ.setdefault("LP_NUM_THREADS", "1")  # one rendering thread a worker process
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # robosuite misses a file of its developers
    try:
        return _Libero()
    except ImportError as error:
        raise ConfigurationError(
            f"the LIBERO simulation cannot be imported ({error}); {_INSTALL}"
        ) from error
    finally:
        logging.disable(silenced)


def _open_suite(libero: _Libero, name: str) -> Any:
    suites = libero.benchmark.get_benchmark_dict()
    if name not in suites:
        raise ConfigurationError(f"LIBERO has no suite {name!r}; known are {sorted(suites)}")
    with contextlib.redirect_stdout(io.StringIO()):  # it announces the order of its tasks
        return suites[name]()
