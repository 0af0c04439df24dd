"""Time skood against plain forward passes, matrix products and other libraries.

``python -m tests.benchmarks`` in the project's folder runs all cases in about ten minutes, with
``--quick`` smaller ones. On a CPU a ratio is of processor time on one thread, the median of pairs
that alternate, with quartiles; beside it the ratio of wall times on two threads.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

from tests.benchmarks import cases, scaling
from tests.benchmarks.harness import Setting, cpu_seconds, describe, measure, n_threads


def make_parser():
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__.splitlines()[0]
    )
    names = list(cases.CASES)
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="NAME",
                        help=", ".join(names))  # fmt: skip
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and three pairs")
    parser.add_argument("--threads", type=int, help="of the wall ratios, 1: none (2; 1 if quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE",
                        help="draw time against n, D, C, bank size and k")  # fmt: skip
    return parser


def number(value):
    """Format with three digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def line(result):
    """Format one row of the table."""
    target = "" if result["target"] is None else f"≤ {number(result['target'])}"
    verdict = {True: "ok", False: "MISSED", None: ""}[result.get("reached")]
    around = (
        "" if result["q1"] == result["q3"] else f"{number(result['q1'])}–{number(result['q3'])}"
    )
    seconds = [number(result[s]) for s in ("seconds", "yardstick_seconds") if s in result]
    wall = number(result["wall"]["value"]) if "wall" in result else ""
    value = f"{number(result['value'])} {result['unit']}".strip()
    return (
        f"  {result['name']:36} {value:>10} {around:>13} {target:>8} {verdict:6} "
        f"{' / '.join(seconds):>17} {wall:>9}"
    )


def run(options):
    """Measure and print; return what goes into the JSON."""
    threads = options.threads or (1 if options.quick else 2)
    setting = Setting(options.device, options.quick, threads)
    report = describe(setting)
    print(
        "  ".join(f"{k} {v}" for part in ("machine", "versions") for k, v in report[part].items())
    )
    print(f"{'':38} {'median':>10} {'quartiles':>13} {'target':>8} {'':6} "
          f"{'seconds':>17} {'wall':>9}")  # fmt: skip
    report["results"] = []
    for name in options.cases:
        if name in (cases.GPU_ONLY if options.device == "cpu" else cases.CPU_ONLY):
            continue
        start, cpu = time.perf_counter(), cpu_seconds()
        case = cases.CASES[name]
        print(f"{name}: {case.__doc__.splitlines()[0]}")
        for item in case(setting):
            title = case.__doc__.splitlines()[0]
            result = {"case": name, "title": title, **measure(item, setting)}
            report["results"].append(result)
            print(line(result), flush=True)
            # What an item holds goes before the case prepares the next.
            del item
        print(f"  ({time.perf_counter() - start:.0f} s, {cpu_seconds() - cpu:.0f} s of processor)")
    if options.plot:
        report["scaling"] = scaling.sweep(options.device, options.quick)
        scaling.plot(report["scaling"], options.plot)
    return report


def main():
    """Run the command."""
    options = make_parser().parse_args()
    warnings.simplefilter("ignore")
    with n_threads(1):
        report = run(options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
