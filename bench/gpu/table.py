# SPDX-License-Identifier: MIT
"""One dated JSON file and one Markdown table of what run.sh found on a GPU.

    table.py --out DIR [--date DATE] [--revision R] [--arch ARCH] [--stages FILE] [--peer FILE] BENCH...
    table.py --again REPORT.json

BENCH are files of gpu_bench, FILE of --peer is of peer.py, that of --stages has a line
`stage<TAB>outcome<TAB>seconds<TAB>why` for each stage. What was not measured is a dash. A BENCH or
a FILE of --peer that cannot be used is left out, as a failed stage. Without a BENCH that names its
device nothing is written. --again writes the table of a report anew, beside it.

Exits with 1 if a stage failed, if both sides did not do the same or if nothing was measured, and
with 2 if it cannot read the stages or the report."""

import argparse
import datetime
import itertools
import json
import pathlib
import re
import sys

PRECISIONS = ["bf16", "tf32", "strict"]
OUTCOMES = ["passed", "failed", "skipped"]
# PyTorch's steps, and its ways to do anything else in one CUDA graph.
STEPS = ["step_eager", "step_graph", "step_compiled", "step_graph_throughout",
         "step_compiled_throughout"]
WAYS = ["", "_compiled", "_throughout", "_compiled_throughout"]
# Of the loss and of norms, relative, beyond which both sides did not do the same: two to five times
# what was seen, which is rounding, and ten times for what f puts out, whose norm hardly depends on
# anything, since f ends with one. What PyTorch has in bfloat16 throughout is rounded more often.
TOLERANCE = {"loss": {"bf16": 2e-3, "tf32": 1e-3, "strict": 2e-4},
             "z": {"bf16": 2e-3, "tf32": 1e-3, "strict": 2e-4},
             "logits": {"bf16": 5e-3, "tf32": 2e-3, "strict": 1e-3},
             "out": {"bf16": 1e-5, "tf32": 1e-7, "strict": 1e-7}}


class Broken(Exception):
    """Input that cannot be reported, and why."""


# Reading -------------------------------------------------------------------------------------------

def read_json(path, *keys):
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise Broken(f"{path}: {e.strerror}") from e
    except ValueError as e:
        raise Broken(f"{path}: not JSON: {e}") from e
    if not isinstance(content, dict) or any(not isinstance(content.get(k), dict) for k in keys):
        raise Broken(f"{path}: needs {' and '.join(keys)}")
    if not all(isinstance(r, dict) for r in content.get("results", {}).values()):
        raise Broken(f"{path}: a result is no object")
    return content


def read_stages(path):
    stages = []
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise Broken(f"{path}: {e.strerror}") from e
    for line in filter(None, lines):
        fields = line.split("\t")
        try:
            name, outcome, seconds, why = fields
            stages.append({"stage": name, "outcome": outcome, "seconds": float(seconds), "why": why})
        except ValueError as e:
            raise Broken(f"{path}: not a stage: {line!r}") from e
        if outcome not in OUTCOMES:
            raise Broken(f"{path}: {outcome!r} is no outcome of {name}")
    return stages


def merge(o):
    report = {"date": o.date, "revision": o.revision, "arch": o.arch, "device": {}, "batch": None,
              "stages": read_stages(o.stages) if o.stages else [],
              "ours": {}, "peer": {"about": {}, "results": {}}}

    def add_bench(path):
        bench = read_json(path, "device", "results")
        if not report["device"]:
            if not bench["device"].get("name"):
                raise Broken(f"{path}: of no device")
            report.update(device=bench["device"], batch=bench.get("batch"))
        if bench["device"].get("name") != report["device"]["name"]:
            raise Broken(f"{path}: of another device than {report['device']['name']}")
        if bench.get("batch") != report["batch"]:
            raise Broken(f"{path}: of another batch than {report['batch']}")
        report["ours"].update(bench["results"])

    def add_peer(path):
        peer = read_json(path, "about", "results")
        report["peer"] = {"about": peer["about"], "results": peer["results"]}

    for add, paths in ((add_bench, o.bench), (add_peer, [o.peer] if o.peer else [])):
        for path in paths:
            try:
                add(path)
            except Broken as e:
                print(f"table: {e}", file=sys.stderr)
                report["stages"].append({"stage": f"read {pathlib.Path(path).name}", "outcome": "failed",
                                         "seconds": 0.0, "why": str(e)})
    return report


