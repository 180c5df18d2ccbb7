"""Online, still without ROS: the policy, its worker thread, its scheduler and its health."""
