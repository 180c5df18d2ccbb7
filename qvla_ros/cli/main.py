"""``qvla``: quantize a vision-language-action model by what its actions are sensitive to."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from qvla_ros.cli import (
    bench,
    compare,
    inspect,
    limits,
    measure,
    plan,
    quantize,
    replay,
    report,
    rollout,
    synthesize,
    verify,
)
from qvla_ros.cli.run_config import config_of, parse_over
from qvla_ros.errors import QvlaError

VERBS: dict[str, ModuleType] = {
    "inspect": inspect,
    "measure": measure,
    "plan": plan,
    "quantize": quantize,
    "verify": verify,
    "compare": compare,
    "report": report,
    "replay": replay,
    "limits": limits,
    "bench": bench,
    "rollout": rollout,
    "synthesize": synthesize,
}
USER_ERROR = 2
INTERNAL_ERROR = 70
INTERRUPTED = 130

_EXIT_CODES = """\
exit codes: 0 good, 1 a threshold was not met, 2 the input must be mended, 70 a fault of qvla
itself, 130 interrupted; what qvla says of its work goes to standard error
"""
_EPILOG = f"""\
The usual way:
  qvla inspect MODEL                                   what is in the folder
  qvla quantize MODEL BAG... --bits 4 --heldout BAG... --out policy.qvla.safetensors
  qvla verify policy.qvla.safetensors MODEL BAG...     is it what the model was?

Step by step, to try several budgets on one measurement:
  qvla measure MODEL BAG... --out table.safetensors    score every row at every width
  qvla plan table.safetensors --model MODEL --bits 4 --dry-run
  qvla quantize MODEL BAG... --table table.safetensors --bits 4 --out policy.qvla.safetensors

{_EXIT_CODES}"""


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
        verb = verbs.add_parser(
            name, help=module.HELP, description=module.HELP, epilog=_EXIT_CODES
        )
        module.add_arguments(verb)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words and words[0] in VERBS else ""
    config = config_of(words[1:]) if verb else None
    try:
        if config is None:
            arguments = build_parser().parse_args(words)
        else:
            parser = argparse.ArgumentParser(prog=f"qvla {verb}")
            VERBS[verb].add_arguments(parser)
            arguments = parse_over(config, verb, parser, words[1:])
        code = int(VERBS[verb].run(arguments))
    except QvlaError as error:
        print(f"qvla {verb}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"qvla {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        print(f"qvla {verb}: this is a fault of qvla; please report it", file=sys.stderr)
        return INTERNAL_ERROR
    _log_peak_memory(verb)
    return code


def _log_peak_memory(verb: str) -> None:
    from qvla_ros.policy.memory import process_memory

    peak = process_memory().get("process_peak")
    if peak is not None:
        print(f"qvla {verb}: peak memory {peak / 2**20:,.0f} MiB", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
