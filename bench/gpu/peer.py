# SPDX-License-Identifier: MIT
"""What PyTorch takes on this GPU for the work of gpu_bench.cu; started by run.sh.

    peer.py --data DIR --json FILE [--seconds S] [--deadline S] [--precision P]... [--part PART]...

DIR holds what gpu_bench --export has written. Results have the names that gpu_bench gives them, but
for the last part of a step's: step_eager, step_graph (the same as one CUDA graph) and step_compiled
(f through torch.compile, then one CUDA graph if that works); f and inference have `_compiled`, too.
FILE is written again after each result, so that it is worth something when the time is over. What
fails is in it with its reason. Without a torch that has CUDA, says so and exits with 0.

The peer is the network and the solver of bench/peers in the form that suits a GPU: channels last,
weights brought into their layout and precision once a pass rather than at every use, batched
products in Broyden's method, the best iterates chosen without asking the host. bf16 is autocast of
stem, f and head, which has norms in float32; `_throughout` has all of f in bfloat16. The solver
computes in float32, as ours does. What it keeps is not the same: the peer pairs of vectors in
float32, ours steps alone, half of the bytes, and in bf16 those as bfloat16, a quarter.

--device cpu tries this program out where there is no GPU.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "peers"))

try:
    import torch
    import torch.nn.functional as F
except ImportError as missing:
    print(f"peer: no PyTorch here, nothing to compare with: {missing}")
    sys.exit(0)

import broyden
import gradients
from best import Best, relative_residual
from low_rank import Bmm, Mul
from mdeq import CHANNELS, GROUPS, Mdeq
from safetensors import load

PRECISIONS = ["bf16", "tf32", "strict"]
PARTS = ["model", "convolutions", "compiled"]


class BestWithoutHost(Best):
    def judge(self, z, fz, g):
        relative = relative_residual(fz, g)
        better = relative < self.relative
        self.z = torch.where(better.unsqueeze(1), z, self.z)
        self.relative = torch.minimum(relative, self.relative)


class GpuMdeq(Mdeq):
    """`way` has "compiled" in it: f goes through torch.compile; "throughout": it is in bfloat16 but
    for the state."""

    def __init__(self, size, tensors, device, bf16, way):
        super().__init__(size, {name: t.to(device) for name, t in tensors.items()},
                         channels_last=True)
        self.device_type, self.bf16 = device, bf16
        self.compiled, self.throughout = "compiled" in way, "throughout" in way

    def autocast(self, enabled=True):
        return torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.bf16 and enabled)

    def effective(self):
        theta = super().effective()
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        others = torch.bfloat16 if self.throughout else torch.float32
        return {name: t.to(dtype=dtype, memory_format=torch.channels_last) if t.dim() == 4
                else t.to(others) for name, t in theta.items()}

    def stem(self, images, train):
        with self.autocast():
            # f adds it to its own numbers, of which there may be more.
            return super().stem(images, train).float()

    def head(self, z, train):
        with self.autocast():
            return super().head(z, train).float()

    def function(self, theta, x, masks=None):
        dtype = torch.bfloat16 if self.throughout else torch.float32
        plain = super().function(theta, x.to(dtype), masks and [m.to(dtype) for m in masks])

        def f(z):
            with self.autocast(not self.throughout):
                return plain(z.to(dtype)).float()

        return torch.compile(f, dynamic=False) if self.compiled else f


class Bench:
    def __init__(self, options):
        self.o = options
        self.cuda = options.device == "cuda"
        self.end = time.monotonic() + options.deadline
        self.results = {}
        self.about = {"torch": torch.__version__, "python": sys.version.split()[0]}
        if self.cuda:
            properties = torch.cuda.get_device_properties(0)
            self.about.update(device=properties.name, cuda=torch.version.cuda,
                              cudnn=torch.backends.cudnn.version())
            torch.backends.cudnn.benchmark = True

    # Results ---------------------------------------------------------------------------------------

    def write(self):
        temporary = pathlib.Path(self.o.json + ".new")
        temporary.write_text(json.dumps({"about": self.about, "results": self.results}, indent=1) + "\n")
        temporary.replace(self.o.json)

    def attempt(self, name, work, needs=10):
        """Adds what work() returns, or why it returns nothing. `needs` seconds."""
        if time.monotonic() + needs > self.end:
            self.results[name] = {"skipped": "no time"}
        else:
            try:
                self.results[name] = work()
            except Exception as e:  # whatever PyTorch cannot do here is a result
                reason = (str(e).strip() or repr(e)).splitlines()[0][:300]
                self.results[name] = {"error": f"{type(e).__name__}: {reason}"}
        result = self.results[name]
        shown = (f"{1e6 * result['seconds']:11.3f} us" if "seconds" in result
                 else next(f"{k}: {v}" for k, v in result.items()))
        print(f"{name:<52} {shown}", file=sys.stderr, flush=True)
        self.write()
        return result

    # Time and memory -------------------------------------------------------------------------------

    def once(self, work, calls):
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(calls):
                work()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)

    @staticmethod
    def calls_for(seconds):
        return int(min(max(5e-3 / max(seconds, 1e-9), 1), 100))

    def seconds(self, work):
        """The same rules as seconds_of in gpu_bench.cu."""
        self.once(work, 2)
        calls = self.calls_for(self.once(work, 1))
        times, spent = [], 0.0
        while (len(times) < 3 or spent < self.o.seconds
               or (len(times) < 5 and spent < 4 * self.o.seconds)):
            t = self.once(work, calls)
            spent += t
            times.append(t / calls)
        return statistics.median(times)

    def graph(self, work, calls=1):
        """A CUDA graph of `calls` calls."""
        if not self.cuda:
            raise RuntimeError("CUDA graphs need CUDA")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                work()
        return graph

    def recorded(self, work):
        """Seconds of short work as part of a graph, so that the host's share is nothing; at once
        where that fails."""
        self.once(work, 2)
        calls = self.calls_for(self.once(work, 1))
        try:
            graph = self.graph(work, calls)
        except RuntimeError as e:
            return {"seconds": self.seconds(work), "recorded": 0, "why": str(e).splitlines()[0][:300]}
        return {"seconds": self.seconds(graph.replay) / calls, "recorded": 1}

    def forget(self):
        for h in (gradients.forward, gradients.backward):
            h.u = h.v = torch.empty(0)
        self.from_here_on()

    def from_here_on(self):
        """Memory. After work has been done once: what cuDNN needed to choose its algorithms is not
        what the work needs."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self):
        if not self.cuda:
            return {}
        return {"peak_bytes": torch.cuda.max_memory_allocated(),
                "device_bytes": torch.cuda.max_memory_reserved(), "tuned": 1}

    # Pieces of work --------------------------------------------------------------------------------

    def set_precision(self, precision):
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        # Broyden's products are ours in float32.
        torch.backends.cuda.matmul.allow_tf32 = False

    def network(self, size, precision, way=""):
        tensors = load(str(pathlib.Path(self.o.data) / f"{size}.safetensors"))
        device = self.o.device
        images = tensors.pop("images").to(device).contiguous(memory_format=torch.channels_last)
        labels = tensors.pop("labels").to(device)
        masks = [tensors.pop(f"mask.{i}").to(device) for i in range(len(CHANNELS[size]))]
        z = tensors.pop("z").to(device)
        model = GpuMdeq(size, tensors, device, precision == "bf16", way)
        # The file has a state's branches as (C, H, W).
        maps = [flat.unflatten(1, (c, 32 >> i, 32 >> i)) for i, (c, flat) in
                enumerate(zip(model.channels, z.split(model.sizes, dim=1)))]
        return model, images, labels, masks, model.join(maps)

    def step(self, size, precision, how):
        self.set_precision(precision)
        self.forget()
        model, images, labels, masks, _ = self.network(size, precision, how)
        # A rate of 0, as in gpu_bench.
        fused = {"fused": True, "capturable": True} if self.cuda else {}
        adam = torch.optim.Adam(model.parameters, lr=0.0, **fused)

        def train():
            loss, z = gradients.training_step(model, "gdeq", images, labels, masks)
            adam.step()
            return loss, z

        def norms(loss, z):
            return {"loss": float(loss), "z": float(z.double().norm())}

        result = {"recorded": 0, **norms(*train())}
        self.from_here_on()
        work, kept = train, []

        def keep():
            kept.clear()
            kept.extend(train())

        if how != "step_eager":
            try:
                work = self.graph(keep).replay
                result["recorded"] = 1
            except RuntimeError as e:
                if "graph" in how:
                    raise
                result["why"] = str(e).splitlines()[0][:300]
        result["seconds"] = self.seconds(work)
        result["images_per_second"] = len(images) / result["seconds"]
        result.update(self.memory())
        if result["recorded"]:
            result.update(norms(*kept))  # where each launch has put them
        return result

    def alone(self, size, precision, way):
        """f."""
        self.set_precision(precision)
        self.forget()
        model, images, _, _, z = self.network(size, precision, way)
        with torch.no_grad():
            theta = {name: t.detach() for name, t in model.effective().items()}
            f = model.function(theta, model.stem(images, train=False))
            out = float(f(z).double().norm())
            work = lambda: f(z)
            result = {"seconds": self.seconds(work)} if way == "_eager" else self.recorded(work)
        return {**result, "out": out, "images_per_second": len(images) / result["seconds"]}

    def inference(self, size, precision, batch, way):
        self.set_precision(precision)
        self.forget()
        model, images, *_ = self.network(size, precision, way)
        images = images[:batch].contiguous(memory_format=torch.channels_last)
        work = lambda: gradients.logits(model, images)
        result = {"logits": float(work()[0].double().norm())}
        self.from_here_on()
        result["seconds"] = self.seconds(work if way == "_eager" else self.graph(work).replay)
        return {**result, "images_per_second": batch / result["seconds"], **self.memory()}

    def convolution(self, precision, v, what):
        self.set_precision(precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        batch = self.o.batch
        make = lambda *shape: torch.randn(shape, device=self.o.device).to(
            dtype=dtype, memory_format=torch.channels_last)
        x = make(batch, v["in"], v["side"], v["side"])
        w = make(v["out"], v["in"], v["kernel"], v["kernel"])
        stride, padding = v["stride"], v["kernel"] // 2

        def forward():
            return F.conv2d(x, w, stride=stride, padding=padding)

        def forward_with_statistics():
            u = forward()
            return u, torch.var_mean(u.unflatten(1, (v["groups"], -1)), dim=(2, 3, 4))

        dy = torch.randn_like(forward())
        gradient = lambda wanted: torch.ops.aten.convolution_backward(
            dy, x, w, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, wanted)
        work = {"forward": forward, "forward_with_statistics": forward_with_statistics,
                "input_gradient": lambda: gradient([True, False, False]),
                "weight_gradient": lambda: gradient([False, True, False])}[what]
        with torch.no_grad():
            return self.recorded(work)


def convolutions(size):
    """Every shape of convolution in f, by name; gpu_bench.cu has the same list."""
    channels, found = CHANNELS[size], {}

    def add(inner, outer, side, kernel, stride, groups):
        name = f"{inner}_{outer}_at_{side}_k{kernel}_s{stride}"
        found.setdefault(name, {"in": inner, "out": outer, "side": side, "kernel": kernel,
                                "stride": stride, "groups": groups})

    for i, c in enumerate(channels):
        add(c, 5 * c, 32 >> i, 3, 1, GROUPS)
        add(5 * c, c, 32 >> i, 3, 1, GROUPS)
    for i in range(len(channels)):
        for j in range(i):
            for q in range(j, i):
                add(channels[j], channels[i] if q + 1 == i else channels[j], 32 >> q, 3, 2, GROUPS)
    for i in range(len(channels)):
        for j in range(i + 1, len(channels)):
            add(channels[j], channels[i], 32 >> j, 1, 1, GROUPS)
    for i, c in enumerate(channels):
        add(c, c, 32 >> i, 1, 1, GROUPS // 2)
    return found


def choose_products(bench, size="large"):
    """The faster formulation of the low-rank products on this device."""
    dim = sum(c * (32 >> i) ** 2 for i, c in enumerate(CHANNELS[size]))
    basis = torch.randn(bench.o.batch, gradients.FORWARD, dim, device=bench.o.device)[:, :10]
    x = torch.randn(bench.o.batch, dim, device=bench.o.device)

    def both(formulation):
        c = formulation.project(basis, x)
        return formulation.combine(basis, 0 * c, x)

    with torch.inference_mode():
        times = {p: bench.seconds(lambda p=p: both(p)) for p in (Bmm, Mul)}
    best = min(times, key=times.get)
    bench.about["products"] = best.__name__
    for h in (gradients.forward, gradients.backward):
        h.products = best


def main():
    parser = argparse.ArgumentParser(prog="peer.py")
    parser.add_argument("--data", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds from the start")
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--size", action="append", choices=list(CHANNELS))
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    o = parser.parse_args()
    if o.device == "cuda" and not torch.cuda.is_available():
        print(f"peer: torch {torch.__version__} has no CUDA here, nothing to compare with")
        return
    precisions, parts = o.precision or PRECISIONS, o.part or PARTS
    sizes = [s for s in ("large", "tiny") if s in (o.size or CHANNELS)]
    broyden.Best = BestWithoutHost
    bench = Bench(o)
    choose_products(bench)

    there = [s for s in sizes if (pathlib.Path(o.data) / f"{s}.safetensors").exists()]
    for size in sizes:
        if size not in there and parts != ["convolutions"]:
            print(f"peer: no {size}.safetensors in {o.data}", file=sys.stderr)

    throughout = lambda p: ("", "_throughout") if p == "bf16" else ("",)

    def steps(sizes):
        for size in sizes:
            for p in precisions:
                for how in ("step_eager", *("step_graph" + way for way in throughout(p))):
                    bench.attempt(f"{p}/{size}/{how}", lambda: bench.step(size, p, how))

    def compiled_steps(sizes):
        for size in sizes:
            for p in precisions:
                for how in ("step_compiled" + way for way in throughout(p)):
                    bench.attempt(f"{p}/{size}/{how}", lambda: bench.step(size, p, how), needs=60)

    def pieces(sizes, compiled=False):
        for size in sizes:
            for p in precisions:
                for way in (["_compiled" + w for w in throughout(p)] if compiled
                            else ["_eager", *throughout(p)]):
                    needs = 30 if compiled else 10
                    bench.attempt(f"{p}/{size}/f{way}", lambda: bench.alone(size, p, way), needs)
                    for batch in sorted({1, o.batch}):
                        bench.attempt(f"{p}/{size}/inference_{batch}{way}",
                                      lambda: bench.inference(size, p, batch, way), needs)

    def all_convolutions(sizes, kernel):
        for size in sizes:
            for p in precisions:
                for name, v in convolutions(size).items():
                    for what in ("forward", "forward_with_statistics", "input_gradient",
                                 "weight_gradient"):
                        if v["kernel"] == kernel:
                            bench.attempt(f"{p}/{size}/conv/{name}/{what}",
                                          lambda: bench.convolution(p, v, what), needs=3)

    # What matters most comes first: time may be over at any point.
    for some in (["large"], ["tiny"]):
        chosen, with_data = ([s for s in some if s in known] for known in (sizes, there))
        if "model" in parts:
            steps(with_data)
        if "convolutions" in parts:
            all_convolutions(chosen, 3)
        if "compiled" in parts:
            compiled_steps(with_data)
        if "model" in parts:
            pieces(with_data)
        if "convolutions" in parts:
            all_convolutions(chosen, 1)
        if "compiled" in parts:
            pieces(with_data, compiled=True)


if __name__ == "__main__":
    main()
