"""``python -m vmpool.simcloud``."""

import typer

from vmpool.simcloud.command import command

if __name__ == "__main__":
    typer.run(command)
