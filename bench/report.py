# SPDX-License-Identifier: MIT
"""What Google Benchmark wrote, as one table, one JSON file and figures; started by run.sh.

    report.py DIR FILE...

Each FILE is the JSON output of one program and named after it."""

import json
import math
import os
import pathlib
import platform
import re
import subprocess
import sys

import charts

UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
# Fields of Google Benchmark's own; every other number of a benchmark is a counter.
OWN = {"family_index", "per_family_instance_index", "repetitions", "repetition_index", "threads",
       "iterations", "real_time", "cpu_time"}
STREAM = "triad of 192 MB, GB/s"
FIGURES = ["solver.svg", "convolutions.svg", "inverse.svg"]


class Broken(Exception):
    """Input that cannot be reported, and why."""


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_row(program, b):
    """One benchmark; None for an aggregate of others."""
    if b.get("run_type", "iteration") != "iteration":
        return None
    if not isinstance(b.get("name"), str):
        raise Broken("a benchmark without a name")
    name = re.sub(r"/(real|manual)_time$", "", b["name"]).replace("deq::", "").replace("<B>", "")
    row = {"program": program, "name": name}
    if b.get("error_occurred"):
        return {**row, "error": str(b.get("error_message", "no message"))}
    if not is_number(b.get("real_time")) or b.get("time_unit") not in UNITS:
        raise Broken(f"{b['name']} has no time")
    row["seconds"] = b["real_time"] * UNITS[b["time_unit"]]
    row["counters"] = {k: v for k, v in b.items() if k not in OWN and is_number(v)}
    return row


def read(path):
    """The context and the rows of one program."""
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("context"), dict):
            raise Broken("not the output of Google Benchmark: no context")
        benchmarks = content.get("benchmarks")
        if not isinstance(benchmarks, list) or not all(isinstance(b, dict) for b in benchmarks):
            raise Broken("not the output of Google Benchmark: no benchmarks")
        rows = {}
        for b in benchmarks:
            row = read_row(pathlib.Path(path).stem, b)
            if row:
                rows.setdefault(row["name"], row)  # some shapes belong to two series
        return content["context"], list(rows.values())
    except OSError as e:
        raise Broken(f"{path}: {e.strerror}") from e
    except ValueError as e:
        raise Broken(f"{path}: not JSON: {e}") from e
    except Broken as e:
        raise Broken(f"{path}: {e}") from e


def cpu_name():
    try:
        found = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def revision():
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude", "*"],
                              cwd=pathlib.Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def merge(programs):
    """Everything in one: where it was measured, and the rows of all programs."""
    contexts, rows = [c for c, _ in programs], [row for _, rows in programs for row in rows]
    if not rows:
        raise Broken("no results")
    try:
        stream = next((float(c[STREAM]) for c in contexts if STREAM in c), None)
        threads = int(contexts[0].get("threads", 1))
        caches = [f"L{c['level']} {c['type'].lower()} {c['size'] // 1024} KiB"
                  for c in contexts[0].get("caches", [])]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise Broken(f"the context does not make sense: {e!r}") from e
    block = next((row["counters"].get("GFLOP/s") for row in rows
                  if (row["program"], row["name"]) == ("conv_bench", "block") and "seconds" in row),
                 None)
    peak = block * threads if block else None
    for row in rows:
        if peak and row["name"] != "block" and "GFLOP/s" in row.get("counters", {}):
            row["counters"]["share_of_peak"] = row["counters"]["GFLOP/s"] / peak
    return {"date": contexts[0].get("date", "unknown"), "cpu": cpu_name(),
            "cores": contexts[0].get("num_cpus", os.cpu_count()), "threads": threads,
            "compiler": contexts[0].get("compiler", "unknown"), "revision": revision(),
            "caches": caches, "stream_gb_per_second": stream,
            "peak_gflop_per_second": peak, "benchmarks": rows}


# Heading, counter, how it is printed.
COLUMNS = [("GFLOP/s", "GFLOP/s", "{:.1f}"), ("of peak", "share_of_peak", "{:.0%}"),
           ("GB/s", "bytes_per_second", "{:.1f}"), ("of stream", "of_stream", "{:.2f}"),
           ("f", "evaluations", "{:g}"), ("VJPs", "vjps", "{:g}"),
           ("allocations", "allocations", "{:g}")]


