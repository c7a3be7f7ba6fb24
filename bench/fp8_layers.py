#!/usr/bin/env python3
"""Which layers cost how much when SmolLM2 runs in FP8: log-probabilities of tests/golden/smollm2 against FP32 transformers.

    bench/fp8_layers.py [--octavo build/default/cli/octavo] [--model models/SmolLM2-135M-Instruct]

Runs `octavo score` in bf16, in FP8 with its options, with one layer alone in FP8, and with one kind of matrix alone in FP8,
and prints Markdown tables of the mean |Δ| of the log-probabilities and of the change of perplexity.
"""

import argparse
import json
import math
import pathlib
import tempfile

from cpu_speed import run

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEYWORDS = {"q, k, v": ["q_proj", "k_proj", "v_proj"], "o": ["o_proj"], "gate, up": ["gate_proj", "up_proj"],
            "down": ["down_proj"]}


class Scorer:
    def __init__(self, octavo, model, reference):
        self.octavo, self.model, self.reference = octavo, model, reference
        self.directory = tempfile.TemporaryDirectory()
        self.input = pathlib.Path(self.directory.name) / "input.jsonl"
        self.input.write_text("".join(json.dumps({"id": r["id"], "token_ids": r["token_ids"]}) + "\n" for r in reference))

    def logprobs(self, *flags):
        out = pathlib.Path(self.directory.name) / "out.jsonl"
        run([self.octavo, "score", "--model", self.model, "--input", self.input, "--out", out, *flags])
        return [v for line in out.read_text().splitlines() for v in json.loads(line)["logprobs"][1:]]


def difference(got, want):
    count = len(want)
    mean = sum(abs(a - b) for a, b in zip(got, want)) / count
    perplexity = math.exp((sum(want) - sum(got)) / count) - 1
    return mean, perplexity


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--octavo", default=str(ROOT / "build/default/cli/octavo"))
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct"))
    args = parser.parse_args()
    golden = [json.loads(line) for line in (ROOT / "tests/golden/smollm2/logprobs.jsonl").read_text().splitlines()]
    reference = [v for line in golden for v in line["logprobs"][1:]]
    scorer = Scorer(args.octavo, args.model, golden)
    bf16 = scorer.logprobs("--precision", "bf16")
    layers = json.loads(pathlib.Path(args.model, "config.json").read_text())["num_hidden_layers"]
    print(f"{len(reference)} tokens\n")
    print("| | mean \\|Δ\\| to FP32 | perplexity to FP32 | mean \\|Δ\\| to bf16 | perplexity to bf16 |\n|---|---|---|---|---|")

    def row(name, got):
        (a, b), (c, d) = difference(got, reference), difference(got, bf16)
        print(f"| {name} | {a:.4f} | {100 * b:+.2f} % | {c:.4f} | {100 * d:+.2f} % |", flush=True)

    row("bf16", bf16)
    row("fp8", scorer.logprobs())
    row("fp8, power-of-two weight scales", scorer.logprobs("--pow2-weights"))
    row("fp8, power-of-two weight and activation scales", scorer.logprobs("--pow2-weights", "--pow2-activations"))
    row("fp8, first layer and last 3 in bf16", scorer.logprobs("--bf16-first", "1", "--bf16-last", "3"))
    for kind, names in KEYWORDS.items():
        others = [n for k, ns in KEYWORDS.items() if k != kind for n in ns]
        row(f"only {kind} in fp8", scorer.logprobs(*[f for n in others for f in ("--ignore", n)]))

    print("\n| layer alone in fp8 | mean \\|Δ\\| to bf16 | perplexity to bf16 |\n|---|---|---|")
    for layer in range(layers):
        flags = [f for other in range(layers) if other != layer for f in ("--ignore", f"layers.{other}.")]
        mean, perplexity = difference(scorer.logprobs(*flags), bf16)
        print(f"| {layer} | {mean:.4f} | {100 * perplexity:+.2f} % |", flush=True)


if __name__ == "__main__":
    main()
