# SPDX-License-Identifier: MIT
"""Is the peer a fair opponent? Measures the published libraries against it, in turns, on the same
weights and data, under the settings of compare.py; fails unless both sides compute the same.

    git clone https://github.com/locuslab/torchdeq
    git clone https://github.com/locuslab/deq
    published.py --torchdeq torchdeq --locuslab-deq deq [--seconds S] [--rounds N]

Needs compare_cases, which compare.sh builds. Prints `published CASE LIBRARY ratio MEDIAN MIN MAX`,
the library's time over the peer's, so that more than 1 says that the peer is the faster opponent.
The dense cases and tiny_solve_32 run the library's solver on the peer's f. tiny_inference_32 and
tiny_step_implicit run locuslab/deq's network, and in torchdeq's DEQ module the peer's network.
"""

import argparse
import collections
import functools
import glob
import importlib
import importlib.util
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile
import typing
from unittest import mock

import torch
import torch.nn.functional as F
import yaml

import measure
from anderson import anderson, fixed_point
from best import Best, relative_residual
from broyden import broyden
from compare import OURS, SHORT, SLEEP, SPIN, run
from gradients import BACKWARD, FORWARD
from low_rank import LowRank
from peer import DENSE_ITERATIONS, THREADS, DenseCase, MdeqCase
from safetensors import load

# Case, the case of compare_cases that has its data, and how far apart the results may be. The
# gradient by two solves that do not contract is as far from itself where the peer takes the
# original's six passes rather than four (broyden.ORIGINAL).
CASES = {
    "broyden_512_1": ("broyden_512_1", 1e-3),
    "broyden_512_32": ("broyden_512_32", 1e-3),
    "broyden_512_128": ("broyden_512_128", 1e-3),
    "anderson_512_32": ("anderson_512_32", 1e-3),
    "fixed_point_512_32": ("fixed_point_512_32", 1e-3),
    "tiny_solve_32": ("tiny_f_32", 1e-3),
    "tiny_inference_32": ("tiny_inference_32", 1e-3),
    "tiny_step_implicit": ("tiny_step_implicit", 5e-2),
}
MEMORY = 7  # of Anderson's method


class BestOfBatch:
    """Best as locuslab/deq has it: one iterate for the whole batch, the first one left out."""

    def __init__(self, z, fz, g):
        self.z, self.relative = z, math.inf

    def judge(self, z, fz, g):
        relative = float(g.norm() / (fz.norm() + 1e-9))
        if relative < self.relative:
            self.z, self.relative = z, relative


class Solver(typing.NamedTuple):
    run: typing.Callable  # (f, z, iterations) -> the state, or f of it
    returns_f: bool = False
    note: str = ""
    variant: str = ""  # a suffix of the library's name


class Peer:
    name, best = "peer", Best

    def solvers(self, method):
        return [Solver({"broyden": functools.partial(broyden, h=LowRank()),
                        "anderson": functools.partial(anderson, memory=MEMORY),
                        "fixed_point": fixed_point}[method])]

    def inference(self, case):
        return lambda: case.work()[:1]

    def step(self, case):
        return lambda: case.work() and [p.grad for p in case.model.parameters]


class TorchDeq:
    name, best = "torchdeq", Best

    def __init__(self, checkout):
        sys.path.insert(0, checkout)
        self.library = importlib.import_module("torchdeq")

    def solvers(self, method):
        def solver(name, more, *details):
            solve = self.library.get_solver(name)
            return Solver(lambda f, z, iterations: solve(
                f, z, max_iter=iterations + more, tol=0, stop_mode="rel", m=MEMORY)[0], *details)

        if method == "broyden":
            return [solver("broyden", 0)]
        if method == "anderson":  # where max_iter counts evaluations
            return [solver("anderson", 1, True)]
        return [solver("fixed_point_iter", 1, True),
                solver("simple_fixed_point_iter", 1, True, "no residual but the last", "/simple")]

    def step(self, case):
        deq = self.library.get_deq(
            f_solver="broyden", f_max_iter=FORWARD, f_tol=0, f_stop_mode="rel", hook_ift=True,
            b_solver="broyden", b_max_iter=BACKWARD, b_tol=0, b_stop_mode="rel")
        model = case.model

        def work():
            for p in model.parameters:
                p.grad = None
            x = model.stem(case.images, train=True)
            f = model.function(model.effective(), x, case.masks)
            states, _ = deq(f, model.start(len(case.images)))
            F.cross_entropy(model.head(states[-1], train=True), case.labels).backward()
            return [p.grad for p in model.parameters]

        return work


