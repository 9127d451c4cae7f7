# SPDX-License-Identifier: MIT
"""Anderson acceleration as DEQ code usually has it: bordered normal equations with a ridge, a batch
at a time; and the plain fixed-point iteration. Residuals are kept, and only the new row of the Gram
matrix is computed, which the usual code does anew for all rows.
"""

import torch

from best import Best


@torch.no_grad()
def anderson(f, z, iterations, memory, ridge=1e-4):
    """z after `iterations` steps from z; with the last `memory` iterates, beta = 1."""
    batch, dim = z.shape
    images, residuals = torch.empty(batch, memory, dim), torch.empty(batch, memory, dim)
    system = torch.zeros(batch, memory + 1, memory + 1)
    system[:, 0, 1:] = system[:, 1:, 0] = 1
    right = torch.zeros(batch, memory + 1, 1)
    right[:, 0] = 1
    for k in range(iterations + 1):
        fz = f(z)
        slot, n = k % memory, min(k + 1, memory)
        images[:, slot] = fz
        g = fz - z
        residuals[:, slot] = g
        if k == 0:
            best = Best(z, fz, g)
        else:
            best.judge(z, fz, g)
        if k == iterations:
            return best.z
        row = torch.bmm(residuals[:, :n], g.unsqueeze(2)).squeeze(2)
        row[:, slot] += ridge
        system[:, slot + 1, 1 : n + 1] = system[:, 1 : n + 1, slot + 1] = row
        alpha = torch.linalg.solve(system[:, : n + 1, : n + 1], right[:, : n + 1])[:, 1:]
        z = torch.bmm(alpha.transpose(1, 2), images[:, :n]).squeeze(1)


@torch.no_grad()
def fixed_point(f, z, iterations):
    """The best of `iterations` steps z <- f(z)."""
    fz = f(z)
    best = Best(z, fz, fz - z)
    for _ in range(iterations):
        z, fz = fz, f(fz)
        best.judge(z, fz, fz - z)
    return best.z
