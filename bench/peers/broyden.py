# SPDX-License-Identifier: MIT
"""Broyden's method for g(z) = f(z) - z, a batch at a time, as the original MDEQ code has it: full
steps, H_0 = -I. Of each sample the iterate with the lowest relative residual is returned; the
original takes that of the batch, at the same cost as long as the residuals fall.

Where the original forms H dg, this uses H g_old = -d: H dg = H g_new + d, and the next direction
follows from the same product. That saves two of six passes over the stored pairs; z does not change
but for rounding. ORIGINAL = True takes the six passes.
"""

import torch

from best import Best

ORIGINAL = False


def dots(a, b):
    """a . b, sample by sample."""
    return (a * b).sum(1, keepdim=True)


def safe_reciprocal(x):
    """1 / x, or 0 where that is no number: such a pair is left out."""
    return torch.nan_to_num(1 / x, nan=0.0, posinf=0.0, neginf=0.0)


@torch.no_grad()
def broyden(f, z, iterations, h, memory=None):
    """The best of `iterations` steps from z, with no tolerance; leaves the inverse in h. With less
    memory than steps the newest pairs overwrite the oldest."""
    memory = memory or iterations
    h.reset(len(z), memory, z.shape[1], z.device)
    fz = f(z)
    g = fz - z
    best = Best(z, fz, g)
    d = g
    for k in range(iterations):
        z = z + d
        fz = f(z)
        g_old, g = g, fz - z
        best.judge(z, fz, g)
        v = h.apply_transpose(d)
        vg = dots(v, g)
        scale = safe_reciprocal(vg - dots(v, g_old))
        if ORIGINAL:
            u = scale * (d - h.apply(g - g_old))
        else:
            hg = h.apply(g)
            u = -scale * hg
        slot = k % memory
        h.u[:, slot], h.v[:, slot] = u, v
        h.rank = min(k + 1, memory)
        forgets = k >= memory  # then the product with the old pairs is not the one that is needed
        d = -h.apply(g) if ORIGINAL or forgets else torch.addcmul(hg, u, vg).neg_()
    return best.z
