# SPDX-License-Identifier: MIT
"""H = -I + sum_i u_i v_i^T, one H a sample: u and v are (batch, memory, D), allocated once.

Three formulations of the two products, for choices.py to compare. All read each array once.
"""

import torch


class Einsum:
    """As locuslab/deq writes it; torch turns it into batched matrix products."""

    @staticmethod
    def project(basis, x):
        return torch.einsum("bkd,bd->bk", basis, x)

    @staticmethod
    def combine(basis, c, y):
        return y.add_(torch.einsum("bkd,bk->bd", basis, c))


class Bmm:
    """Batched matrix products, the sum in the product."""

    @staticmethod
    def project(basis, x):
        return torch.bmm(basis, x.unsqueeze(2)).squeeze(2)

    @staticmethod
    def combine(basis, c, y):
        y.unsqueeze(1).baddbmm_(c.unsqueeze(1), basis)
        return y


class Mv:
    """One matrix-vector product of BLAS a sample, in a Python loop."""

    @staticmethod
    def project(basis, x):
        c = x.new_empty(basis.shape[:2])
        for i in range(len(x)):
            torch.mv(basis[i], x[i], out=c[i])
        return c

    @staticmethod
    def combine(basis, c, y):
        for i in range(len(y)):
            y[i].addmv_(basis[i].t(), c[i])
        return y


class LowRank:
    """The inverse Jacobian that Broyden's method builds."""

    def __init__(self, batch, memory, dim, products):
        self.u = torch.empty(batch, memory, dim)
        self.v = torch.empty(batch, memory, dim)
        self.rank = 0
        self.products = products

    def apply(self, x):
        """H x"""
        if self.rank == 0:
            return -x
        c = self.products.project(self.v[:, : self.rank], x)
        return self.products.combine(self.u[:, : self.rank], c, -x)

    def apply_transpose(self, x):
        """H^T x"""
        if self.rank == 0:
            return -x
        c = self.products.project(self.u[:, : self.rank], x)
        return self.products.combine(self.v[:, : self.rank], c, -x)
