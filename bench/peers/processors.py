# SPDX-License-Identifier: MIT
"""How many processors does the machine have to spare at this moment?"""

import os
import time


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
