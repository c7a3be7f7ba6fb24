#!/usr/bin/env python3
"""Holds the folders that `octavo quantize` writes against Hugging Face transformers, which loads them by itself.

    python/tools/check_fp8_checkpoint.py [--octavo build/default/cli/octavo]
    python/tools/check_fp8_checkpoint.py --make-model DIR      # only writes the random model

Needs torch, transformers >= 5 and accelerate (not part of .venv). Two models, with plain and power-of-two scales:

random      Llama, every dimension a multiple of 128. transformers dequantizes it itself; every weight must be
            code · scale to the bit.
smollm2     hidden size 576: blocks at the edges are smaller. transformers reads the block size off the grid of scales
            (rows / scale rows), so it refuses such a folder; here the weights are dequantized by the definition
            (docs/numerics.md) and given to its FP32 model.

Then log-probabilities of some 250 tokens by transformers in FP32 are compared with `octavo score --precision bf16` on the
same folder, which dequantizes too. What is left is the bf16 engine's own rounding. The residual is FP32 and the sum of the
layers' updates, each of which passes nine roundings of relative size u = 2^-9 (norm, q|k|v, rope, attention, o; norm, gate|up,
SiLU·mul, down) on its way: with independent errors the last hidden state, and with it the logits of standard deviation σ,
is off by u √9 of its size, and a log-probability, which has two logits' errors at most, by √2 · σ · u · √9. The mean |Δ| has
to be below that, and the unquantized model must be farther away.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config

import make_goldens

REPO = Path(__file__).resolve().parents[2]
SMOLLM2 = REPO / "models" / "SmolLM2-135M-Instruct"
BLOCK = 128
TOKENS = 250
ROUNDINGS = 9


def make_model(folder: Path) -> None:
    config = make_goldens.tiny("Llama", **make_goldens.shape(256, 4, 2, 512, head_dim=64), vocab_size=1024,
                               max_position_embeddings=1024)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    make_goldens.save_weights(folder, make_goldens.random_weights(skeleton, torch.Generator().manual_seed(5)), shards=1)


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """FP32 [rows, cols] = code · the scale of its block of 128×128; a block at the edge is smaller."""
    rows, cols = codes.shape
    grid = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]
    return codes.to(torch.float32) * grid


def dequantized_weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    scale = "_scale_inv"
    return {name: dequantize(value, tensors[name + scale]) if name + scale in tensors else value.float()
            for name, value in tensors.items() if not name.endswith(scale)}


def by_definition(folder: Path, weights: dict[str, torch.Tensor]):
    """transformers' FP32 model of the folder's architecture with these weights."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        sys.exit(f"{folder}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval()


def octavo_logprobs(octavo: Path, folder: Path, ids: list[list[int]], precision: str) -> list[float]:
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch, "in.jsonl"), Path(scratch, "out.jsonl")
        source.write_text("".join(json.dumps({"id": str(i), "token_ids": x}) + "\n" for i, x in enumerate(ids)))
        subprocess.run([octavo, "score", "--model", folder, "--precision", precision, "--input", source, "--out", out],
                       check=True, capture_output=True)
        return [v for line in out.read_text().splitlines() for v in json.loads(line)["logprobs"][1:]]


def mean_difference(a: list[float], b: list[float]) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)


def check(octavo: Path, name: str, source: Path, folder: Path, ids: list[list[int]], flags: list[str]) -> bool:
    subprocess.run([octavo, "quantize", "--model", source, "--out", folder, *flags], check=True, capture_output=True)
    weights = dequantized_weights(folder)
    ragged = any(size % BLOCK for key, value in weights.items() if "_proj" in key for size in value.shape)
    ok = True
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                     quantization_config=FineGrainedFP8Config(dequantize=True)).eval()
        loaded = model.state_dict()
        wrong = [key for key, value in weights.items() if not torch.equal(loaded[key].float(), value)]
        how = f"loads it, {len(weights) - len(wrong)} of {len(weights)} tensors equal to the bit"
        ok = not wrong
    except Exception as error:  # whatever a refusal is made of
        if not ragged:
            raise
        how = f"refuses ragged blocks ({type(error).__name__}); weights by the definition"
        model = by_definition(folder, weights)

    logits = [make_goldens.logits_of(model, x) for x in ids]
    reference = [v for x, row in zip(ids, logits) for v in make_goldens.token_logprobs(row, x)[1:]]
    deviation = torch.cat(logits).std(-1).mean().item()
    bound = math.sqrt(2) * deviation * 2**-9 * math.sqrt(ROUNDINGS)
    delta = mean_difference(octavo_logprobs(octavo, folder, ids, "bf16"), reference)
    unquantized = mean_difference(octavo_logprobs(octavo, source, ids, "bf16"), reference)
    fp8 = mean_difference(octavo_logprobs(octavo, folder, ids, "fp8"), reference)
    ok = ok and delta <= bound < unquantized
    print(f"{name}{' ' + ' '.join(flags) if flags else ''}: transformers {how}\n  {len(reference)} tokens, mean |Δ| "
          f"{delta:.4f} (bound {bound:.4f}); with FP8 activations {fp8:.4f}, unquantized {unquantized:.4f}: "
          f"{'ok' if ok else 'WRONG'}")
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--octavo", type=Path, default=REPO / "build/default/cli/octavo")
    parser.add_argument("--make-model", type=Path, metavar="DIR", help="write the random model there and end")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.make_model:
        return make_model(args.make_model)
    ok = True
    with tempfile.TemporaryDirectory() as scratch:
        random_model = Path(scratch, "random")
        make_model(random_model)
        ids = torch.randint(1024, (TOKENS,), generator=torch.Generator().manual_seed(6)).tolist()
        cases = [("random", random_model, [ids])]
        if SMOLLM2.exists():
            golden = (REPO / "tests/golden/smollm2/logprobs.jsonl").read_text().splitlines()
            cases.append(("smollm2", SMOLLM2, [json.loads(line)["token_ids"][:TOKENS] for line in golden[:2]]))
        for name, source, sequences in cases:
            for flags in ([], ["--pow2"]):
                folder = Path(scratch, name + "-fp8" + "".join(flags))
                ok = check(args.octavo, name, source, folder, sequences, flags) and ok
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
