# SPDX-License-Identifier: MIT
"""Says who the peer is: PyTorch's version, the libraries that it really loaded, the CPU."""

import os
import re
import time

import torch


def loaded(pattern):
    """Names of the loaded libraries that match."""
    with open("/proc/self/maps") as maps:
        names = {os.path.basename(line.split()[-1]) for line in maps if "/" in line}
    return sorted(name for name in names if re.search(pattern, name))


def cpu_model():
    with open("/proc/cpuinfo") as info:
        found = re.search(r"model name\s*: (.*)", info.read())
    return found.group(1) if found else "unknown"


def main():
    torch.set_num_threads(2)
    a = torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    print("peer: torch", torch.__version__, "with", torch.get_num_threads(), "threads of",
          os.cpu_count(), cpu_model())
    print("peer: BLAS", *loaded("blas|mkl_"), f"(sgemm {2e-9 * 1024**3 / best:.0f} GFLOP/s)")
    print("peer: oneDNN", torch.backends.mkldnn.is_available(), *loaded("dnnl"))


if __name__ == "__main__":
    main()
