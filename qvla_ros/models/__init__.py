"""How a VLA is loaded and spoken to: networks, released folder layouts, pre- and post-processing."""
