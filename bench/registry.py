"""The list of contestants, in the order they are printed."""

from __future__ import annotations

from collections import Counter
from functools import partial

from bench import peers, peers_cuda, peers_external
from bench.operands import Problem
from bench.peers import EAGER, OURS, Peer

COMPILE = ("no", "default", "max-autotune")


def contestants(compile_: str, threads: int) -> list[Peer]:
    """This package first, then eager, then every other peer. torch.compile takes seconds per shape, so it takes part
    where asked and, as what it compiles is for one number of threads, with `threads` only."""
    wanted = COMPILE.index(compile_)

    def compiled(name: str, level: int, **options: object) -> Peer:
        def missing(problem: Problem) -> str | None:
            if wanted < level:
                return f"slow to prepare: ask with --compile {COMPILE[level]}"
            return None if problem.threads == threads else f"slow to prepare: takes part with {threads} threads only"

        return Peer(name, partial(peers.compiled, **options), missing)

    return [
        Peer(OURS, peers.ours),
        Peer(EAGER, peers.eager),
        Peer("F.linear", peers.linear, layouts=("nhwc",)),
        Peer("baddbmm", peers.baddbmm, layouts=("nchw",)),
        Peer("mkldnn pointwise", peers.mkldnn, peers.mkldnn_missing, devices=("cpu",)),
        Peer("mkldnn prepacked", partial(peers.mkldnn, prepacked=True), peers.mkldnn_missing, devices=("cpu",)),
        Peer("cudnn_convolution_relu", peers_cuda.cudnn_relu, peers.inference_only, devices=("cuda",)),
        Peer("_addmm_activation", peers_cuda.addmm_relu, peers_cuda.addmm_missing, ("nhwc",), ("cuda",)),
        compiled("torch.compile", 1),
        compiled("torch.compile max-autotune", 2, mode="max-autotune-no-cudagraphs"),
        Peer("ONNX Runtime", peers_external.onnxruntime, peers_external.onnxruntime_missing, ("nchw",), ("cpu",), True),
        Peer("OpenVINO", peers_external.openvino, peers_external.openvino_missing, devices=("cpu",), spins=True),
    ]


class Roster:
    """Sorts contestants into those that run a problem and those that do not, and remembers why."""

    def __init__(self, compile_: str = "no", threads: int = 0) -> None:
        self.peers = contestants(compile_, threads)
        self.absent: Counter[tuple[str, str]] = Counter()

    def present(self, problem: Problem) -> list[Peer]:
        running = []
        for peer in self.peers:
            if problem.device not in peer.devices or problem.layout not in peer.layouts:
                continue
            if reason := peer.missing(problem):
                self.drop(peer, reason)
            else:
                running.append(peer)
        return running

    def drop(self, peer: Peer, reason: str) -> None:
        self.absent[peer.name, reason] += 1
