# SPDX-License-Identifier: MIT
"""Time and memory of a piece of work; the same rules as compare_cases.cpp."""

import statistics
import time


def seconds(work, budget):
    """The median time of one call of `work`, after a warm-up: at least three repetitions, and more
    until `budget` seconds are spent. A repetition is as many calls as 10 ms need."""
    work()
    start = time.perf_counter()
    work()
    calls = max(1, int(0.01 / max(time.perf_counter() - start, 1e-9)))
    times, spent = [], 0.0
    while len(times) < 3 or spent < budget:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        elapsed = time.perf_counter() - start
        times.append(elapsed / calls)
        spent += elapsed
    return statistics.median(times)


def status_kib(field):
    """VmHWM, the most memory this process has held, or VmRSS, what it holds; 0 where unknown."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
