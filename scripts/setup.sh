#!/usr/bin/env bash
# Makes the project's environment in .venv; a second call takes less than a second.
# All the work is in setup_environment.py; this front only picks a Python that has ROS 2 Jazzy wheels.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null
}

system_ros=""
for folder in /opt/ros/*/; do
    [ -f "${folder}setup.bash" ] && system_ros="${folder%/}"
done

if [ -n "$system_ros" ]; then
    # The distribution's rclpy is compiled for the distribution's own Python.
    exec /usr/bin/python3 "$here/setup_environment.py" --system-ros "$system_ros" "$@"
fi
for name in ${QVLA_PYTHON:-} python3.11 python3.12 python3; do
    if usable "$name"; then
        exec "$name" "$here/setup_environment.py" "$@"
    fi
done
echo "setup: wrong Python: Python 3.11 or 3.12 is needed to build ROS 2 from wheels, but none of" >&2
echo "setup: python3.11, python3.12 and python3 is one. Install Python 3.11 (with its headers), or" >&2
echo "setup: set QVLA_PYTHON to the interpreter to use." >&2
exit 3
