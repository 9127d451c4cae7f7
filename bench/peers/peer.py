# SPDX-License-Identifier: MIT
"""One case of the comparison on PyTorch's side: peer.py CASE FILE [SECONDS]. FILE holds weights and
data, written by compare_cases; prints one line of JSON, as that does."""

import json
import math
import sys

import torch

import measure
from anderson import anderson, fixed_point
from broyden import broyden
from dense import DenseTanh
from gradients import logits, training_pass
from low_rank import LowRank
from mdeq import Mdeq
from safetensors import load

THREADS = 2
DENSE_ITERATIONS = 30
VJPS = 20


def norm(tensors):
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


class MdeqCase:
    def __init__(self, name, tensors):
        size, self.what, self.method = (name.split("_") + [""])[:3]
        self.images = tensors.pop("images")
        self.labels = tensors.pop("labels")
        self.masks = [tensors.pop(f"mask.{i}") for i in range(4) if f"mask.{i}" in tensors]
        self.z = tensors.pop("z")
        self.model = Mdeq(size, tensors)
        self.per_call = 1
        if self.what in ("f", "vjp"):
            with torch.no_grad():
                self.x = self.model.stem(self.images, train=False)
                self.theta = {n: t.detach() for n, t in self.model.effective().items()}
            self.f = self.model.function(self.theta, self.x)
        if self.what == "vjp":
            self.per_call = VJPS

    def work(self):
        if self.what == "step":
            return training_pass(self.model, self.method, self.images, self.labels, self.masks)
        if self.what == "inference":
            return logits(self.model, self.images)
        if self.what == "f":
            with torch.inference_mode():
                return self.f(self.z)
        # One recording and VJPS products with J^T: a Neumann series.
        z = self.z.detach().requires_grad_()
        fz = self.f(z)
        w = self.z
        for _ in range(VJPS):
            w = torch.autograd.grad(fz, z, w, retain_graph=True)[0].add_(self.z)
        return w

    def check(self, result):
        if self.what == "step":
            return {"loss": result[0], "z": norm([result[1].detach()]),
                    "gradient": norm([p.grad for p in self.model.parameters])}
        if self.what == "inference":
            return {"logits": norm([result[0]]), "z": norm([result[1]])}
        return {"z": norm([result])}


class DenseCase:
    def __init__(self, name, tensors):
        self.method = name.split("_")[0] if name != "fixed_point_512_32" else "fixed_point"
        self.f = DenseTanh(tensors)
        self.inverse = LowRank()
        self.per_call = 1

    def work(self):
        z = self.f.start()
        if self.method == "broyden":
            return broyden(self.f, z, DENSE_ITERATIONS, self.inverse)
        if self.method == "anderson":
            return anderson(self.f, z, DENSE_ITERATIONS, memory=7)
        return fixed_point(self.f, z, DENSE_ITERATIONS)

    def check(self, result):
        return {"z": norm([result])}


def main():
    name, path = sys.argv[1:3]
    budget = float(sys.argv[3]) if len(sys.argv) > 3 else 2.0
    torch.set_num_threads(THREADS)
    tensors = load(path)
    case = (DenseCase if "W" in tensors else MdeqCase)(name, tensors)
    before = measure.status_kib("VmRSS")
    check = case.check(case.work())
    seconds, processor = (t / case.per_call for t in measure.times(case.work, budget))
    if name.startswith("broyden_overhead"):
        with torch.inference_mode():
            z = case.f.start() + 0.1
            f_seconds, f_processor = measure.times(lambda: case.f(z), budget / 4)
        seconds -= (DENSE_ITERATIONS + 1) * f_seconds
        processor -= (DENSE_ITERATIONS + 1) * f_processor
    print(json.dumps({"case": name, "seconds": seconds, "cpu_seconds": processor,
                      "peak_kib": measure.status_kib("VmHWM"), "before_kib": before,
                      "check": check}))


if __name__ == "__main__":
    main()
