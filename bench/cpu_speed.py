#!/usr/bin/env python3
"""Octavo and llama.cpp side by side on one machine: prompt and decode throughput of the same model.

    bench/peers/llama_cpp.sh PEER_DIR          # builds the peer and its GGUF files, once
    bench/cpu_speed.py PEER_DIR [--rounds 5] [--out docs/results/cpu-speed.json]

Programs take turns, round after round and every second round in the opposite order, so that a machine whose speed drifts
drifts for all of them; the table gives medians over the rounds, and the ratio of medians. Rounds that the file of --out holds already are counted too, so that
they can be run when the machine is free, one by one.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPT = 512
BATCHES = (1, 32)
TOKENS = 32


def run(command):
    """What it prints; where it fails, the script ends with its last line."""
    script = pathlib.Path(sys.argv[0]).name
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except OSError as error:
        sys.exit(f"{script}: {command[0]}: {error.strerror}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{script}: {(error.stderr.strip().splitlines() or [error])[-1]}")


def octavo(binary, model, precision, threads):
    line = json.loads(run([binary, "bench", "--model", model, "--precision", precision, "--threads", str(threads),
                           "--prompt-tokens", str(PROMPT), "--context", "64", "--tokens", str(TOKENS), "--repeat", "1",
                           "--batch", *map(str, BATCHES), "--json"]))
    rates = {"prompt": line["prefill_tokens_per_second"]}
    rates.update({f"decode {d['sequences']}": d["tokens_per_second"] for d in line["decode"]})
    rates["read GB/s"] = line["read_bytes_per_second"] / 1e9
    return rates, line


def llama(peer, gguf, threads):
    rows = json.loads(run([peer / "bin/llama-bench", "-m", gguf, "-t", str(threads), "-p", str(PROMPT), "-n", str(TOKENS),
                           "-r", "1", "-o", "json"]))
    rates = {"prompt" if row["n_prompt"] else "decode 1": row["avg_ts"] for row in rows}
    table = run([peer / "bin/llama-batched-bench", "-m", gguf, "-t", str(threads), "-tb", str(threads), "-c", "8192",
                 "-npp", "64", "-ntg", str(TOKENS), "-npl", ",".join(str(b) for b in BATCHES if b > 1)])
    for cells in (re.split(r"\s*\|\s*", row.strip(" |\n")) for row in table.splitlines() if row.startswith("|")):
        if cells[0].isdigit():
            rates[f"decode {cells[2]}"] = float(cells[7])
    return rates


def cpu_name():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=pathlib.Path)
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--octavo", default=str(ROOT / "build/default/cli/octavo"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()

    names = ("octavo fp8", "octavo bf16", "llama.cpp Q8_0", "llama.cpp bf16")
    result = {"cpu": cpu_name(), "threads": args.threads, "samples": {name: [] for name in names}}
    if args.out and args.out.exists():
        before = json.loads(args.out.read_text())
        if (before["cpu"], before["threads"]) != (result["cpu"], result["threads"]):
            sys.exit(f"{args.out} holds rounds of another machine ({before['cpu']}); remove it")
        result = before
    samples = result["samples"]
    for round_number in range(args.rounds):
        print(f"round {round_number + 1} of {args.rounds}", file=sys.stderr)
        order = names if len(samples[names[0]]) % 2 == 0 else names[::-1]
        for name in order:
            program, form = name.split()
            if program == "octavo":
                rates, info = octavo(args.octavo, args.model, form, args.threads)
                result[form] = {key: info[key] for key in ("backend", "weight_bytes")}
            else:
                rates = llama(args.peer, args.peer / f"{form.lower()}.gguf", args.threads)
            samples[name].append(rates)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")

    keys = ["prompt"] + [f"decode {b}" for b in BATCHES]
    median = {name: {k: statistics.median(s[k] for s in runs) for k in runs[0]} for name, runs in samples.items()}
    rounds = len(samples["octavo fp8"])
    print(f"{cpu_name()}, {args.threads} threads, {result['fp8']['backend']}, medians of {rounds} rounds, tokens/s\n")
    print("| | " + " | ".join(names) + " | fp8 / Q8_0 | fp8 / bf16 |")
    print("|---" * (len(names) + 3) + "|")
    for k in keys:
        fp8 = median["octavo fp8"][k]
        print(f"| {k} | " + " | ".join(f"{median[name][k]:.0f}" for name in names) +
              f" | {fp8 / median['llama.cpp Q8_0'][k]:.2f}× | {fp8 / median['llama.cpp bf16'][k]:.2f}× |")
    shares = [result["fp8"]["weight_bytes"] * s["decode 1"] / 1e9 / s["read GB/s"] for s in samples["octavo fp8"]]
    print(f"\nDecoding one sequence reads weights at {100 * statistics.median(shares):.0f} % of a plain read "
          f"({', '.join(f'{100 * s:.0f}' for s in shares)} round by round; "
          f"{median['octavo fp8']['read GB/s']:.1f} GB/s).")


if __name__ == "__main__":
    main()
