# SPDX-License-Identifier: MIT
"""Runs both sides in turns and prints the ratios; started by compare.sh."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import processors

HERE = pathlib.Path(__file__).parent
OURS = HERE.parent.parent / "build/bench/bench/compare_cases"

# Case, and the largest relative difference of the norms that both sides report. In a case named
# ..._compact we keep the steps as bfloat16, which PyTorch, whose products would have to be in
# bfloat16 as well, does not. Its spacing is 8e-3, and the solve of an untrained LARGE, which has not
# converged, hands the rounding on: two orders of summation were 1.5e-3 and 3.1e-3 from the peer.
CASES = {
    "tiny_step_gdeq": 1e-3,
    "tiny_step_gdeq_compact": 1e-3,
    "tiny_step_implicit": 1e-3,
    "tiny_step_jfb": 1e-3,
    "tiny_step_npg": 1e-3,
    "large_step_gdeq": 1e-3,
    "large_step_gdeq_compact": 4e-3,
    "tiny_inference_1": 1e-3,
    "tiny_inference_32": 1e-3,
    "tiny_f_32": 1e-4,
    "tiny_vjp_32": 1e-3,
    "broyden_512_1": 1e-4,
    "broyden_512_32": 1e-4,
    "broyden_512_128": 1e-4,
    "broyden_overhead_128": 1e-4,
    "anderson_512_32": 1e-4,
    "fixed_point_512_32": 1e-4,
}
ALONE = ["threads_2_over_1", "linear", "half_converged"]

# What makes PyTorch faster on a CPU. Freed memory is kept rather than returned and faulted in
# again. Threads that wait sleep, which a busy machine needs, or spin first, which short work may
# prefer: then both are run, and the faster one counts.
FAST = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "OMP_NUM_THREADS": "2"}
if processors.have("avx512f"):
    # Where OpenBLAS 0.3.21 does not know the processor, it falls back to kernels of 2004.
    FAST["OPENBLAS_CORETYPE"] = os.environ.get("OPENBLAS_CORETYPE", "SkylakeX")
SLEEP, SPIN = {**FAST, "OMP_WAIT_POLICY": "passive"}, FAST
SHORT = 0.1  # seconds of a unit of work

# A round counts if two processors were free before and after it; otherwise it is repeated, up to
# this many times, and then counts as it is.
FREE, RETRIES = 1.8, 3


def run(command, extra=None):
    done = subprocess.run([str(c) for c in command], env={**os.environ, **(extra or {})},
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"compare: failed with {done.returncode}: {' '.join(str(c) for c in command)}")
    return done.stdout


def work_of(case):
    return case.removesuffix("_compact")


def ours(case, seconds, *options):
    storage = "steps" if work_of(case) == case else "compact"
    return json.loads(run([OURS, work_of(case), "--seconds", seconds, "--storage", storage,
                           *options]))


def peer(case, file, seconds, environment):
    return json.loads(run([sys.executable, HERE / "peer.py", work_of(case), file, seconds],
                          environment))


def agree(case, a, b, tolerance):
    """Fails loudly unless both sides computed the same."""
    for name, value in a["check"].items():
        other = b["check"][name]
        if not abs(value - other) <= tolerance * abs(value):
            sys.exit(f"compare: {case}: {name} is {value} here and {other} there: not the same work")


def ratio(name, values):
    print(f"ratio {name} {statistics.median(values):.3f} {min(values):.3f} {max(values):.3f}",
          flush=True)


def when_free(work, patience):
    """What `work` returns, and whether both processors were free meanwhile."""
    for attempt in range(RETRIES):
        deadline = time.monotonic() + patience
        while processors.free() < FREE and time.monotonic() < deadline:
            time.sleep(0.5)
        result = work()
        if processors.free() >= FREE:
            return result, True
    return result, False


def compare(case, tolerance, rounds, seconds, patience, file):
    run([OURS, work_of(case), "--export", file])
    first = ours(case, seconds / 10)
    result = peer(case, file, seconds / 10, SLEEP)
    agree(case, first, result, tolerance)
    environments = [SLEEP, SPIN] if result["seconds"] < SHORT else [SLEEP]

    def both():
        return ours(case, seconds), min(
            (peer(case, file, seconds, environment) for environment in environments),
            key=lambda r: r["seconds"])

    a, b, busy = [], [], 0
    for _ in range(rounds):
        (mine, theirs), free = when_free(both, patience)
        a.append(mine)
        b.append(theirs)
        busy += not free

    # An overhead is a difference of two times; one that drowns in their noise says nothing.
    clean = [(x, y) for x, y in zip(a, b) if min(x["seconds"], y["seconds"]) > 0]
    if not clean:
        sys.exit(f"compare: {case}: no round measured a time above zero")

    def over(field):
        return [y[field] / x[field] for x, y in clean]

    def median(results, field):
        return statistics.median(r[field] for r in results)

    ratio(case, over("seconds"))
    ratio(case + "_memory", over("peak_kib"))
    for who, results in (("ours", a), ("peer", b)):
        print(f"  {who}  {1e3 * median(results, 'seconds'):10.3f} ms"
              f"  {1e3 * median(results, 'cpu_seconds'):10.3f} ms of processors"
              f"  {median(results, 'peak_kib') / 1024:7.0f} MiB,"
              f" {median(results, 'before_kib') / 1024:.0f} of them before the work", flush=True)
    if len(clean) < rounds:
        print(f"  {rounds - len(clean)} of {rounds} rounds measured no time above zero", flush=True)
    if busy:
        print(f"  {busy} of {rounds} rounds on a machine that was busy with other things", flush=True)


def alone(case, rounds, seconds, patience):
    def one_over_two():
        return (ours("tiny_step_gdeq", seconds, "--threads", 1)["seconds"] /
                ours("tiny_step_gdeq", seconds)["seconds"])

    if case == "threads_2_over_1":
        ratio(case, [when_free(one_over_two, patience)[0] for _ in range(rounds)])
    else:
        print(run([OURS, case, "--seconds", seconds]), end="", flush=True)


def main():
    arguments = argparse.ArgumentParser(prog="bench/compare.sh")
    arguments.add_argument("cases", nargs="*", metavar="CASE")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--quick", action="store_true", help="one round")
    arguments.add_argument("--seconds", type=float, default=0.5, help="of each process, about")
    arguments.add_argument("--patience", type=float, default=20, metavar="S",
                           help="seconds to wait for two free processors before a round")
    arguments.add_argument("--list", action="store_true", help="the names of the cases")
    options = arguments.parse_args()
    known = [*CASES, *ALONE]
    if options.list:
        print(*known)
        return
    unknown = set(options.cases) - set(known)
    if unknown:
        arguments.error("no such case: " + ", ".join(sorted(unknown)))
    rounds = 1 if options.quick else options.rounds

    print(run([sys.executable, HERE / "environment.py"], FAST), end="", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases or known:
            if case in CASES:
                file = pathlib.Path(folder) / "case.safetensors"
                compare(case, CASES[case], rounds, options.seconds, options.patience, file)
            else:
                alone(case, rounds, options.seconds, options.patience)


if __name__ == "__main__":
    main()
