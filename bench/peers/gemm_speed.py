#!/usr/bin/env python3
"""DeepGEMM (the one in vLLM's wheel) and cuBLASLt's block-scaled matmul on the four linear layers of Llama-3.1-8B: what
`gemm_gpu_bench table` and `load` measure.

    bench/peers/gemm_speed.py [--tokens 1 8 16 64 128 256 512 1024 4096] [--load 8192]

Random values, weights rotated past L2, all calls in one CUDA graph, median of its replays; from 128 tokens on after a
rest of 0.3 s. --load: a second of nothing else, then the time of the next, under the power limit. Every result is held
against FP32 first. Prints one line of JSON for each measurement, times in microseconds.
"""

import argparse
import json
import math
import statistics
import sys
import time

try:
    import torch
    from torch.nn.functional import ScalingType, scaled_mm
except ImportError as error:
    sys.exit(f"{sys.argv[0]}: needs torch 2.11.0 and vLLM 0.24.0: {error}")

LAYERS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
BLOCK = 128
ROTATED = 400_000_000  # bytes of weights, as in gemm_gpu_bench
LARGEST_ERROR = 0.05  # of block FP8 against FP32: 0.037


def quantize_tokens(x):
    """E4M3 codes [M, K] and scales [M, K / 128]."""
    groups = x.float().view(x.shape[0], -1, BLOCK)
    scales = groups.abs().amax(-1, keepdim=True) / 448
    return (groups / scales).to(torch.float8_e4m3fn).view_as(x), scales.squeeze(-1)


def quantize_weight(w):
    """E4M3 codes [N, K] and scales [N / 128, K / 128]."""
    rows, cols = w.shape
    blocks = w.float().view(rows // BLOCK, BLOCK, cols // BLOCK, BLOCK)
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    return (blocks / scales).to(torch.float8_e4m3fn).view(rows, cols), scales.view(rows // BLOCK, -1)


def column_major(values, rows):
    """The same values, columns `rows` floats apart."""
    out = torch.ones(values.shape[1], rows, device="cuda").t()[: values.shape[0]]
    out.copy_(values)
    return out


def graph_us(calls, repeats):
    """Median microseconds of a call, all recorded in one graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for replay in range(repeats + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def loaded_us(calls):
    """Microseconds of a call by the wall clock, in the second of two seconds of them."""
    for _ in range(2):
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < 1:
            for call in calls:
                call()
            torch.cuda.synchronize()
            count += len(calls)
        us = (time.perf_counter() - begin) * 1e6 / count
    return us


class Layer:
    def __init__(self, name):
        rows, cols = LAYERS[name]
        copies = max(4, math.ceil(ROTATED / (rows * cols)))
        self.dense = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) * 0.02
        self.weights = [quantize_weight(self.dense)]
        self.weights += [quantize_weight(torch.randn_like(self.dense) * 0.02) for _ in range(copies - 1)]

    def calls(self, deep_gemm, tokens):
        """By program: a call for every copy of the weights, and whether the first's result is right."""
        x = torch.randn(tokens, self.dense.shape[1], device="cuda", dtype=torch.bfloat16)
        codes, scales = quantize_tokens(x)
        want = x.float() @ self.dense.float().t()
        y = torch.empty(tokens, self.dense.shape[0], device="cuda", dtype=torch.bfloat16)
        aligned = column_major(scales, (tokens + 3) // 4 * 4)
        packed = column_major(scales, tokens)

        def deep(weight):
            deep_gemm.fp8_gemm_nt((codes, aligned), weight, y, disable_ue8m0_cast=True)
            return y

        def cublas(weight):
            return scaled_mm(codes, weight[0].t(), packed, ScalingType.BlockWise1x128, weight[1].t(),
                             ScalingType.BlockWise128x128, output_dtype=torch.bfloat16)

        for name, call in (("deepgemm", deep), ("deepgemm_pdl", deep), ("cublaslt", cublas)):
            deep_gemm.set_pdl(name == "deepgemm_pdl")
            y.fill_(float("nan"))
            try:
                got = call(self.weights[0]).float()
            except (RuntimeError, ValueError):  # cuBLASLt has no kernel for some shapes
                continue
            error = float((got - want).norm() / want.norm())
            if not error < LARGEST_ERROR:
                raise SystemExit(f"gemm_speed.py: {name} at {tokens} tokens is {error} from FP32")
            yield name, [lambda weight=weight, call=call: call(weight) for weight in self.weights]
        deep_gemm.set_pdl(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 64, 128, 256, 512, 1024, 4096])
    parser.add_argument("--load", type=int, default=8192)
    args = parser.parse_args()
    import vllm.third_party.deep_gemm as deep_gemm

    torch.manual_seed(0)
    print(json.dumps({"what": "start", "torch": torch.__version__, "deepgemm": deep_gemm.__version__}), flush=True)
    for name in LAYERS:
        layer = Layer(name)
        for tokens in args.tokens:
            us = {}
            for program, calls in layer.calls(deep_gemm, tokens):
                if tokens >= 128:
                    time.sleep(0.3)
                us[program] = graph_us(calls, 10 if tokens >= 4096 else 20)
            print(json.dumps({"what": "gemm", "layer": name, "tokens": tokens, "us": us}), flush=True)
        us = {program: loaded_us(calls) for program, calls in layer.calls(deep_gemm, args.load) if program == "deepgemm"}
        print(json.dumps({"what": "load", "layer": name, "tokens": args.load, "us": us}), flush=True)
        del layer
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
