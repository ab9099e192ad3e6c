"""Ask the servers that batches share on this node to leave, and wait until the device is free."""

import click

from distill.errors import explained
from distill.serving.shared import leave_servers


@click.command(help=__doc__)
def main() -> None:
    with explained():
        leave_servers()


if __name__ == "__main__":
    main()