# Numbers -------------------------------------------------------------------------------------------

def get(results, name, field="seconds"):
    value = results.get(name, {}).get(field)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def over(a, b):
    return a / b if a is not None and b else None


def time_of(seconds):
    if seconds is None:
        return "-"
    for unit, scale in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            return f"{seconds * scale:.3g} {unit}"


def show(value, form):
    return "-" if value is None else form.format(value)


def fastest(report, names):
    """(name, seconds) of PyTorch's fastest of these; (None, None) if there is none."""
    found = [(n, get(report["peer"]["results"], n)) for n in names]
    return min(((n, t) for n, t in found if t), key=lambda pair: pair[1], default=(None, None))


def counterparts(name):
    """The names on PyTorch's side of what is `name` on ours."""
    prefix, last = name.rpartition("/")[::2]
    if last == "step":
        return [f"{prefix}/{s}" for s in STEPS]
    if last == "f" or re.fullmatch(r"inference_\d+", last):
        return [name + way for way in WAYS]
    return [name]


def least_peak(report, prefix):
    """(name, bytes) of PyTorch's step that needs the least memory. An eager step whose peak was
    taken from its first one on has cuDNN's choosing in it, and counts only where nothing else is."""
    peer = report["peer"]["results"]
    found = [(s, get(peer, prefix + s, "peak_bytes")) for s in STEPS]
    found = [(s, b) for s, b in found if b]
    tuned = [(s, b) for s, b in found if s != "step_eager" or get(peer, prefix + s, "tuned")]
    return min(tuned or found, key=lambda pair: pair[1], default=(None, None))


# What is asked for ---------------------------------------------------------------------------------

def verdict(value, least, aim, smaller=False):
    if value is None:
        return "not measured"
    reached = (lambda bound: value < bound) if smaller else (lambda bound: value >= bound)
    return "aim reached" if reached(aim) else "reached" if reached(least) else "missed"


# What a direction is called: its name on our side, and on PyTorch's.
DIRECTIONS = {"forward": ("forward", "forward"),
              "forward with PyTorch taking the same moments": ("forward", "forward_with_statistics"),
              "input gradient": ("input_gradient", "input_gradient"),
              "weight gradient": ("weight_gradient", "weight_gradient")}


def convolutions(report, precision, what, stride=r"\d"):
    """(ratio, shape) of the 3x3 convolutions of LARGE."""
    mine, theirs = DIRECTIONS[what]
    found = []
    for name in report["ours"]:
        shape = re.fullmatch(f"{precision}/large/conv/(.*_k3_s{stride})/{mine}", name)
        if shape:
            peers = name.removesuffix(mine) + theirs
            found.append((over(get(report["peer"]["results"], peers), get(report["ours"], name)),
                          shape[1]))
    return [(ratio, shape) for ratio, shape in found if ratio is not None]


