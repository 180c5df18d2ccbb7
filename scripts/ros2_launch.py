"""``ros2 launch`` where that command is not installed: ``ros2_launch.py FILE [name:=value ...]``."""

import argparse
import sys
from pathlib import Path

from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource


def main(words: list[str]) -> int:
    """Run a launch file until it ends or is interrupted, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("arguments", nargs="*", metavar="name:=value")
    options = parser.parse_args(words)
    pairs = [tuple(word.split(":=", maxsplit=1)) for word in options.arguments]
    if any(len(pair) != 2 for pair in pairs):
        parser.error("arguments are written name:=value")
    source = AnyLaunchDescriptionSource(str(options.file))
    include = IncludeLaunchDescription(source, launch_arguments=pairs)
    # Without a terminal nobody but launch itself passes an interrupt on to the nodes.
    service = LaunchService(argv=words, noninteractive=not sys.stdin.isatty())
    service.include_launch_description(LaunchDescription([include]))
    return service.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
