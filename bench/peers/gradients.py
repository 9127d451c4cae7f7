# SPDX-License-Identifier: MIT
"""A training pass of an MDEQ: forward by Broyden's method, one recorded application of f, backward
by one of four methods. They differ in the adjoint w ~ (I - J)^-T h alone."""

import torch
import torch.nn.functional as F

from broyden import broyden
from low_rank import LowRank

FORWARD, BACKWARD = 18, 20


# Allocated once: the solves' low-rank inverses.
forward, backward = LowRank(), LowRank()


def adjoint(method, h, vjp):
    """w of h = dl/dz. `vjp` is the product with J^T."""
    if method == "jfb":
        return h
    if method == "gdeq":
        return -forward.apply_transpose(h)  # the forward solve's inverse
    if method == "npg":  # k = 5, lambda = 1/2
        w = h
        for _ in range(4):
            w = vjp(w).add_(w).mul_(0.5).add_(h)
        return 0.5 * w
    assert method == "implicit"
    return broyden(lambda w: vjp(w) + h, torch.zeros_like(h), BACKWARD, backward)


def training_step(model, method, images, labels, masks):
    """Fills the gradients of the model's parameters; the loss, a tensor, and z."""
    for p in model.parameters:
        p.grad = None
    theta = model.effective()
    x = model.stem(images, train=True)
    with torch.no_grad():
        f = model.function({name: t.detach() for name, t in theta.items()}, x.detach(), masks)
        z = broyden(f, model.start(len(images)), FORWARD, forward)
    # Only products with J^T need the graph to reach z.
    z.requires_grad_(method in ("npg", "implicit"))
    fz = model.function(theta, x, masks)(z)
    h = fz.detach().requires_grad_()
    loss = F.cross_entropy(model.head(h, train=True), labels)
    loss.backward()
    vjp = lambda w: torch.autograd.grad(fz, z, w, retain_graph=True)[0]
    w = adjoint(method, h.grad, vjp)
    fz.backward(w, inputs=model.before_head)
    return loss.detach(), z


def training_pass(model, method, images, labels, masks):
    """The same, the loss a number."""
    loss, z = training_step(model, method, images, labels, masks)
    return float(loss), z


@torch.inference_mode()
def logits(model, images):
    """Evaluation: the head sees the solver's result."""
    f = model.function(model.effective(), model.stem(images, train=False))
    z = broyden(f, model.start(len(images)), FORWARD, forward)
    return model.head(z, train=False), z
