"""Arguments of the commands: parsed, and told in one line where they are wrong."""

import argparse
import textwrap
from pathlib import Path

import torch


class Failure(Exception):
    """What went wrong on the way, after arguments and files were found right."""


def in_shell_words(text):
    """Return a message on one line, which calls a parameter of Python as the commands do."""
    # A network of a file is a GraphModule.
    words = {"as `model`": "by --network FILE.pt2", "`model`": "--network"}
    words |= {"a GraphModule": "one network", "GraphModule": "the network"}
    for python, shell in words.items():
        text = text.replace(python, shell)
    return " ".join(text.split())


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors take one line."""

    def error(self, message):
        """Print the message and exit with 2."""
        self.exit(2, f"{self.prog}: error: {in_shell_words(message)}\n")


def seed(text):
    """Parse --seed."""
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 2**32 - 1")
    return int(text)


def device(text):
    """Parse --device, and use it once."""
    try:
        torch.ones(1, device=text).sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = textwrap.shorten(str(error), 100, placeholder=" ...")
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {reason}") from error
    return text


def output(text, suffixes=(".png",)):
    """Parse --output, and open the file once."""
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(suffixes)}")
    # Of a link what it leads to, there or not.
    target = path.resolve()
    existed = target.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from error
    if not existed:
        target.unlink()
    return path


def named(text, kind="FILE, such as textures=t.npz"):
    """Return the parts of NAME=FILE, or of NAME with something else."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME={kind}")
    return name, value
