"""``qvla synthesize``: a model folder with random weights, in the layout of the released ones."""

import argparse
from pathlib import Path

from qvla_ros.cli.facts import print_facts
from qvla_ros.cli.progress import Progress

HELP = "write a model folder with random weights: a dry run for any machine, no download"
_SIZES = {
    "--llama-layers": "num_hidden_layers",
    "--llama-width": "hidden_size",
    "--llama-hidden": "intermediate_size",
    "--llama-heads": "num_attention_heads",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder, which must not exist")
    parser.add_argument("--family", choices=("openvla_oft", "openvla"), default="openvla_oft")
    parser.add_argument(
        "--scale",
        choices=("tiny", "small", "wide", "7b"),
        default="tiny",
        help="7b is full size, 15 GB; wide has its widths and towers, but 2 Llama layers",
    )
    for option, key in _SIZES.items():
        parser.add_argument(option, type=int, dest=key, metavar="N", help=f"instead: {key}")
    parser.add_argument("--robot", default="libero", help="libero (default), aloha or bridge")
    parser.add_argument(
        "--unnorm-key",
        action="append",
        metavar="NAME",
        help="name of a data set in the statistics; may be repeated (default: synthetic)",
    )
    parser.add_argument("--shards", type=int, default=4, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and print what it is."""
    from qvla_ros.models.robot_constants import robot_constants, single_step
    from qvla_ros.models.synthetic_folder import write_synthetic_folder
    from qvla_ros.models.synthetic_model import SCALES, SyntheticModel, count_numbers

    towers, llama = SCALES[arguments.scale]
    asked = {key: getattr(arguments, key) for key in _SIZES.values()}
    robot = robot_constants(arguments.robot)
    model = SyntheticModel(
        family=arguments.family,
        robot=robot if arguments.family == "openvla_oft" else single_step(robot),
        towers=towers,
        llama={**llama, **{key: value for key, value in asked.items() if value is not None}},
        unnorm_keys=tuple(arguments.unnorm_key or ("synthetic",)),
        shards=arguments.shards,
        seed=arguments.seed,
    )
    total_mb = round(model.file_bytes / 1e6)
    with Progress(total_mb, "MB written") as progress:
        write_synthetic_folder(
            arguments.out, model, lambda done, _: progress.set(round(done / 1e6), total_mb)
        )
    print_facts(
        {
            "folder": str(arguments.out),
            "family": model.family,
            "parameters": count_numbers(model.shapes),
            "bytes": model.file_bytes,
            "statistics": list(model.unnorm_keys),
        },
        arguments.json,
    )
    return 0
