"""The file between the two halves: packed weights, written offline, read on the robot."""
