"""The errors that a user can fix; every message names the offender and says how to mend it."""


class QvlaError(Exception):
    """Base of all errors that are the user's to fix. A broken invariant is a ``ValueError``."""


class CheckpointError(QvlaError):
    """A packed checkpoint is missing, truncated, corrupt, or of a format that is not understood.

    Attributes:
        fault: What is wrong, as a stable word for programs: a member of the closed set
            :class:`qvla_ros.checkpoint.faults.CheckpointFault`, or ``None`` where the error does
            not come from the file format.
    """

    def __init__(self, message: str, *, fault: str | None = None) -> None:
        super().__init__(message)
        self.fault = fault


class UnsupportedModelError(QvlaError):
    """A model folder is not of a supported family, or its files do not match its configuration."""


class BudgetError(QvlaError):
    """A bit budget cannot be met, or it contradicts another one."""


class CalibrationError(QvlaError):
    """Calibration data is missing, unusable, or leaves a part of the model without evidence."""


class ConfigurationError(QvlaError):
    """A parameter, a configuration file or the machine does not allow what was asked for."""