def ranges(report):
    """Rows: a direction, then for each precision and stride the least and the largest ratio."""
    rows = []
    for what in DIRECTIONS:
        row = [what]
        for p in PRECISIONS:
            for stride in "12":
                ratios = [r for r, _ in convolutions(report, p, what, stride)]
                row.append(f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-")
        rows.append(row)
    return rows


def asked(report):
    """Rows: what, how much, at least, aim, verdict."""
    ours, peer = report["ours"], report["peer"]["results"]
    rows = []

    def ratio(what, value, least, aim):
        rows.append([what, show(value, "{:.2f}x"), f"{least:g}x", f"{aim:g}x",
                     verdict(value, least, aim)])

    def below(what, value, form, least, aim):
        rows.append([what, show(value, form), "< " + form.format(least), "< " + form.format(aim),
                     verdict(value, least, aim, smaller=True)])

    for p in PRECISIONS:
        large = f"{p}/large/"
        step = get(ours, large + "step") or get(ours, large + "step_eager")
        ratio(f"{p}: GDEQ step of LARGE, over PyTorch eager", over(get(peer, large + "step_eager"), step),
              4, 10)
        name, seconds = fastest(report, counterparts(large + "step"))
        best = name.rpartition("/")[2] if name else "-"
        ratio(f"{p}: GDEQ step of LARGE, over PyTorch's best ({best})", over(seconds, step), 2, 4)
        for what in DIRECTIONS:
            worst = min(convolutions(report, p, what), default=(None, "-"))
            ratio(f"{p}: 3x3 convolutions of LARGE, {what}, over cuDNN; the worst, {worst[1]}",
                  worst[0], 1, 1.5)
        share, solve = get(ours, large + "solve", "broyden_share"), get(ours, large + "solve")
        of_step = over(share * solve, step) if share is not None and solve else None
        below(f"{p}: Broyden's share of the step of LARGE", of_step, "{:.1%}", 0.15, 0.05)
        minutes = get(ours, large + "epochs", "minutes_of_220_epochs")
        how = show(get(ours, large + "epochs", "epochs"), "{:.2g} measured epochs")
        if minutes is None:
            minutes, how = get(ours, large + "step", "minutes_of_220_epochs"), "the step alone"
        below(f"{p}: 220 epochs of LARGE, minutes, projected from {how}", minutes, "{:.3g}", 90, 30)
        peak = get(ours, large + "step", "peak_bytes") or get(ours, large + "step_eager", "peak_bytes")
        name, least = least_peak(report, large)
        ratio(f"{p}: peak memory of a step of LARGE, PyTorch's least ({name or '-'}) over ours",
              over(least, peak), 2, 4)
    return rows


def same_work(report):
    """Rows: what on PyTorch's side, quantity, ours, PyTorch's, verdict. What PyTorch has not done has
    no row; what it has done without the quantity is not the same."""
    ours, peer = report["ours"], report["peer"]["results"]
    rows = []
    for name, result in ours.items():
        last = name.rpartition("/")[2]
        quantities = (["loss", "z"] if last in ("step", "step_eager")
                      else ["logits"] if last.startswith("inference_") else ["out"] if last == "f" else [])
        for theirs in counterparts(name) if quantities and "seconds" in result else []:
            if "seconds" not in peer.get(theirs, {}) or last == "step" and theirs.endswith("step_eager"):
                continue
            for quantity in quantities:
                a, b = get(ours, name, quantity), get(peer, theirs, quantity)
                apart = abs(a - b) / abs(b) if a is not None and b else None
                tolerance = TOLERANCE[quantity][name.split("/")[0]]
                if theirs.endswith("_throughout"):
                    tolerance *= 4
                same = apart is not None and apart <= tolerance
                rows.append([theirs, quantity, show(a, "{:.9g}"), show(b, "{:.9g}"),
                             show(apart, "{:.1e}"), f"{tolerance:g}", "same" if same else "DIFFERENT"])
    return rows


# Writing -------------------------------------------------------------------------------------------

def table(heading, rows):
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    lines += ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in rows]
    return lines + [""]


def measurements(report):
    rows = []
    for name, r in report["ours"].items():
        if "error" in r:
            rows.append([name, f"failed: {r['error']}", *["-"] * 8])
            continue
        seconds = get(report["ours"], name)
        which, theirs = fastest(report, counterparts(name))
        which = f" ({which.rpartition('/')[2]})" if which and which != name else ""
        fused = get(report["peer"]["results"], name + "_with_statistics")
        rate = get(report["ours"], name, "flop_per_second")
        bandwidth = get(report["ours"], name, "bytes_per_second")
        rows.append([name, time_of(seconds), time_of(get(report["ours"], name, "floor")),
                     show(get(report["ours"], name, "share"), "{:.0%}"),
                     show(rate and 1e-12 * rate, "{:.4g}"),
                     show(bandwidth and 1e-9 * bandwidth, "{:.4g}"),
                     show(get(report["ours"], name, "images_per_second"), "{:.4g}"),
                     time_of(theirs) + which,
                     show(over(theirs, seconds), "{:.2f}x"), show(over(fused, seconds), "{:.2f}x")])
    return rows


def compact_steps(report):
    """In which precisions our Broyden's method keeps its steps as bfloat16; all did once."""
    ours = report["ours"]
    return [p for p in PRECISIONS if f"{p}/large/step" in ours
            and get(ours, f"{p}/large/step", "step_bytes") in (None, 2)]


