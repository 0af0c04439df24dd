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


class FromReport(FromLines):
    """Tables of what a command wrote to a JSON file."""

    required_arguments = 1

    def report(self, name=None):
        """Return what the file holds, and let the page depend on it."""
        path = Path(__file__).parent / (name or self.arguments[0])
        self.state.document.settings.record_dependencies.add(str(path))
        return json.loads(path.read_text())


class Benchmarks(FromReport):
    """Tables of what ``python -m tests.benchmarks --json`` wrote."""

    def lines(self):
        """Return the machine, and a table for each case."""
        report = self.report()
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


class AtImageNet(FromReport):
    """A table of what ``python -m tests.benchmarks --cases imagenet --json`` wrote."""

    def lines(self):
        """Return the table, the fastest detector first."""
        parts = ["score / head", "peak of score", "fit", "peak of fit", "kept"]
        by_detector = {}
        for result in self.report()["results"]:
            name, part = result["name"].split(": ")
            by_detector.setdefault(name, {})[part] = result["value"]
        rows = [
            [linked(name), *(number(figures.get(part)) for part in parts)]
            for name, figures in sorted(by_detector.items(), key=lambda item: item[1][parts[0]])
        ]
        header = [
            "detector",
            "score / head",
            "its peak, MiB",
            "fit, s",
            "its peak, MiB",
            "kept, MiB",
        ]
        return table(header, rows, [38, 14, 14, 14, 14, 14])


def mean(values):
    """Return the mean, or None of nothing."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def three_digits(value):
    """Format a share with three digits, without the 0."""
    return "" if value is None else f"{value:.3f}".removeprefix("0")


def linked(name):
    """Return a link to a detector, perhaps with parameters."""
    cls, _, parameters = name.partition("(")
    link = f":py:class:`~skood.{cls}`"
    return f"{link} ``({parameters}``" if parameters else link


def best_first(values):
    """Return names, the one with the largest value first and those without one last."""
    return sorted(values, key=lambda name: (values[name] is None, -(values[name] or 0)))


def with_interval(figures, metric, kind):
    """Return a figure and its interval."""
    low, high = map(three_digits, figures[f"{metric}_interval"][kind])
    return f"{three_digits(figures[metric][kind])} ({low}–{high})"


def task_means(report):
    """Return the mean AUROC over OOD sets, by detector and task; None without."""
    tasks = list(dict.fromkeys(task for of_one in report.values() for task in of_one))
    return {
        name: {t: mean(list(of_one.get(t, {}).get("auroc", {}).values())) for t in tasks}
        for name, of_one in report.items()
    }


class Evidence(FromReport):
    """Tables of what ``python -m tests.evidence --json`` wrote: an overview, and one a task."""

    def lines(self):
        """Return the tables, the best detector first."""
        report = self.report()
        means = task_means(report)
        tasks = list(next(iter(means.values())))
        # Of one task with three numbers of rows one counts, and of one with two networks.
        others = {"compressed_1k", "compressed_50k", "resnet18"}
        counted = [task for task in tasks if task not in others]
        overall, errors = {}, {}
        for name, of_one in means.items():
            values = [of_one[task] for task in counted]
            overall[name] = None if None in values else mean(values)
            squares = [report[name][t].get("error_of_mean_auroc", 0) ** 2 for t in counted]
            errors[name] = 1.96 * sum(squares) ** 0.5 / len(counted)
        rows = []
        for name in best_first(overall):
            known = overall[name] is not None
            whole = f"{three_digits(overall[name])} ± {three_digits(errors[name])}" if known else ""
            cells = [three_digits(means[name][task]) for task in counted]
            rows.append([linked(name), whole, *cells])
        lines = table(["detector", "mean", *counted], rows, [28, 14, *[10] * len(counted)])
        sizes = ["compressed_1k", "compressed", "compressed_50k"]
        rows = [
            [linked(n), *(three_digits(means[n].get(t)) for t in sizes)]
            for n in best_first(overall)
        ]
        lines += ["**compressed, by the number of rows of fit** (AUROC)", ""]
        lines += table(["detector", "1,000", "10,000", "50,000"], rows, [30, 14, 14, 14])
        for task in tasks:
            of_task = {name: of_one[task] for name, of_one in report.items() if task in of_one}
            measured = {name: r for name, r in of_task.items() if "auroc" in r}
            kinds = list(next(iter(measured.values()))["auroc"])
            rows = []
            for name in best_first({name: means[name][task] for name in measured}):
                figures = measured[name]
                cells = [
                    f"{with_interval(figures, 'auroc', kind)} / "
                    f"{with_interval(figures, 'fpr95', kind)}"
                    for kind in kinds
                ]
                seconds = [f"{figures[f'{part}_seconds']:.2g}" for part in ("fit", "score")]
                rows.append([linked(name), *cells, f"{figures['false_alarms']:.1%}", *seconds])
            header = ["detector", *kinds, "false alarms", "fit, s", "score, s"]
            lines += [f"**{task}** (AUROC / FPR95, 95 % intervals)", ""]
            lines += table(header, rows, [24, *[22] * len(kinds), 10, 8, 8])
        return lines


class Published(FromReport):
    """Figures of OpenOOD's leaderboard beside those of ``python -m tests.evidence``."""

    def lines(self):
        """Return the table, the best far OOD figure first."""
        means = task_means(self.report("evidence.json"))
        rows = []
        for row in sorted(self.report(), key=lambda row: -row["far"]):
            own = means.get(row["detector"], {})
            cells = [three_digits(row[kind] / 100) for kind in ("near", "far")]
            cells += [three_digits(own.get(task)) for task in ("resnet18", "images", "features")]
            rows.append([row["name"], linked(row["detector"]), *cells])
        header = [
            "OpenOOD",
            "here",
            "near, theirs",
            "far, theirs",
            "resnet18, here",
            "images, here",
            "features, here",
        ]
        return table(header, rows, [12, 38, 12, 12, 14, 12, 12])


class Settings(FromReport):
    """What ``python -m tests.settings --json`` wrote: of each class the default and the best."""

    def lines(self):
        """Return the table."""
        rows = []
        for name, of_class in self.report().items():
            means = {}
            for setting, of_tasks in of_class.items():
                alike = mean([v for t, v in of_tasks.items() if t.startswith("compressed")])
                others = [v for t, v in of_tasks.items() if not t.startswith("compressed")]
                means[setting] = mean([alike, *others])
            best = best_first(means)[:3]
            cells = [f"{setting} {three_digits(means[setting])}" for setting in best]
            rows.append([linked(name), three_digits(means["default"]), *cells])
        return table(["detector", "default", "best", "second", "third"], rows, [24, 8, 24, 24, 24])


class Situations(FromReport):
    """A table of what ``python -m tests.situations --json`` wrote: detectors by situations."""

    def lines(self):
        """Return the table."""
        report = self.report()
        rows = [
            [f"``{name}``", *(three_digits(of_one[name]) for of_one in report.values())]
            for name in next(iter(report.values()))
        ]
        return table(["detector", *report], rows, [30, *[10] * len(report)])


def setup(app):
    """Add the directives."""
    app.add_directive("situations", Situations)
    app.add_directive("evidence", Evidence)
    app.add_directive("published", Published)
    app.add_directive("settings", Settings)
    app.add_directive("detectors", Detectors)
    app.add_directive("benchmarks", Benchmarks)
    app.add_directive("at-imagenet", AtImageNet)
    return {"parallel_read_safe": True}
