"""The command line: ``python -m skood`` and its commands, one a file."""

import argparse
import sys

import skood
from skood.commands.arguments import Failure, Parser, device, in_shell_words, output, seed
from skood.commands.digits import run_digits
from skood.commands.evaluate import add_evaluate
from skood.commands.fit import add_fit
from skood.commands.score import add_score


def make_parser():
    """Make the parser of the command line."""
    parser = Parser(
        prog="python -m skood",
        description="Train a small network on digits and compare nine detectors on it, in less "
        "than a minute and without any download.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"skood {skood.__version__}")
    parser.add_argument("--seed", type=seed, default=0, help="of the network and the detectors")
    parser.add_argument("--device", type=device, default="cpu", help="such as cpu, cuda or cuda:1")
    parser.add_argument(
        "--output",
        type=output,
        default="skood-demo.png",
        metavar="PNG",
        help="where to draw score histograms and ROC curves",
    )
    parser.set_defaults(run=run_digits)
    commands = parser.add_subparsers(title="commands", metavar="", parser_class=Parser)
    for add in (add_fit, add_score, add_evaluate):
        add(commands)
    return parser


def main(arguments=None):
    """Run a command and return its exit status.

    0: done. 2: the arguments, or the files they name, were refused, and nothing was written. 1: it
    failed on the way.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(parser, options)
    except Failure as failure:
        print(f"{parser.prog}: {in_shell_words(str(failure))}", file=sys.stderr)
        return 1
