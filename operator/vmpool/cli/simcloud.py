"""``vmpool simcloud``: run the simulated cloud."""

from vmpool.simcloud.command import command

__all__ = ["command"]
