# SPDX-License-Identifier: MIT
"""Time and memory of a piece of work; the same rules as compare_cases.cpp."""

import statistics
import time


def times(work, budget):
    """Median wall-clock and processor time of one call of `work`, which has been called before. A
    repetition is as many calls as 10 ms need; repetitions go on until `budget` seconds are spent,
    and are at least three unless that takes four times the budget. Processor time says what a busy
    machine would have given on its own."""

    def repetition(calls):
        start, start_processor = time.perf_counter(), time.process_time()
        for _ in range(calls):
            work()
        return ((time.perf_counter() - start) / calls,
                (time.process_time() - start_processor) / calls)

    first = repetition(1)
    calls = max(1, int(0.01 / max(first[0], 1e-9)))
    results, spent = ([first], first[0]) if calls == 1 else ([], 0.0)
    while spent < budget or (len(results) < 3 and spent < 4 * budget):
        results.append(repetition(calls))
        spent += results[-1][0] * calls
    return tuple(statistics.median(column) for column in zip(*results))


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
