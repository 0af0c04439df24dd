"""Tables that are made from the code, so that they cannot differ from it."""

import inspect

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import ViewList
from sphinx.util.nodes import nested_parse_with_titles

import skood
from skood.base import BaseDetector

SHARED = {"model", "layer", "false_alarm_rate", "device", "batch_size", "verbose", "random_state"}


def detectors():
    """Return all detectors, by name."""
    found = [getattr(skood, name) for name in skood.__all__]
    return [c for c in found if inspect.isclass(c) and issubclass(c, BaseDetector)]


def paper(detector):
    """Return the first reference of a docstring, on one line."""
    after = inspect.getdoc(detector).split("References\n----------\n")[1]
    return " ".join(after.split("\n\n")[0].split())


class DetectorsDirective(Directive):
    """A table of all detectors: what they do, their own parameters, their paper."""

    def run(self):
        """Return the table."""
        lines = [
            ".. list-table::",
            "   :header-rows: 1",
            "   :widths: 20 35 25 20",
            "",
            "   * - detector",
            "     - score",
            "     - parameters of its own",
            "     - paper",
        ]
        for detector in detectors():
            own = [
                f"``{name}={parameter.default!r}``"
                for name, parameter in inspect.signature(detector).parameters.items()
                if name not in SHARED
            ]
            lines += [
                f"   * - :py:class:`~skood.{detector.__name__}`",
                f"     - {inspect.getdoc(detector).splitlines()[0]}",
                f"     - {', '.join(own)}",
                f"     - {paper(detector)}",
            ]
        section = nodes.section(document=self.state.document)
        nested_parse_with_titles(self.state, ViewList(lines, source=__file__), section)
        return section.children


def setup(app):
    """Add the directives."""
    app.add_directive("detectors", DetectorsDirective)
    return {"parallel_read_safe": True}