class LocuslabDeq:
    name, best = "locuslab/deq", BestOfBatch

    def __init__(self, checkout):
        self.checkout = pathlib.Path(checkout)
        for module in ("termcolor", "scipy", "scipy.optimize"):
            sys.modules.setdefault(module, mock.MagicMock())  # imported, but for messages
        torch.cuda.synchronize = lambda: None  # called on a CPU too
        torch.solve = lambda b, a: (torch.linalg.solve(a, b),)  # which torch has no more
        vision = self.checkout / "MDEQ-Vision/lib"
        sys.path[:0] = [str(self.checkout), str(vision), str(vision / "models")]
        self.library = importlib.import_module("lib.solvers")

    def solvers(self, method):
        def solver(solve, more):
            return Solver(lambda f, z, iterations: solve(  # its states are (N, D, 1)
                lambda y: f(y.squeeze(2)).unsqueeze(2), z.unsqueeze(2), threshold=iterations + more,
                eps=0)["result"].squeeze(2), note="the best iterate of the batch")

        if method == "broyden":
            return [solver(self.library.broyden, 0)]
        if method == "anderson":  # where threshold counts evaluations
            return [solver(functools.partial(self.library.anderson, m=MEMORY), 1)]
        return []

    def network(self, case):
        """Its TINY network with the case's weights and dropout masks."""
        spec = importlib.util.spec_from_file_location(  # by path: the peer has an mdeq.py as well
            "locuslab_mdeq", self.checkout / "MDEQ-Vision/lib/models/mdeq.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = yaml.safe_load(
            (self.checkout / "MDEQ-Vision/experiments/cifar/cls_mdeq_TINY.yaml").read_text())
        config["MODEL"].update(BLOCK_GN_AFFINE=True, FUSE_GN_AFFINE=True)  # of its default.py
        net = module.MDEQClsNet(config)
        net.load_state_dict(case.weights)
        net.f_solver = net.b_solver = functools.partial(self.library.broyden, eps=0)
        for branch, mask in zip(net.fullstage.branches, case.masks):
            drop = branch.blocks[0].drop
            drop.mask, drop.reset_mask = mask, lambda *shape: None
        return net

    def inference(self, case):
        net = self.network(case).eval()
        return torch.inference_mode()(lambda: [net(case.images, train_step=-1)[0]])

    def step(self, case):
        net = self.network(case).train()
        parameters = dict(net.named_parameters())

        def work():
            for p in parameters.values():
                p.grad = None
            logits = net(case.images, train_step=-1, compute_jac_loss=False)[0]
            F.cross_entropy(logits, case.labels).backward()
            return [parameters[n].grad for n in case.model.p if n in parameters]

        return work


