# Sourced, from bash or zsh: makes ros2, qvla and python those of the project's environment.
# shellcheck shell=bash
qvla_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
qvla_install="$qvla_root/.cache/colcon/install/qvla_ros"

for qvla_folder in /opt/ros/*/; do
    if [ -f "${qvla_folder}setup.bash" ]; then qvla_system_ros="${qvla_folder%/}"; fi
done
if [ -n "${qvla_system_ros:-}" ]; then
    . "$qvla_system_ros/setup.${ZSH_VERSION:+z}${BASH_VERSION:+ba}sh"
else
    export ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
    export RMW_IMPLEMENTATION="${RMW_IMPLEMENTATION:-rmw_fastrtps_cpp}"
    export ROS_HOME="${ROS_HOME:-$qvla_root/.cache/ros}"
    AMENT_PREFIX_PATH="$qvla_root/.venv"
    LD_LIBRARY_PATH="$qvla_root/.venv/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    PYTHONPATH=""
fi

export VIRTUAL_ENV="$qvla_root/.venv"
export PATH="$VIRTUAL_ENV/bin:$PATH"
export AMENT_PREFIX_PATH="$qvla_install${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
export LD_LIBRARY_PATH="$qvla_install/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The sources come first, so that an edit needs no build; the generated messages are found in the
# second folder through the extend_path line of qvla_ros/__init__.py.
for qvla_folder in "$qvla_install"/lib/python3*/site-packages \
    "$qvla_install"/local/lib/python3*/dist-packages; do
    if [ -d "$qvla_folder" ]; then
        PYTHONPATH="$qvla_folder${PYTHONPATH:+:$PYTHONPATH}"
    fi
done
export PYTHONPATH="$qvla_root${PYTHONPATH:+:$PYTHONPATH}"
unset qvla_root qvla_install qvla_folder qvla_system_ros
