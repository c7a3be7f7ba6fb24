#!/usr/bin/env python3
"""Writes the reference results under tests/golden with Hugging Face transformers in FP32 on the CPU.

Needs torch==2.11.0 and transformers==4.57.1 (not part of .venv: the tests only read the results) and, for the
SmolLM2 part, models/SmolLM2-135M-Instruct. tests/golden/README.md describes the files.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

REPO = Path(__file__).resolve().parents[2]
GOLDEN = REPO / "tests" / "golden"
MODEL = REPO / "models" / "SmolLM2-135M-Instruct"

GREEDY_TOKENS = 64
GREEDY_PROMPTS = {
    "story": "Once upon a time, in a small village at the edge of a forest, there lived",
    "photosynthesis": [{"role": "user", "content": "Explain how photosynthesis works."}],
    "python": "def quicksort(items):\n    ",
    "history": "The main causes of the First World War were",
    "email": [{"role": "user", "content": "Write a polite email asking a colleague to review my report by Friday."}],
    "arithmetic": [{"role": "user", "content": "What is 12 + 30? Think step by step."}],
    "recipe": "To make pancakes, you need flour, milk,",
    "french": "La ville de Paris est",
}


def load_fp32(folder: Path):
    # Eager attention: the plain formula, rather than whichever fused kernel this machine would pick.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def logits_of(model, ids: list[int]) -> torch.Tensor:
    """FP32 [len(ids), vocab]"""
    return model(torch.tensor([ids])).logits[0].float()


def token_logprobs(logits: torch.Tensor, ids: list[int]) -> list[float | None]:
    """Entry i is the log-probability of ids[i] given those before it; nothing comes before the first."""
    logprobs = logits.log_softmax(-1)
    return [None] + [round(logprobs[i - 1, ids[i]].item(), 6) for i in range(1, len(ids))]


def write_jsonl(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8")


def make_smollm2() -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), load_fp32(MODEL)

    def encode(prompt: str | list[dict], for_answer: bool) -> list[int]:
        if isinstance(prompt, list):
            prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=for_answer)
        return tokenizer(prompt).input_ids

    scored = []
    for path in sorted((GOLDEN / "smollm2" / "texts").iterdir()):
        text = path.read_text(encoding="utf-8")
        ids = encode(json.loads(text) if path.suffix == ".json" else text, for_answer=False)
        scored.append({"id": path.stem, "token_ids": ids, "logprobs": token_logprobs(logits_of(model, ids), ids)})
    write_jsonl(GOLDEN / "smollm2" / "logprobs.jsonl", scored)
    count = sum(len(line["token_ids"]) - 1 for line in scored)
    total = sum(sum(line["logprobs"][1:]) for line in scored)
    print(f"smollm2: {count} scored tokens, mean log-probability {total / count:.4f}")

    greedy = []
    for name, prompt in GREEDY_PROMPTS.items():
        prompt_ids = encode(prompt, for_answer=True)
        ids = list(prompt_ids)
        for _ in range(GREEDY_TOKENS):
            ids.append(logits_of(model, ids)[-1].argmax().item())
        logits = logits_of(model, ids)
        best = logits[len(prompt_ids) - 1 : -1].topk(2).values
        greedy.append({
            "id": name,
            "prompt_ids": prompt_ids,
            "token_ids": ids[len(prompt_ids) :],
            "logprobs": token_logprobs(logits, ids)[len(prompt_ids) :],
            "margins": [round(margin, 6) for margin in (best[:, 0] - best[:, 1]).tolist()],
        })
        print(f"  {name}: {tokenizer.decode(greedy[-1]['token_ids'])!r}")
    write_jsonl(GOLDEN / "smollm2" / "greedy.jsonl", greedy)


def tiny(kind: str, **overrides) -> dict:
    """A config.json such as real checkpoints of the kind have, at a size that fits into the repository."""
    config = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        "hidden_act": "silu",
        "num_hidden_layers": 2,
        "vocab_size": 101,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        "initializer_range": 0.02,
        "use_cache": True,
        "attention_dropout": 0.0,
    }
    if kind == "Llama":
        config |= {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
    elif kind == "Mistral":
        config |= {"sliding_window": None}
    elif kind == "Qwen2":
        config |= {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2, "rms_norm_eps": 1e-6}
    elif kind == "Qwen3":
        config |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 2, "rms_norm_eps": 1e-6,
                   "attention_bias": False}
    return config | overrides


def shape(hidden: int, heads: int, kv: int, intermediate: int, head_dim: int | None = None) -> dict:
    config = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv,
              "intermediate_size": intermediate}
    return config | ({"head_dim": head_dim} if head_dim else {})


# The scalings take effect well within TINY_TOKENS positions; the script checks that.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_EXPLICIT = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3,
                 "beta_fast": 8.0, "beta_slow": 2.0}
TINY_TOKENS = 64
TINY_MODELS = {
    "llama": tiny("Llama", **shape(72, 3, 1, 52)),
    "llama_sharded": tiny("Llama", **shape(72, 6, 3, 28), num_hidden_layers=3),
    # An eps this large shows in the logits if it is ignored.
    "llama_tied_biased": tiny("Llama", **shape(80, 5, 5, 36), tie_word_embeddings=True, attention_bias=True,
                              mlp_bias=True, rms_norm_eps=1e-2),
    "llama_head_dim": tiny("Llama", **shape(64, 3, 3, 36, head_dim=40), vocab_size=77),
    "llama_llama3": tiny("Llama", **shape(96, 6, 3, 28), rope_theta=500000.0, rope_scaling=LLAMA3,
                         max_position_embeddings=512),
    "llama_linear": tiny("Llama", **shape(72, 3, 3, 36), rope_scaling={"type": "linear", "factor": 4.0}),
    "llama_yarn": tiny("Llama", **shape(80, 4, 2, 40), rope_scaling=YARN, max_position_embeddings=64),
    "mistral": tiny("Mistral", **shape(50, 6, 3, 52, head_dim=24), rope_theta=1e6),
    "qwen2": tiny("Qwen2", **shape(84, 7, 1, 52), rope_theta=1e6, tie_word_embeddings=True),
    "qwen2_yarn": tiny("Qwen2", **shape(80, 5, 5, 28), rope_scaling=YARN_EXPLICIT),
    "qwen3": tiny("Qwen3", **shape(56, 5, 1, 60, head_dim=40), rope_theta=1e6, tie_word_embeddings=True),
    "qwen3_biased": tiny("Qwen3", **shape(60, 6, 2, 44, head_dim=24), attention_bias=True, vocab_size=103),
}


def random_weights(model, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """bf16 weights by name, scaled so that every part moves the logits: linear layers keep the size of what they
    are given, norms and biases are far from 1 and 0."""
    weights = {}
    tied = model.config.tie_word_embeddings
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.5 * noise
        elif name == "lm_head.weight" or (tied and "embed" in name):
            value = noise * 2 / parameter.shape[1] ** 0.5
        elif "embed" in name:
            value = noise
        else:
            value = noise / parameter.shape[1] ** 0.5
        weights[name] = value.to(torch.bfloat16).contiguous()
    return weights


def save_weights(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = sorted(weights), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]  # dealt out in turn: the parts of one layer lie in different shards
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= {name: file for name in part}
    size = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_tiny(name: str, config: dict, seed: int) -> None:
    folder = GOLDEN / "tiny" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generator = torch.Generator().manual_seed(seed)
    skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    save_weights(folder, random_weights(skeleton, generator), shards=3 if "sharded" in name else 1)

    model = load_fp32(folder)
    ids = torch.randint(config["vocab_size"], (TINY_TOKENS,), generator=generator).tolist()
    logits = logits_of(model, ids)
    positions = [0, 1, 7, 20, 41, TINY_TOKENS - 1]
    golden = {
        "token_ids": ids,
        "logprobs": token_logprobs(logits, ids),
        "positions": positions,
        "logits": [[round(x, 5) for x in logits[p].tolist()] for p in positions],
    }
    (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")

    note = ""
    if config["rope_scaling"]:
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, rope_scaling=None).eval()
        moved = (logits_of(plain, ids) - logits)[-1].abs().mean().item()
        assert moved > 0.1, f"{name}: the rope scaling has no visible effect"
        note = f", the scaling moves the last logits by {moved:.2f}"
    print(f"tiny/{name}: logits have standard deviation {logits.std().item():.2f}{note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=["tiny", "smollm2", []], help="default: both")
    parts = parser.parse_args().part or ["tiny", "smollm2"]
    torch.set_num_threads(2)
    if "tiny" in parts:
        for seed, (name, config) in enumerate(TINY_MODELS.items()):
            make_tiny(name, config, seed)
    if "smollm2" in parts:
        make_smollm2()


if __name__ == "__main__":
    main()
