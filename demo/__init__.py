"""The demo: a small trained VLA, its bags, and one command that runs everything."""
