"""The ROS 2 node: the only folder that imports ``rclpy`` and message packages."""
