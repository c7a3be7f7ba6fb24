#!/usr/bin/env python3
"""vLLM loads a folder of `octavo quantize`; its greedy tokens and log-probabilities beside Octavo's.

    python/tools/check_fp8_checkpoint.py --make-model bf16
    octavo quantize --model bf16 --out fp8
    octavo generate --model fp8 --precision fp8 --prompts prompts.jsonl --temperature 0 --max-tokens 32 --ignore-eos --out octavo.jsonl
    bench/peers/vllm_load.py fp8 octavo.jsonl [--out vllm.jsonl]      # where vLLM and a GPU are

Both quantize activations in groups of 128 and multiply in FP8, and both keep the rest in bf16, so they differ by rounding: of
attention, of norms, and of codes that a last bit before them turns over. The script scores Octavo's own tokens with vLLM
(teacher forcing, mean |Δ|), and counts greedy tokens up to the first that differs.
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("VLLM_USE_DEEP_GEMM", "0")  # its kernels would be compiled for minutes first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("octavo", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    try:
        from vllm import LLM, SamplingParams
        import vllm
    except ImportError as error:
        sys.exit(f"vllm_load.py: needs vLLM: {error}")

    lines = [json.loads(line) for line in args.octavo.read_text().splitlines()]
    llm = LLM(model=args.folder, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=512, enforce_eager=True,
              gpu_memory_utilization=0.3, enable_prefix_caching=False, seed=1)
    tokens = len(lines[0]["token_ids"])
    greedy = llm.generate([{"prompt_token_ids": line["prompt_ids"]} for line in lines],
                          SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False))
    scored = llm.generate([{"prompt_token_ids": line["prompt_ids"] + line["token_ids"]} for line in lines],
                          SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, prompt_logprobs=0, detokenize=False))
    out, deltas, same = [], [], 0
    for line, generated, teacher in zip(lines, greedy, scored, strict=True):
        ids = list(generated.outputs[0].token_ids)
        equal = next((i for i, (a, b) in enumerate(zip(ids, line["token_ids"])) if a != b), tokens)
        same += equal
        begin = len(line["prompt_ids"])
        logprobs = [teacher.prompt_logprobs[begin + i][token].logprob for i, token in enumerate(line["token_ids"])]
        deltas += [abs(a - b) for a, b in zip(logprobs, line["logprobs"])]
        out.append({"id": line["id"], "token_ids": ids, "logprobs_of_octavo_tokens": logprobs, "equal_until": equal})
        print(f"{line['id']}: prompt {begin}, equal for {equal} of {tokens} tokens")
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in out))
    print(f"vLLM {vllm.__version__}: {len(deltas)} tokens, mean |Δ| {sum(deltas) / len(deltas):.4f}, "
          f"largest {max(deltas):.4f}; {same} of {tokens * len(lines)} greedy tokens before the first difference")


if __name__ == "__main__":
    main()
