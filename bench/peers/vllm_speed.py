#!/usr/bin/env python3
"""vLLM offline, with random weights of a model's shape: what `octavo bench --sequences` measures.

    bench/peers/vllm_speed.py bench/shapes/llama-3.1-8b [--precision fp8|bf16] [--repeat 2]

FP8 is set up as NeMo-RL does it: weights in blocks of 128x128 with FP32 scales, dynamic activations in groups of 128,
DeepGEMM. Prints one line of JSON for each measurement. The first run on a machine compiles DeepGEMM's kernels for
minutes; bench/peers/deepgemm_warm.py does that before, on all cores.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import time


class RandomWeights:
    """Given to vLLM's worker: what it fills in by itself for load_format "dummy" is so small that FP8 codes are zero."""

    def fill_with_random_weights(self):
        import torch

        torch.manual_seed(1)
        for name, parameter in self.model_runner.get_model().named_parameters():
            data = parameter.data
            if data.dtype == torch.float8_e4m3fn:
                data.copy_((torch.randn(data.shape, device=data.device) * 100).clamp(-448, 448).to(data.dtype))
            elif "weight_scale" in name:
                data.fill_(0.02 / 100)  # so that weights are N(0, 0.02²)
            elif name.endswith("norm.weight"):
                data.fill_(1)
            else:
                data.normal_(0, 0.02)


def start(args):
    fp8 = args.precision == "fp8"
    os.environ["VLLM_USE_DEEP_GEMM"] = "1" if fp8 else "0"
    os.environ["VLLM_USE_DEEP_GEMM_E8M0"] = "0"  # FP32 scales, as Octavo's
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    here = str(pathlib.Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        import vllm
    except ImportError as error:
        sys.exit(f"vllm_speed.py: needs vLLM 0.24.0: {error}")

    overrides = {}
    if fp8:
        overrides["hf_overrides"] = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic",
                                                             "weight_block_size": [128, 128]}}
    begin = time.perf_counter()
    llm = vllm.LLM(model=args.model, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_model_len=8192,
                   gpu_memory_utilization=args.gpu_memory_utilization, enable_prefix_caching=False, seed=1,
                   disable_log_stats=True, worker_extension_cls="vllm_speed.RandomWeights", **overrides)
    ready = time.perf_counter() - begin
    llm.collective_rpc("fill_with_random_weights")
    scheduler = llm.llm_engine.vllm_config.scheduler_config
    return llm, {"what": "start", "vllm": vllm.__version__, "precision": args.precision, "seconds": round(ready, 1),
                 "max_batch_tokens": scheduler.max_num_batched_tokens}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder with a config.json")
    parser.add_argument("--precision", choices=("fp8", "bf16"), default="fp8")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--prefill", type=int, nargs=2, default=[64, 1024], metavar=("SEQUENCES", "PROMPT"))
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.8)
    args = parser.parse_args()
    llm, line = start(args)
    print(json.dumps(line), flush=True)
    from vllm import SamplingParams

    numbers = random.Random(3)
    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()

    def seconds(sequences, prompt, output):
        """Of one round on fresh random prompts. Temperature 1, the sampled tokens' log-probabilities, no end."""
        prompts = [{"prompt_token_ids": [numbers.randrange(vocabulary) for _ in range(prompt)]} for _ in range(sequences)]
        sampling = SamplingParams(temperature=1.0, logprobs=0, max_tokens=output, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        results = llm.generate(prompts, sampling, use_tqdm=False)
        took = time.perf_counter() - begin
        got = sum(len(result.outputs[0].token_ids) for result in results)
        if got != sequences * output:
            raise SystemExit(f"vllm_speed.py: {got} tokens came back, {sequences * output} were asked for")
        if sequences > 1 and len({tuple(result.outputs[0].token_ids[:8]) for result in results}) == 1 and output > 8:
            raise SystemExit("vllm_speed.py: every sequence drew the same tokens; are the weights random?")
        return took

    for sequences in args.sequences:
        seconds(sequences, args.prompt, 24)  # not counted
        first = min(seconds(sequences, args.prompt, 1) for _ in range(2))
        for _ in range(args.repeat):
            took = seconds(sequences, args.prompt, args.output)
            print(json.dumps({"what": "decode", "sequences": sequences, "prompt": args.prompt, "output": args.output,
                              "output_tokens_per_second": sequences * args.output / took, "first_token_ms": first * 1e3}), flush=True)
    sequences, prompt = args.prefill
    seconds(sequences, prompt, 1)
    for _ in range(args.repeat + 1):
        took = seconds(sequences, prompt, 1)
        print(json.dumps({"what": "prefill", "sequences": sequences, "prompt": prompt,
                          "prompt_tokens_per_second": sequences * prompt / took, "first_token_ms": took * 1e3}), flush=True)


if __name__ == "__main__":
    main()
