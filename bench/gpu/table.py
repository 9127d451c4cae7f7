# SPDX-License-Identifier: MIT
"""One dated JSON file and one Markdown table of what run.sh found on a GPU.

    table.py --out DIR [--date DATE] [--revision R] [--stages FILE] [--peer FILE] BENCH...

BENCH are files of gpu_bench, FILE of --peer is of peer.py, that of --stages has a line
`stage<TAB>outcome<TAB>seconds<TAB>why` for each stage. What was not measured is a dash. Exits with
1 if a stage failed, and with 2 if it cannot read a file."""

import argparse
import datetime
import json
import pathlib
import re
import sys

PRECISIONS = ["bf16", "tf32", "strict"]
OUTCOMES = ["passed", "failed", "skipped"]
# Of loss and ||z||, beyond which both sides did not do the same; by the precision's rounding.
TOLERANCE = {"strict": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
STEPS = ["step_eager", "step_graph", "step_compiled"]


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
    if not all(isinstance(r, dict) for r in content["results"].values()):
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
    benches = [read_json(path, "device", "results") for path in o.bench]
    report = {"date": o.date, "revision": o.revision,
              "device": benches[0]["device"] if benches else {},
              "batch": benches[0].get("batch") if benches else None,
              "stages": read_stages(o.stages) if o.stages else [],
              "ours": {}, "peer": {"about": {}, "results": {}}}
    for path, bench in zip(o.bench, benches):
        if bench["device"].get("name") != report["device"].get("name"):
            raise Broken(f"{path}: of another device than {o.bench[0]}")
        if bench.get("batch") != report["batch"]:
            raise Broken(f"{path}: of another batch than {o.bench[0]}")
        report["ours"].update(bench["results"])
    if o.peer:
        peer = read_json(o.peer, "about", "results")
        report["peer"] = {"about": peer["about"], "results": peer["results"]}
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


def best_step(report, prefix):
    """(name, seconds) of PyTorch's fastest step; (None, None) if there is none."""
    found = [(s, get(report["peer"]["results"], prefix + s)) for s in STEPS]
    return min(((n, t) for n, t in found if t), key=lambda pair: pair[1], default=(None, None))


def counterpart(report, name):
    """(name, seconds) on PyTorch's side of what is `name` on ours."""
    prefix, last = name.rpartition("/")[::2]
    if last == "step":
        step, seconds = best_step(report, prefix + "/")
        return step, seconds
    return last, get(report["peer"]["results"], name)


# What is asked for ---------------------------------------------------------------------------------

def verdict(value, least, aim, smaller=False):
    if value is None:
        return "not measured"
    reached = (lambda bound: value < bound) if smaller else (lambda bound: value >= bound)
    return "aim reached" if reached(aim) else "reached" if reached(least) else "missed"


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
        name, seconds = best_step(report, large)
        ratio(f"{p}: GDEQ step of LARGE, over PyTorch's best ({name or '-'})", over(seconds, step), 2, 4)
        for what in ("forward", "input_gradient", "weight_gradient"):
            ratios = [(over(get(peer, n), get(ours, n)), n.split("/")[-2]) for n in ours
                      if re.fullmatch(f"{large}conv/.*_k3_s\\d/{what}", n)]
            ratios = [r for r in ratios if r[0] is not None]
            worst = min(ratios, default=(None, "-"))
            ratio(f"{p}: 3x3 convolutions of LARGE, {what.replace('_', ' ')}, over cuDNN;"
                  f" the worst, {worst[1]}", worst[0], 1, 1.5)
        share, solve = get(ours, large + "solve", "broyden_share"), get(ours, large + "solve")
        of_step = over(share * solve, step) if share is not None and solve else None
        below(f"{p}: Broyden's share of the step of LARGE", of_step, "{:.1%}", 0.15, 0.05)
        minutes = get(ours, large + "epochs", "minutes_of_220_epochs")
        how = show(get(ours, large + "epochs", "epochs"), "{:.2g} measured epochs")
        if minutes is None:
            minutes, how = get(ours, large + "step", "minutes_of_220_epochs"), "the step alone"
        below(f"{p}: 220 epochs of LARGE, minutes, projected from {how}", minutes, "{:.3g}", 90, 30)
        peak = get(ours, large + "step", "peak_bytes") or get(ours, large + "step_eager", "peak_bytes")
        ratio(f"{p}: peak memory of a step of LARGE, PyTorch's over ours",
              over(get(peer, large + "step_eager", "peak_bytes"), peak), 2, 4)
    return rows


def same_work(report):
    """Rows: step, quantity, ours, PyTorch's, verdict."""
    rows = []
    for name in report["ours"]:
        if not name.endswith("/step_eager"):
            continue
        for quantity in ("loss", "z"):
            a, b = (get(side, name, quantity) for side in (report["ours"], report["peer"]["results"]))
            if a is None or b is None:
                continue
            same = abs(a - b) <= TOLERANCE[name.split("/")[0]] * abs(b)
            rows.append([name, quantity, f"{a:.6g}", f"{b:.6g}", "same" if same else "DIFFERENT"])
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
        which, theirs = counterpart(report, name)
        fused = get(report["peer"]["results"], name + "_with_statistics")
        rate = get(report["ours"], name, "flop_per_second")
        bandwidth = get(report["ours"], name, "bytes_per_second")
        rows.append([name, time_of(seconds), time_of(get(report["ours"], name, "floor")),
                     show(get(report["ours"], name, "share"), "{:.0%}"),
                     show(rate and 1e-12 * rate, "{:.4g}"),
                     show(bandwidth and 1e-9 * bandwidth, "{:.4g}"),
                     show(get(report["ours"], name, "images_per_second"), "{:.4g}"),
                     time_of(theirs) + (f" ({which})" if theirs and which.startswith("step") else ""),
                     show(over(theirs, seconds), "{:.2f}x"), show(over(fused, seconds), "{:.2f}x")])
    return rows


def markdown(report):
    d, about = report["device"], report["peer"]["about"]
    gb = lambda field: show(get({"d": d}, "d", field) and 1e-9 * d[field], "{:.0f} GB/s")
    lines = [f"# {d.get('name', 'no device')}, {report['date']}", "",
             "<!-- written by bench/gpu/table.py -->", "",
             f"Revision {report['revision']}, batch {report['batch'] or '-'}; peaks"
             f" {d.get('peaks', '-')}, bandwidth {gb('bandwidth')}, a copy {gb('copy_bandwidth')};"
             f" PyTorch {about.get('torch', '-')}, cuDNN {about.get('cudnn', '-')}.", ""]
    lines += ["## Stages", ""] + table(
        ["stage", "outcome", "seconds", "why"],
        [[s["stage"], s["outcome"], f"{s['seconds']:.0f}", s["why"]] for s in report["stages"]])
    lines += ["## What is asked for", "",
              "More than 1x is faster, or smaller, than PyTorch. Our convolutions take the statistics"
              " for the norm along; cuDNN's here do not.", ""]
    lines += table(["what", "measured", "at least", "aim", ""], asked(report))
    rows = same_work(report)
    if rows:
        lines += ["## Do both sides do the same?", ""]
        lines += table(["step", "quantity", "ours", "PyTorch", ""], rows)
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


def main():
    parser = argparse.ArgumentParser(prog="table.py")
    parser.add_argument("--out", required=True)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--revision", default="unknown")
    parser.add_argument("--stages")
    parser.add_argument("--peer")
    parser.add_argument("bench", nargs="*")
    o = parser.parse_args()
    report = merge(o)
    device = report["device"].get("name", "no device")
    name = f"{o.date}-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}"
    folder = pathlib.Path(o.out)
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(report)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n",
                                         encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    print("written:", folder / f"{name}.json", folder / f"{name}.md")
    return 1 if any(s["outcome"] == "failed" for s in report["stages"]) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Broken, OSError) as e:
        print(f"table: {e}", file=sys.stderr)
        sys.exit(2)
