#!/usr/bin/env python3
"""A refit in plain torch, the way to hold gpu_refit_bench against: Llama-3.1-8B's bf16 tensors on the GPU are
quantized one by one in 128x128 blocks and copied into serving buffers that stay where they are.

    python3 bench/torch_refit.py [--pow2] [--layers 32] [--runs 7]

What a quantizer written in torch does, step by step: the matrix in FP32, seen as blocks; the largest magnitude
of each; 448 over it (or the power of two); multiply, clamp, cast; the reciprocals are the scales. Prints one line:
the median of the runs after a first one, by CUDA events, with the extra memory, and plain copies of as many bf16
bytes for comparison.
"""
import argparse
import statistics
import sys

try:
    import torch
except ImportError as error:
    sys.exit(f"torch_refit.py: needs torch 2.11.0 with CUDA: {error}")

BLOCK = 128
LARGEST = 448.0
HIDDEN, INNER, KV, VOCAB = 4096, 14336, 1024, 128256


def quantize(weight, pow2):
    """E4M3 codes [rows, cols] and FP32 scales [rows / 128, cols / 128]."""
    rows, cols = weight.shape
    blocks = weight.float().view(rows // BLOCK, BLOCK, cols // BLOCK, BLOCK)
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True)
    if pow2:
        exponent = torch.ceil(torch.log2(amax / LARGEST)).clamp(-127, 127)
        multiplier = torch.exp2(-exponent)
    else:
        multiplier = LARGEST / amax
    multiplier = torch.where((amax == 0) | torch.isinf(amax), torch.ones_like(amax), multiplier)
    codes = (blocks * multiplier).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes.view(rows, cols), multiplier.reciprocal().view(rows // BLOCK, cols // BLOCK)


class Matrix:
    """A serving buffer whose parts (q, k, v; gate, up) come as tensors of their own."""

    def __init__(self, parts, cols, make):
        self.sources = [make(rows, cols) for rows in parts]
        self.codes = torch.empty(sum(parts), cols, dtype=torch.float8_e4m3fn, device="cuda")
        self.scales = torch.empty(sum(parts) // BLOCK, cols // BLOCK, device="cuda")

    def refit(self, pow2):
        row = 0
        for source in self.sources:
            codes, scales = quantize(source, pow2)
            self.codes[row : row + source.shape[0]].copy_(codes)
            self.scales[row // BLOCK : (row + source.shape[0]) // BLOCK].copy_(scales)
            row += source.shape[0]


class Unquantized:
    """Norms, embedding and head stay as they are."""

    def __init__(self, shape, make, dtype=torch.bfloat16):
        self.source = make(*shape)
        self.values = torch.empty(shape, dtype=dtype, device="cuda")

    def refit(self, _pow2):
        self.values.copy_(self.source)


def weights_of(layers, make):
    result = [Unquantized((VOCAB, HIDDEN), make), Unquantized((VOCAB, HIDDEN), make)]
    result.append(Unquantized((HIDDEN,), make, torch.float32))
    for _ in range(layers):
        result += [
            Matrix([HIDDEN, KV, KV], HIDDEN, make),
            Matrix([HIDDEN], HIDDEN, make),
            Matrix([INNER, INNER], HIDDEN, make),
            Matrix([HIDDEN], INNER, make),
            Unquantized((HIDDEN,), make, torch.float32),
            Unquantized((HIDDEN,), make, torch.float32),
        ]
    return result


def milliseconds(work, runs):
    """The first run, and the median of `runs` more."""
    times = []
    for _ in range(runs + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return times[0], statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pow2", action="store_true", help="scales that are powers of two")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()

    generator = torch.Generator("cuda").manual_seed(1)

    def make(*shape):
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    weights = weights_of(options.layers, make)

    def refit():
        for weight in weights:
            weight.refit(options.pow2)

    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    first, median = milliseconds(refit, options.runs)
    extra = torch.cuda.max_memory_allocated() - held
    sources = [s for w in weights for s in (w.sources if isinstance(w, Matrix) else [w.source])]
    largest = torch.empty(max(s.numel() for s in sources), dtype=torch.bfloat16, device="cuda")

    def copies():
        for source in sources:
            largest[: source.numel()].view(source.shape).copy_(source)

    _, copied = milliseconds(copies, options.runs)
    total = sum(s.numel() for s in sources) * 2
    print(
        f"torch {torch.__version__} on {torch.cuda.get_device_name()}: {total / 1e9:.2f} GB of bf16 tensors, "
        f"{'power-of-two' if options.pow2 else 'plain'} scales: first {first:.1f} ms, then {median:.1f} ms "
        f"(median of {options.runs}), {extra / 2**20:.0f} MiB of extra memory; copies of the same bf16 tensors "
        f"{copied:.1f} ms"
    )


if __name__ == "__main__":
    main()
