"""``qvla``: quantize a vision-language-action model by what its actions are sensitive to."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from qvla_ros.cli import inspect, measure, plan, quantize, replay, rollout, verify
from qvla_ros.errors import QvlaError

VERBS: dict[str, ModuleType] = {
    "inspect": inspect,
    "measure": measure,
    "plan": plan,
    "quantize": quantize,
    "verify": verify,
    "replay": replay,
    "rollout": rollout,
}
USER_ERROR = 2
INTERNAL_ERROR = 70
INTERRUPTED = 130

_EPILOG = """\
The usual way:
  qvla inspect MODEL                                   what is in the folder
  qvla measure MODEL BAG... --out table.safetensors    score every row at every width
  qvla plan table.safetensors --bits 4 --out plan.safetensors
  qvla quantize MODEL --plan plan.safetensors --out policy.qvla.safetensors
  qvla verify policy.qvla.safetensors MODEL BAG...     is it what the model was?

exit codes: 0 good, 1 a threshold was missed, 2 the input must be mended, 70 a fault of qvla itself
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="qvla",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        verb = verbs.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(verb)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(VERBS[arguments.verb].run(arguments))
    except QvlaError as error:
        print(f"qvla {arguments.verb}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"qvla {arguments.verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        print(f"qvla {arguments.verb}: this is a fault of qvla; please report it", file=sys.stderr)
        return INTERNAL_ERROR


if __name__ == "__main__":
    sys.exit(main())
