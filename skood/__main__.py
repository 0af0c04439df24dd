"""``python -m skood``: see ``python -m skood --help``."""

import functools
import os
import sys
import warnings

from skood.commands import main
from skood.commands.arguments import in_shell_words


@functools.cache
def show(text):
    """Print a warning, and do it once."""
    print(f"warning: {text}", file=sys.stderr)


def show_warning(message, *place):
    """Print a warning without the line of code that gave it."""
    show(in_shell_words(str(message)))


def run():
    """Run a command to its exit status, also where it is interrupted or its reader has left."""
    warnings.showwarning = show_warning
    try:
        status = main()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # As of `| head`: Python would complain once more when it closes the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
