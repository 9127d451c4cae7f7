# SPDX-License-Identifier: MIT
"""MDEQ for CIFAR-10, as the original PyTorch code builds it, on tensors under its state_dict's
names. All operations that may work in place do. The state is (N, D) for the solver; `channels_last`
decides the layout of the convolutions, and with it the order of numbers within the state; NCHW is
the faster one for torch 1.13 (choices.py layout).
"""

import torch
import torch.nn.functional as F

CHANNELS = {"tiny": [24, 24], "large": [32, 64, 128, 256]}
GROUPS = 8


class Mdeq:
    def __init__(self, size, tensors, channels_last=False):
        self.channels = CHANNELS[size]
        self.p = {name: t for name, t in tensors.items() if t.is_floating_point()}
        self.parameters = [t for name, t in self.p.items() if "running_" not in name]
        self.before_head = [t for name, t in self.p.items() if "running_" not in name
                            and name.startswith(("downsample.", "stage0.", "fullstage."))]
        self.channels_last = channels_last
        if channels_last:
            for name, t in self.p.items():
                if t.dim() == 4:
                    t.data = t.data.contiguous(memory_format=torch.channels_last)
        for t in self.parameters:
            t.requires_grad_()
        self.sizes = [c * (32 >> i) ** 2 for i, c in enumerate(self.channels)]

    def start(self, count):
        return self.parameters[0].new_zeros(count, sum(self.sizes))

    def split(self, z):
        """The branches (N, C_i, H_i, W_i) of a state; no copy."""
        branches = []
        for i, (c, flat) in enumerate(zip(self.channels, z.split(self.sizes, dim=1))):
            side = 32 >> i
            if self.channels_last:
                branches.append(flat.unflatten(1, (side, side, c)).permute(0, 3, 1, 2))
            else:
                branches.append(flat.unflatten(1, (c, side, side)))
        return branches

    def join(self, branches):
        """The state (N, D) of its branches."""
        if self.channels_last:
            branches = [b.permute(0, 2, 3, 1) for b in branches]
        return torch.cat([b.flatten(1) for b in branches], dim=1)

    # Stem and head ---------------------------------------------------------------------------------

    def batch_norm(self, a, name, train):
        return F.batch_norm(a, self.p[name + ".running_mean"], self.p[name + ".running_var"],
                            self.p.get(name + ".weight"), self.p.get(name + ".bias"), train)

    def stem(self, images, train):
        a = images
        for conv, norm in (("downsample.0", "downsample.1"), ("downsample.3", "downsample.4"),
                           ("stage0.0", "stage0.1"))[: 3 if len(self.channels) > 2 else 2]:
            weight = self.p[conv + ".weight"]
            a = F.conv2d(a, weight, padding=weight.shape[2] // 2)
            a = self.batch_norm(a, norm, train).relu_()
        return a

    def bottleneck(self, y, name, train):
        conv = lambda a, i: F.conv2d(a, self.p[f"{name}conv{i}.weight"], padding=1 if i == 2 else 0)
        norm = lambda a, i: self.batch_norm(a, f"{name}bn{i}", train)
        a = norm(conv(y, 1), 1).relu_()
        a = norm(conv(a, 2), 2).relu_()
        a = norm(conv(a, 3), 3)
        residual = F.conv2d(y, self.p[name + "downsample.0.weight"])
        return a.add_(self.batch_norm(residual, name + "downsample.1", train)).relu_()

    def head(self, z, train):
        widened = [self.bottleneck(y, f"incre_modules.{i}.0.", train)
                   for i, y in enumerate(self.split(z))]
        t = widened[0]
        for i, w in enumerate(widened[1:]):
            name = f"downsamp_modules.{i}."
            t = F.conv2d(t, self.p[name + "0.weight"], self.p[name + "0.bias"], stride=2, padding=1)
            t = self.batch_norm(t, name + "1", train).relu_() + w
        t = F.conv2d(t, self.p["final_layer.0.weight"], self.p["final_layer.0.bias"])
        t = self.batch_norm(t, "final_layer.1", train).relu_().mean((2, 3))
        return F.linear(t, self.p["classifier.weight"], self.p["classifier.bias"])

    # f ---------------------------------------------------------------------------------------------

    def effective(self):
        """The parameters of f with the weight norm w = g v / ||v|| carried out; once a pass."""
        theta = {}
        for name, t in self.p.items():
            if not name.startswith("fullstage.") or name.endswith(".weight_g"):
                continue
            if name.endswith(".weight_v"):
                base = name[: -len("_v")]
                theta[base] = torch._weight_norm(t, self.p[base + "_g"], 0)
            else:
                theta[name] = t
        return theta

    def function(self, theta, x, masks=None):
        """f(z) for given parameters, injection and dropout masks."""

        def norm(a, name):
            return F.group_norm(a, GROUPS, theta[name + ".weight"], theta[name + ".bias"])

        def block(i, z):
            name = f"fullstage.branches.{i}.blocks.0."
            a = F.conv2d(z, theta[name + "conv1.weight"], padding=1)
            a = norm(a, name + "gn1").relu_()
            a = F.conv2d(a, theta[name + "conv2.weight"], padding=1)
            if masks:
                a = a.mul_(masks[i])
            if i == 0:
                a = a.add_(x)
            a = norm(a, name + "gn2").add_(z).relu_()
            return norm(a, name + "gn3")

        def send(i, j, t):
            """T_ij(b_j), from branch j to branch i."""
            name = f"fullstage.fuse_layers.{i}.{j}.net."
            if j > i:
                t = norm(F.conv2d(t, theta[name + "conv.weight"]), name + "gnorm")
                return F.interpolate(t, scale_factor=2 ** (j - i), mode="nearest")
            for q in range(i - j):
                t = F.conv2d(t, theta[f"{name}{q}.conv.weight"], stride=2, padding=1)
                t = norm(t, f"{name}{q}.gnorm")
                if q + 1 < i - j:
                    t = t.relu_()
            return t

        def f(z):
            b = [block(i, y) for i, y in enumerate(self.split(z))]
            out = []
            for i in range(len(b)):
                s = send(i, 0, b[0])
                for j, t in enumerate(b[1:], 1):
                    s = s + send(i, j, t) if j == 1 else s.add_(send(i, j, t))
                name = f"fullstage.post_fuse_layers.{i}.conv.weight"
                out.append(F.group_norm(F.conv2d(s.relu_(), theta[name]), GROUPS // 2))
            return self.join(out)

        return f
