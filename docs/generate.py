"""Tables that are made from the code, so that they cannot differ from it."""

import inspect
import json
from itertools import groupby
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import ViewList
from sphinx.util.nodes import nested_parse_with_titles

import skood
from skood.base import BaseDetector

SHARED = {"model", "layer", "false_alarm_rate", "device", "batch_size", "verbose", "random_state"}


EXAMPLES = [
    "first_detector",
    "embeddings_and_labels",
    "pipeline_and_search",
    "named_layers",
    "comparing_detectors",
    "conformal_threshold",
    "open_set",
    "tuning_without_ood",
    "skorch_end_to_end",
    "score_maps",
    "text_classification",
]


class ExampleOrder:
    """The order of the gallery: first things first, what is not listed last."""

    def __init__(self, folder):
        pass

    def __call__(self, filename):
        """Return the place of an example."""
        name = Path(filename).stem
        return (EXAMPLES.index(name) if name in EXAMPLES else len(EXAMPLES)), name


def detectors():
    """Return all detectors, by name."""
    found = [getattr(skood, name) for name in skood.__all__]
    return [c for c in found if inspect.isclass(c) and issubclass(c, BaseDetector)]


def paper(detector):
    """Return the first reference of a docstring, on one line."""
    after = inspect.getdoc(detector).split("References\n----------\n")[1]
    return " ".join(after.split("\n\n")[0].split())


def table(header, rows, widths):
    """Return the lines of a list-table."""
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        f"   :widths: {' '.join(map(str, widths))}",
        "",
    ]
    for row in [header, *rows]:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return [*lines, ""]


def number(value):
    """Format with three digits."""
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


class FromLines(Directive):
    """A directive whose content is computed as lines of reStructuredText."""

    def run(self):
        """Return the nodes."""
        section = nodes.section(document=self.state.document)
        lines = ViewList(self.lines(), source=__file__)
        nested_parse_with_titles(self.state, lines, section)
        return section.children


class Detectors(FromLines):
    """A table of all detectors: what they do, their own parameters, their paper."""

    def lines(self):
        """Return the table."""
        rows = []
        for detector in detectors():
            own = [
                f"``{name}={parameter.default!r}``"
                for name, parameter in inspect.signature(detector).parameters.items()
                if name not in SHARED
            ]
            name = f":py:class:`~skood.{detector.__name__}`"
            rows.append(
                [name, inspect.getdoc(detector).splitlines()[0], ", ".join(own), paper(detector)]
            )
        header = ["detector", "score", "parameters of its own", "paper"]
        return table(header, rows, [20, 35, 25, 20])


class Benchmarks(FromLines):
    """Tables of what ``python -m tests.benchmarks --json`` wrote."""

    required_arguments = 1

    def lines(self):
        """Return the machine, and a table for each case."""
        path = Path(__file__).parent / self.arguments[0]
        self.state.document.settings.record_dependencies.add(str(path))
        report = json.loads(path.read_text())
        about = {**report["machine"], **report["versions"]}
        lines = ["Measured on: " + ", ".join(f"{k} {v}" for k, v in about.items()) + ".", ""]
        for title, results in groupby(report["results"], lambda result: result["title"]):
            lines += [f"**{title}**", ""]
            rows = []
            for r in results:
                between = "" if r["q1"] == r["q3"] else f"{number(r['q1'])} – {number(r['q3'])}"
                target = "" if r["target"] is None else f"≤ {number(r['target'])}"
                if r.get("reached") is False:
                    target += ", missed"
                wall = number(r["wall"]["value"]) if "wall" in r else ""
                rows.append([r["name"], f"{number(r['value'])} {r['unit']}", between, target, wall])
            header = ["", "median", "quartiles", "target", "wall time, 2 threads"]
            lines += table(header, rows, [40, 14, 18, 16, 12])
        return lines


def mean(values):
    """Return the mean, or None of nothing."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def three_digits(value):
    """Format a share with three digits, without the 0."""
    return "" if value is None else f"{value:.3f}".removeprefix("0")


class Evidence(FromLines):
    """Tables of what ``python -m tests.evidence --json`` wrote: an overview, and one a task."""

    required_arguments = 1

    def lines(self):
        """Return the tables, the best detector first."""
        path = Path(__file__).parent / self.arguments[0]
        self.state.document.settings.record_dependencies.add(str(path))
        report = json.loads(path.read_text())
        tasks = list(dict.fromkeys(task for of_one in report.values() for task in of_one))
        means = {
            name: {t: mean(list(of_one[t].get("auroc", {}).values())) for t in tasks}
            for name, of_one in report.items()
        }
        overall = {
            name: None if None in of_one.values() else mean(list(of_one.values()))
            for name, of_one in means.items()
        }

        def best_first(values):
            return sorted(values, key=lambda name: (values[name] is None, -(values[name] or 0)))

        def linked(name):
            return f":py:class:`~skood.{name}`"

        rows = [
            [linked(name), three_digits(overall[name])]
            + [three_digits(means[name][task]) for task in tasks]
            for name in best_first(overall)
        ]
        lines = table(["detector", "mean", *tasks], rows, [30, 10, *[12] * len(tasks)])
        for task in tasks:
            of_task = {name: of_one[task] for name, of_one in report.items()}
            measured = {name: r for name, r in of_task.items() if "auroc" in r}
            kinds = list(next(iter(measured.values()))["auroc"])
            rows = []
            for name in best_first({name: means[name][task] for name in measured}):
                figures = measured[name]
                cells = [
                    f"{three_digits(figures['auroc'][kind])} / "
                    f"{three_digits(figures['fpr95'][kind])}"
                    for kind in kinds
                ]
                rows.append([linked(name), *cells, f"{figures['false_alarms']:.1%}"])
            header = ["detector", *kinds, "false alarms"]
            lines += [f"**{task}** (AUROC / FPR95)", ""]
            lines += table(header, rows, [30, *[14] * len(kinds), 12])
        return lines


class Situations(FromLines):
    """A table of what ``python -m tests.situations --json`` wrote: detectors by situations."""

    required_arguments = 1

    def lines(self):
        """Return the table."""
        path = Path(__file__).parent / self.arguments[0]
        self.state.document.settings.record_dependencies.add(str(path))
        report = json.loads(path.read_text())
        rows = [
            [f"``{name}``", *(three_digits(of_one[name]) for of_one in report.values())]
            for name in next(iter(report.values()))
        ]
        return table(["detector", *report], rows, [30, *[10] * len(report)])


def setup(app):
    """Add the directives."""
    app.add_directive("situations", Situations)
    app.add_directive("evidence", Evidence)
    app.add_directive("detectors", Detectors)
    app.add_directive("benchmarks", Benchmarks)
    return {"parallel_read_safe": True}
