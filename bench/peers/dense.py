# SPDX-License-Identifier: MIT
"""The dense map z = tanh(W z + x) of dense_tanh.hpp, z being (batch, D)."""

import torch


class DenseTanh:
    def __init__(self, tensors):
        self.w = tensors["W"]
        self.w_transposed = self.w.t().contiguous()
        self.x = tensors["x"]

    def start(self):
        return torch.zeros_like(self.x)

    def __call__(self, z):
        if len(z) == 1:  # BLAS's product with a vector takes half the time of one with a matrix
            return torch.addmv(self.x[0], self.w, z[0]).tanh_().unsqueeze(0)
        return torch.addmm(self.x, z, self.w_transposed).tanh_()
