#!/usr/bin/env python3
"""vLLM's fused kernels ahead of an FP8 layer, in the shapes of Llama-3.1-8B: what `gpu_ops_bench decoder` measures.

    bench/peers/ops_speed.py [--rows 1 64 1024 8192]

residual + RMSNorm + quantize of 4096 columns and SiLU * up + quantize of 2 x 14336, in groups of 128, residual in bf16
(Octavo's is FP32). Random values, buffers rotated past L2 where they are large enough to be, all calls in one CUDA
graph, median of its replays. The first result of each is held against FP32. Prints one line of JSON for each measurement.
"""

import argparse
import json

from gemm_speed import BLOCK, graph_us, torch

HIDDEN, INNER = 4096, 14336
EPS = 1e-5
E4M3 = torch.float8_e4m3fn
LARGEST_ERROR = 0.05  # of E4M3 against FP32: 0.03


def sets_for(bytes_of_one):
    return int(min(max(300e6 / bytes_of_one, 2), 200))


def check(name, result, want):
    codes, scales = result
    got = (codes.float().view(codes.shape[0], -1, BLOCK) * scales.unsqueeze(-1)).view_as(want)
    error = float((got - want).norm() / want.norm())
    if not error < LARGEST_ERROR:
        raise SystemExit(f"ops_speed.py: {name} of {codes.shape[0]} rows is {error} from FP32")


def norm(ops, rows):
    weight = torch.rand(HIDDEN, device="cuda", dtype=torch.bfloat16) + 0.5
    sets = [[torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
            for _ in range(sets_for(rows * HIDDEN * 7))]

    def call(x, residual):
        return ops.rms_norm_per_block_quant(x, weight, EPS, E4M3, [1, BLOCK], None, residual, True, 4)

    x, residual = (t.clone() for t in sets[0])
    total = x.float() + residual.float()
    want = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + EPS) * weight.float()
    check("norm", call(x, residual), want)
    return [lambda s=s: call(*s) for s in sets]


def silu(ops, rows):
    sets = [torch.randn(rows, 2 * INNER, device="cuda", dtype=torch.bfloat16) for _ in range(sets_for(rows * INNER * 5))]

    def call(x):
        return ops.silu_and_mul_per_block_quant(x, BLOCK, E4M3, None, True)

    gate, up = sets[0].float().chunk(2, -1)
    check("silu", call(sets[0]), torch.nn.functional.silu(gate) * up)
    return [lambda s=s: call(s) for s in sets]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 1024, 8192])
    args = parser.parse_args()
    import vllm.platforms
    from vllm import _custom_ops as ops

    vllm.platforms.current_platform.import_kernels()
    torch.manual_seed(0)
    print(json.dumps({"what": "start", "torch": torch.__version__, "vllm": vllm.__version__}), flush=True)
    for name, make in (("norm", norm), ("silu", silu)):
        for rows in args.rows:
            print(json.dumps({"what": name, "rows": rows, "us": graph_us(make(ops, rows), 20)}), flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