def print_table(report):
    def cell(row, counter, form):
        value = row["counters"].get(counter)
        scale = 1e-9 if counter == "bytes_per_second" else 1
        return "" if value is None else form.format(scale * value)

    lines = [["program", "benchmark", "time", *(heading for heading, _, _ in COLUMNS)]]
    for row in report["benchmarks"]:
        line = [row["program"], row["name"]]
        if "error" in row:
            lines.append([*line, "failed", *([""] * len(COLUMNS))])
        else:
            lines.append([*line, charts.engineering(row["seconds"]),
                          *(cell(row, counter, form) for _, counter, form in COLUMNS)])
    used = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines) for i in used}
    for line in lines:
        print("  ".join(line[i].ljust(widths[i]) if i < 2 else line[i].rjust(widths[i])
                        for i in used).rstrip())
    print(f"\n{report['cpu']}, {report['cores']} cores, {report['threads']} threads;"
          f" {', '.join(report['caches'])};"
          f" {report['compiler']}; revision {report['revision']}; {report['date']}")
    if report["peak_gflop_per_second"]:
        print(f"peak: the benchmark block on each thread,"
              f" {report['peak_gflop_per_second']:.1f} GFLOP/s in all")
    if report["stream_gb_per_second"]:
        print(f"stream: a triad over 192 MB, {report['stream_gb_per_second']:.1f} GB/s")


def matches(report, program, pattern):
    """(match of the whole name, row) of what a figure shows."""
    for row in report["benchmarks"]:
        found = re.fullmatch(pattern, row["name"])
        if row["program"] == program and found and row.get("seconds", 0) > 0:
            yield found, row


def solver_figure(report):
    by_batch, by_dim = {}, {}
    for m, row in matches(report, "solver_bench", r"cheap/(\w+)/D:(\d+)/batch:(\d+)/memory:30"):
        name, dim, batch = m[1].replace("_", ", "), int(m[2]), int(m[3])
        if dim == 64:
            by_batch.setdefault(name, []).append((batch, row["seconds"]))
        if batch == 64 and dim <= 1024:
            by_dim.setdefault(name, []).append((dim, row["seconds"]))
    panels = [("samples a batch, D = 64", by_batch), ("D, numbers a sample, batch of 64", by_dim)]
    panels = [(label, series) for label, series in panels if series]
    return panels and charts.line_chart(
        "Time of a solve against batch and dimension: lower is better",
        "Broyden's method, 30 steps (D = 1 needs fewer), on a map that costs next to nothing;"
        f" {report['threads']} threads",
        "time of a solve of the batch", panels)


def conv_figure(report):
    found = list(matches(report, "conv_bench",
                         r"(\d+)_(\d+)_at_(\d+)_k(\d+)_s(\d+)/(\w+)/samples:(\d+)"))
    samples = max((int(m[7]) for m, _ in found), default=0)
    groups = {}
    for m, row in found:
        if int(m[7]) == samples and row["counters"].get("GFLOP/s"):
            stride = "" if m[5] == "1" else f", stride {m[5]}"
            label = f"{m[1]}→{m[2]}", f"{m[3]}², {m[4]}×{m[4]}{stride}"
            groups.setdefault(label, {})[m[6].replace("_", " ")] = row["counters"]["GFLOP/s"]
    peak = report["peak_gflop_per_second"]
    return groups and charts.bar_chart(
        "Convolutions of MDEQ: higher is better",
        f"channels in→out, pixels, kernel; batch of {samples}, {report['threads']} threads."
        " The products of the definition are counted; Winograd's algorithm needs fewer.",
        "GFLOP/s", groups, peak and ("peak: the inner loop alone, on every thread", peak))


def inverse_figure(report):
    what = {"advance": "step", "product, false": "H x", "product, true": "Hᵀ x"}
    groups = {}
    for m, row in matches(report, "inverse_bench", r"(\w+)<(\w+)((?:, \w+)?)>/D:(\d+)/"
                          r"batch:(\d+)/memory:(\d+)"):
        if row["counters"].get("of_stream"):
            series = f"{what.get(m[1] + m[3], m[1])}, {m[2]}"
            label = f"D {m[4]}", f"batch {m[5]}, m {m[6]}"
            groups.setdefault(label, {})[series] = row["counters"]["of_stream"]
    return groups and charts.bar_chart(
        "Broyden's inverse against the memory: higher is better",
        f"D numbers a sample, m stored vectors; {report['threads']} threads."
        " Above 1 a cache serves.",
        "bytes/s over STREAM's", groups, ("STREAM: a triad over 192 MB", 1.0))


def main():
    if len(sys.argv) < 3:
        raise Broken("usage: report.py DIR FILE...")
    report = merge([read(path) for path in sys.argv[2:]])
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n",
                                         encoding="utf-8")
    print_table(report)
    for name, draw in zip(FIGURES, (solver_figure, conv_figure, inverse_figure)):
        svg = draw(report)
        if svg:
            (folder / name).write_text(svg, encoding="utf-8")
        else:  # what an earlier run drew does not belong to these results
            (folder / name).unlink(missing_ok=True)
    print("written:", *(str(p) for p in [folder / "results.json", *map(folder.joinpath, FIGURES)]
                        if p.exists()))
    failed = [row for row in report["benchmarks"] if "error" in row]
    if failed:
        raise Broken("; ".join(f"{row['name']} failed: {row['error']}" for row in failed))


if __name__ == "__main__":
    try:
        main()
    except (Broken, OSError) as e:
        sys.exit(f"report: {e}")
