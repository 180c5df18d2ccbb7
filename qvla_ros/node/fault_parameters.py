"""The fault injector's parameters, each declared once: here."""

from dataclasses import dataclass

from qvla_ros.node.declaration import check_values, parameter

SHARE = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class FaultParameters:
    """Shares are of the messages of each topic; all are set at launch."""

    topics: tuple[str, ...] = parameter(
        (
            "camera/primary/image_raw:sensor_msgs/msg/Image",
            "camera/wrist/image_raw:sensor_msgs/msg/Image",
            "robot/state:sensor_msgs/msg/JointState",
        ),
        "What to spoil, NAME:TYPE; it is sent on as faulty/NAME.",
        read_only=True,
    )
    seed: int = parameter(0, "Of the random choices.", (0, 2**31 - 1), read_only=True)
    drop: float = parameter(0.0, "Share that is lost.", SHARE, read_only=True)
    duplicate: float = parameter(0.0, "Share that is sent twice.", SHARE, read_only=True)
    reorder: float = parameter(
        0.0, "Share that is held back until after the next one.", SHARE, read_only=True
    )
    delay: float = parameter(0.0, "Share that is late by delay_s.", SHARE, read_only=True)
    delay_s: float = parameter(
        0.3, "How late a delayed message is, s.", (0.0, 60.0), read_only=True
    )
    jitter_s: float = parameter(
        0.0, "Every message is late by up to this, evenly, s.", (0.0, 60.0), read_only=True
    )
    pause_every_s: float = parameter(
        0.0, "A pause begins this often, s; 0 is never.", (0.0, 3600.0), read_only=True
    )
    pause_s: float = parameter(
        0.5, "How long nothing comes in a pause, s.", (0.0, 3600.0), read_only=True
    )
    bad_encoding: float = parameter(
        0.0, "Share whose encoding or names are none that are known.", SHARE, read_only=True
    )
    bad_size: float = parameter(0.0, "Share that is cut in the middle.", SHARE, read_only=True)
    not_finite: float = parameter(
        0.0, "Share of the states and poses with a NaN or an infinity.", SHARE, read_only=True
    )
    stamp_jump: float = parameter(
        0.0,
        "Share whose stamp is wrong by stamp_jump_s, before or after; /clock itself stays wrong "
        "until the next jump.",
        SHARE,
        read_only=True,
    )
    stamp_jump_s: float = parameter(
        5.0, "How wrong a stamp is after a jump, s.", (0.0, 3600.0), read_only=True
    )

    def __post_init__(self) -> None:
        check_values(self)
