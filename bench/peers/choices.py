# SPDX-License-Identifier: MIT
"""Which formulation is the fastest on this machine? What the peer uses was chosen by this program:
choices.py [products | recursion | layout FILE].

    products   the low-rank products, project and combine, for the cases' shapes
    recursion  a solve with the original's six passes over the pairs, and with four
    layout     a training pass of MDEQ in NCHW and in channels_last; FILE as compare_cases writes it
"""

import sys

import torch

import broyden
import measure
from gradients import logits, training_pass
from low_rank import Bmm, Einsum, Fastest, LowRank, Mul, Mv
from mdeq import Mdeq
from safetensors import load


def show(what, *times):
    """A line; wall-clock and processor time, which on a busy machine is the better witness."""
    print(what, *(f"{1e3 * wall:9.3f} ms ({1e3 * cpu:9.3f} cpu)" for wall, cpu in times), flush=True)


def products():
    for batch, rank, dim in ((32, 10, 30720), (32, 10, 61440), (1, 10, 30720), (128, 15, 512),
                             (32, 15, 512), (1, 15, 512)):
        basis = torch.randn(batch, 2 * rank, dim)[:, :rank]
        x, c = torch.randn(batch, dim), 1e-3 * torch.randn(batch, rank)
        for formulation in (Einsum, Bmm, Mul, Mv, Fastest):
            with torch.inference_mode():
                project = measure.times(lambda: formulation.project(basis, x), 0.2)
                combine = measure.times(lambda: formulation.combine(basis, c, x), 0.2)
            show(f"{batch:4} x {rank} x {dim:5}  {formulation.__name__:8}", project, combine)


def recursion():
    for batch, dim in ((32, 30720), (128, 512)):
        a, h = torch.randn(batch, dim), LowRank()
        for original in (True, False):
            broyden.ORIGINAL = original
            seconds = measure.times(
                lambda: broyden.broyden(lambda z: a.add(z, alpha=0.5), torch.zeros(batch, dim), 18, h), 1)
            show(f"{batch:4} x {dim:5}  {'six passes' if original else 'four passes':12}", seconds)


def layout(path):
    for channels_last in (False, True):
        tensors = load(path)
        tensors.pop("z")
        images, labels = tensors.pop("images"), tensors.pop("labels")
        masks = [tensors.pop(f"mask.{i}") for i in range(4) if f"mask.{i}" in tensors]
        model = Mdeq("tiny" if len(masks) == 2 else "large", tensors, channels_last)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        step = measure.times(lambda: training_pass(model, "gdeq", images, labels, masks), 1)
        infer = measure.times(lambda: logits(model, images), 1)
        show(f"{'channels_last' if channels_last else 'NCHW':14} step, inference", step, infer)


if __name__ == "__main__":
    torch.set_num_threads(2)
    {"products": products, "recursion": recursion, "layout": layout}[sys.argv[1]](*sys.argv[2:])
