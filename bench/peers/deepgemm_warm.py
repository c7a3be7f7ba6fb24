#!/usr/bin/env python3
"""Compiles the kernels that DeepGEMM (the one in vLLM's wheel) chooses for a model's layers, on all cores, into its
cache: what a vLLM server's first start would do one by one.

    bench/peers/deepgemm_warm.py
"""

import argparse
import os
import subprocess
import sys

from gemm_speed import LAYERS

SHAPES = list(LAYERS.values())
TOKENS = sorted({1, 2, 4, *range(8, 257, 8), *range(272, 1025, 16), *range(1088, 4097, 64), 8192, 16384})
PARTS = 4  # processes of a shape; each has neighbouring numbers of tokens, which share kernels


def compile_part(shape, part):
    import torch
    import vllm.third_party.deep_gemm as deep_gemm

    out, cols = SHAPES[shape]
    size = (len(TOKENS) + PARTS - 1) // PARTS
    weight = torch.zeros(out, cols, device="cuda", dtype=torch.float8_e4m3fn)
    weight_scales = torch.ones(out // 128, cols // 128, device="cuda")
    for tokens in TOKENS[part * size:(part + 1) * size]:
        x = torch.zeros(tokens, cols, device="cuda", dtype=torch.float8_e4m3fn)
        scales = torch.ones(cols // 128, (tokens + 3) // 4 * 4, device="cuda").t()[:tokens]
        y = torch.empty(tokens, out, device="cuda", dtype=torch.bfloat16)
        deep_gemm.fp8_gemm_nt((x, scales), (weight, weight_scales), y, disable_ue8m0_cast=True)
    torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, nargs=2, metavar=("SHAPE", "PART"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return compile_part(*args.part)
    parts = [subprocess.Popen([sys.executable, os.path.abspath(__file__), "--part", str(shape), str(part)])
             for part in range(PARTS) for shape in range(len(SHAPES))]
    failed = sum(part.wait() != 0 for part in parts)
    if failed:
        sys.exit(f"deepgemm_warm.py: {failed} of {len(parts)} parts failed; what they said stands above")


if __name__ == "__main__":
    main()