def markdown(report):
    d, about = report["device"], report["peer"]["about"]
    gb = lambda field: show(get({"d": d}, "d", field) and 1e-9 * d[field], "{:.0f} GB/s")
    arch = f" for {report['arch']}" if report.get("arch") else ""
    lines = [f"# {d.get('name', 'no device')}, {report['date']}", "",
             "<!-- written by bench/gpu/table.py -->", "",
             f"Revision {report['revision']}{arch}, batch {report['batch'] or '-'}; peaks"
             f" {d.get('peaks', '-')}, bandwidth {gb('bandwidth')}, a copy {gb('copy_bandwidth')};"
             f" PyTorch {about.get('torch', '-')}, cuDNN {about.get('cudnn', '-')}.", ""]
    lines += ["## Stages", ""] + table(
        ["stage", "outcome", "seconds", "why"],
        [[s["stage"], s["outcome"], f"{s['seconds']:.0f}", s["why"]] for s in report["stages"]])
    lines += ["## What is asked for", "",
              "More than 1x is faster, or smaller, than PyTorch. Our convolutions take the moments for"
              " the norm along; cuDNN's do not, but where it is said."
              " Our Broyden's method keeps steps, as bfloat16 in"
              f" {', '.join(compact_steps(report)) or 'none'} and else in float, PyTorch's pairs of"
              " vectors in float: that is in the ratios of the step, of inference and of memory."
              " PyTorch's bf16 is autocast, with norms in float, but for `_throughout`.", ""]
    lines += table(["what", "measured", "at least", "aim", ""], asked(report))
    heading = [f"{p}, stride {stride}" for p in PRECISIONS for stride in "12"]
    lines += ["3x3 convolutions of LARGE, cuDNN's time over ours, from the least to the largest:", ""]
    lines += table(["", *heading], ranges(report))
    rows = same_work(report)
    if rows:
        lines += ["## Do both sides do the same?", ""]
        lines += table(["PyTorch's", "quantity", "ours", "PyTorch", "apart", "at most", ""], rows)
    lines += ["## Measurements", "",
              "Floors: of the convolutions alone for f, solves and steps; of the memory for passes."
              " `_eager` is launch by launch, the rest is recorded. The last column is PyTorch with"
              " the statistics that our forward convolutions take.", ""]
    lines += table(["what", "ours", "floor", "share", "TFLOP/s", "GB/s", "images/s", "PyTorch",
                    "ratio", "with statistics"], measurements(report))
    failed = [[n, r.get("error") or "skipped: " + str(r.get("skipped"))]
              for n, r in report["peer"]["results"].items() if "seconds" not in r]
    if failed:
        lines += ["## What PyTorch did not do", ""] + table(["what", "why"], failed)
    return "\n".join(lines)


def verdicts(report):
    """Why the whole has failed, if it has."""
    reasons = [f"{s['stage']} failed" for s in report["stages"] if s["outcome"] == "failed"]
    reasons += [f"{row[0]}: {row[1]} is not ours" for row in same_work(report) if row[-1] != "same"]
    if not any("seconds" in r for r in report["ours"].values()):
        reasons.append("nothing was measured")
    return reasons


def unused(folder, name):
    """A file's stem that neither result has yet: nothing measured is written over."""
    stems = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(s for s in stems if not any((folder / f"{s}{e}").exists() for e in (".json", ".md")))


def main():
    parser = argparse.ArgumentParser(prog="table.py")
    parser.add_argument("--out")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--revision", default="unknown")
    parser.add_argument("--arch", default="")
    parser.add_argument("--stages")
    parser.add_argument("--peer")
    parser.add_argument("--again", type=pathlib.Path)
    parser.add_argument("bench", nargs="*")
    o = parser.parse_args()
    if o.again:
        report = read_json(o.again, "device", "ours", "peer")
        o.again.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
        return 0
    if not o.out:
        parser.error("--out is missing")
    report = merge(o)
    text = markdown(report)
    print(text)
    if report["device"]:
        words = f"{o.date} {report['device']['name']} {o.revision}".lower()
        folder = pathlib.Path(o.out)
        folder.mkdir(parents=True, exist_ok=True)
        name = unused(folder, re.sub(r"[^a-z0-9]+", "-", words).strip("-"))
        (folder / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n",
                                             encoding="utf-8")
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
        print("written:", folder / f"{name}.json", folder / f"{name}.md")
    else:
        print("table: no device, nothing is written", file=sys.stderr)
    for reason in verdicts(report):
        print("table:", reason, file=sys.stderr)
    return 1 if verdicts(report) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Broken, OSError) as e:
        print(f"table: {e}", file=sys.stderr)
        sys.exit(2)
