"""The real policy node with the stand-in policy: ``python -m demo.node_evidence.stand_in_node``."""

import sys

from demo.node_evidence.stand_in_policy import load_stand_in
from qvla_ros.node.main import main

if __name__ == "__main__":
    sys.exit(main(load=load_stand_in))
