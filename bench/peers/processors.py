# SPDX-License-Identifier: MIT
"""What can the processors do, and how many of them are to spare at this moment?"""

import os
import time


def have(flag):
    with open("/proc/cpuinfo") as info:
        return any(line.startswith("flags") and flag in line.split() for line in info)


def free(count=2, seconds=0.15):
    """What `count` busy processes get together, in processors."""
    children = []
    start = time.perf_counter()
    for _ in range(count):
        child = os.fork()
        if child == 0:
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return count * seconds / (time.perf_counter() - start)
