"""`curv`, and `python -m curvcli`: signals are seen to before anything large is imported."""

import os
import sys

from curvcli.cli import console, distributed, interrupts


def main() -> None:
    """Run the command line and end the process with its exit code."""
    console.fill_closed_streams()
    if distributed.WORKER in os.environ:
        distributed.attach()
    interrupts.current.guard()
    from curvcli.cli.main import run

    console.finish(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
