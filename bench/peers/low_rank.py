# SPDX-License-Identifier: MIT
"""H = -I + sum_i u_i v_i^T, one H a sample: u and v are (batch, memory, D), allocated once.

Formulations of the two products, for choices.py to compare; `Fastest` is what the peer uses.
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


class Mul:
    """Elementwise, with a temporary of the size of the basis."""

    @staticmethod
    def project(basis, x):
        return (basis * x.unsqueeze(1)).sum(2)

    @staticmethod
    def combine(basis, c, y):
        return y.add_((basis * c.unsqueeze(2)).sum(1))


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


class Fastest:
    """What choices.py found: a loop of BLAS's products where they are long; elementwise where the
    temporary stays in the cache. Without MKL torch's batched products are a loop of general ones."""

    LONG = 8192

    @staticmethod
    def project(basis, x):
        return (Mv if x.shape[1] >= Fastest.LONG else Mul).project(basis, x)

    @staticmethod
    def combine(basis, c, y):
        return (Mv if y.shape[1] >= Fastest.LONG else Mul).combine(basis, c, y)


class LowRank:
    """The inverse Jacobian that Broyden's method builds. `reset` takes the memory of the last solve
    if it has the size."""

    def __init__(self, products=Fastest):
        self.products = products
        self.u = self.v = torch.empty(0)
        self.rank = 0

    def reset(self, batch, memory, dim, device="cpu"):
        if self.u.shape != (batch, memory, dim) or self.u.device != torch.device(device):
            self.u, self.v = (torch.empty(batch, memory, dim, device=device) for _ in range(2))
        self.rank = 0

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