class Counted:
    """f, and how often it was called; torchdeq passes a damping factor of 1."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, z, tau=1):
        self.calls += 1
        return self.f(z)


# A side's work in a case, which returns tensors; of a solve f is known.
Work = collections.namedtuple("Work", "side run solver f")


def works(case, what, sides):
    """The sides' work, the peer's first."""
    if what in ("inference", "step"):
        return [Work(side, getattr(side, what)(case), None, None)
                for side in sides if hasattr(side, what)]
    if isinstance(case, DenseCase):
        method, iterations, start = case.method, DENSE_ITERATIONS, case.f.start
    else:
        method, iterations = "broyden", FORWARD
        start = functools.partial(case.model.start, len(case.images))
    f = Counted(case.f)
    return [Work(side, torch.no_grad()(lambda run=solver.run: [run(f, start(), iterations)]), solver, f)
            for side in sides for solver in side.solvers(method)]


def examine(work, best=Best):
    """The tensors to compare, of a solve f(z); and words on a solve."""
    calls = work.f.calls if work.f else 0
    with mock.patch("broyden.Best", best):
        result = [t.detach().clone() for t in work.run()]
    if not work.f:
        return result, ""
    calls, fz = work.f.calls - calls, work.f(result[0])
    residual = float(relative_residual(fz, fz - result[0]).max())
    return (result if work.solver.returns_f else [fz],
            f"{calls} evaluations, residual {residual:.1e}")


def apart(a, b):
    """Relative distance of two lists of tensors."""
    square = lambda tensors: sum(float(t.double().square().sum()) for t in tensors)
    return (square([x - y for x, y in zip(a, b, strict=True)]) / square(a)) ** 0.5


def measure_case(name, file, sides, seconds):
    """All sides once, the peer first, as lines of JSON."""
    torch.set_num_threads(THREADS)
    data, tolerance = CASES[name]
    tensors = load(file)
    case = (DenseCase if "W" in tensors else MdeqCase)(data, tensors)
    case.weights = tensors  # less the data, which MdeqCase takes out
    all_works = works(case, name.split("_")[1], sides)
    for work in all_works:
        result, facts = examine(work)
        distance = apart(examine(all_works[0], work.side.best)[0], result)
        if not distance <= tolerance:
            sys.exit(f"published: {name}: {work.side.name} is {distance:.1e} apart: not the same work")
        solver = work.solver or Solver(work.run)
        print(json.dumps({"library": work.side.name + solver.variant, "note": solver.note,
                          "facts": facts, "apart": distance,
                          "seconds": measure.times(work.run, seconds)[0]}))


def compare(name, rounds, file):
    """Short work runs in both environments; each side's faster time counts, as in compare.py."""
    run([OURS, CASES[name][0], "--export", file])
    blas = glob.glob("/usr/lib/*/openblas-openmp")  # as in compare.sh
    paths = ":".join(filter(None, [*blas, os.environ.get("LD_LIBRARY_PATH")]))

    def sides(environment):
        out = run([sys.executable, *sys.argv, "--one", name, file],
                  {**environment, "LD_LIBRARY_PATH": paths})
        return [json.loads(line) for line in out.splitlines()]

    def faster():
        slept = sides(SLEEP)
        if slept[0]["seconds"] >= SHORT:
            return slept
        return [min(pair, key=lambda side: side["seconds"]) for pair in zip(slept, sides(SPIN))]

    results = [faster() for _ in range(rounds)]
    peer, *libraries = zip(*results)
    for library in libraries:
        ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in zip(library, peer)]
        ms = [1e3 * statistics.median(r["seconds"] for r in side) for side in (library, peer)]
        first = library[0]
        print(f"published {name} {first['library']} ratio {statistics.median(ratios):.3f}"
              f" {min(ratios):.3f} {max(ratios):.3f}")
        print(f"  {ms[0]:.3f} ms, the peer {ms[1]:.3f} ms; results {first['apart']:.1e} apart",
              *filter(None, [first["facts"], first["facts"] and "the peer " + peer[0]["facts"],
                             first["note"]]), sep="; ", flush=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    arguments.add_argument("--torchdeq", required=True, metavar="CHECKOUT")
    arguments.add_argument("--locuslab-deq", required=True, metavar="CHECKOUT")
    arguments.add_argument("--seconds", type=float, default=0.3, help="of each measurement, about")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--one", nargs=2, metavar=("CASE", "FILE"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.one:
        sides = [Peer(), TorchDeq(options.torchdeq), LocuslabDeq(options.locuslab_deq)]
        return measure_case(*options.one, sides, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases or CASES:
            compare(name, options.rounds, pathlib.Path(folder) / "case.safetensors")


if __name__ == "__main__":
    main()
