"""Action-aware mixed-bit quantization of vision-language-action models, and a ROS 2 node to run them.

The ``extend_path`` line lets code that is imported from the source tree find the message classes
(``qvla_ros.msg``) that the ROS build generates into another folder of the same package name.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
