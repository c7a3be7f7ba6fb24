#!/usr/bin/env python3
"""Octavo and its peers side by side on one GPU, in one run: vLLM with block FP8 and DeepGEMM and with bf16, DeepGEMM and
cuBLASLt by themselves, vLLM's fused norm and SiLU, a refit in plain torch. Writes the tables of docs/results/gpu-speed.md.

    bench/gpu_speed.py --out gpu-speed.json                  # measures (9 minutes, of which vLLM's two starts are most)
    bench/gpu_speed.py --parts gemm --out gpu-speed.json     # one part only; the file keeps the others
    bench/gpu_speed.py --from gpu-speed.json > docs/results/gpu-speed.md

Needs `make build` and, for the peers, a python with torch 2.11.0 and vLLM 0.24.0 (--python). Octavo runs before and after a peer,
so that both meet the card in the same state; its figures are means of both. A part is written to the file as soon as it is
there. What fails is left out of the tables, or stays as the file had it, is said at the end, and makes the exit code 1.
"""

import argparse
import datetime
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHAPE = "llama-3.1-8b"
SEQUENCES = [1, 16, 64, 256]
PREFILL = (64, 1024)  # sequences, prompt
LAYERS = ["qkv", "o", "gate_up", "down"]
DECODE_GOALS = {1: 1.6, 16: 1.6, 64: 1.5, 256: 1.4}
BF16_GOALS = {1: 1.9, 16: 1.9}  # against vLLM in bf16
NARROW, WIDE = (1, 8, 16, 64), (256, 512, 1024, 4096)  # tokens of the two goals of the GEMM
CHAIN_GOAL = 58  # µs, of the four layers
TOKENS = [str(m) for m in sorted({*NARROW, 128, *WIDE})]
LOADED_TOKENS = "8192"


class Runner:
    """Runs the programs; what fails is kept in `failures`."""

    def __init__(self, args):
        self.bin, self.python, self.limit = args.bin, args.python, args.limit
        self.failures = []

    def program(self, name):
        return str(next((p for p in (self.bin / name, self.bin / "cli" / name, self.bin / "bench" / name) if p.exists()), self.bin / name))

    def text(self, *command):
        program, *flags = command[1:] if command[0] == self.python else command
        name = pathlib.Path(program).name
        print(name, *flags, file=sys.stderr, flush=True)
        begin = time.monotonic()
        try:
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=self.limit)
            if done.returncode == 0:
                print(f"  {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
                return done.stdout
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            why = f"not done after {self.limit} s (--limit)"
        except OSError as error:
            why = error.strerror
        self.failures.append(f"{name}: {why}")
        return ""

    def octavo(self, *flags):
        out = self.text(self.program("octavo"), "bench", "--shape", SHAPE, "--random-weights", "--device", "cuda", "--json", *flags)
        return json.loads(out) if out else {"rollouts": []}

    def table(self, *command):
        """Rows of the Markdown that one of our benches prints, numbers as floats."""
        rows = [[c.strip() for c in line.strip("|\n").split("|")] for line in self.text(self.program(command[0]), *command[1:]).splitlines()
                if line.startswith("| ") and line[2].isdigit()]
        return [[float(c) for c in row if re.fullmatch(r"[\d.]+", c)] for row in rows]

    def peer(self, script, *flags):
        out = self.text(self.python, ROOT / "bench/peers" / script, *flags)
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def engine(run):
    def octavo():
        sequences, prompt = PREFILL
        decode = run.octavo("--sequences", ",".join(map(str, SEQUENCES)))
        prefill = run.octavo("--sequences", ",".join([str(sequences)] * 3), "--prompt", str(prompt), "--output", "1")
        return {"decode": decode["rollouts"], "prefill": prefill["rollouts"],
                "starts": [[one["ready_seconds"], one["first_tokens_seconds"]] for one in (decode, prefill) if "ready_seconds" in one]}

    run.text(run.python, ROOT / "bench/peers/deepgemm_warm.py")
    before = octavo()
    shape = ROOT / "bench/shapes" / SHAPE
    vllm = run.peer("vllm_speed.py", shape, "--sequences", *SEQUENCES, "--prefill", *PREFILL)
    bf16 = run.peer("vllm_speed.py", shape, "--precision", "bf16", "--sequences", *BF16_GOALS, "--prefill", *PREFILL)
    return {"octavo": [before, octavo()], "vllm": vllm, "vllm_bf16": bf16}


def gemm(run):
    before = run.table("gemm_gpu_bench", "table", *TOKENS)
    peers = run.peer("gemm_speed.py", "--tokens", *TOKENS, "--load", LOADED_TOKENS)
    return {"octavo": [before, run.table("gemm_gpu_bench", "table", *TOKENS)], "peers": peers,
            "chain": run.table("gemm_gpu_bench", "chain"), "load": run.table("gemm_gpu_bench", "load", LOADED_TOKENS)}


def refit(run):
    return {"octavo": run.text(run.program("gpu_refit_bench")).strip(), "torch": run.text(run.python, ROOT / "bench/torch_refit.py").strip()}


def ops(run):
    return {"octavo": run.text(run.program("gpu_ops_bench")).strip(), "vllm": run.peer("ops_speed.py")}


PARTS = {"engine": engine, "gemm": gemm, "refit": refit, "ops": ops}


def machine():
    try:
        query = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"],
                               capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        sys.exit("gpu_speed.py: nvidia-smi finds no GPU here; --from makes the tables of a file")
    return query.stdout.splitlines()[0]


def measurements(path):
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"gpu_speed.py: {path} holds no measurements: {error}")
    part_keys = {"machine", "when", "figures"}
    if not isinstance(result, dict) or not result or not all(
            name in PARTS and isinstance(part, dict) and part.keys() == part_keys for name, part in result.items()):
        sys.exit(f"gpu_speed.py: {path} holds no measurements of this program; they are of {', '.join(PARTS)}")
    return result


def mean(values):
    values = list(values)
    return statistics.fmean(values) if values else math.nan


def cell(value, form="{:,.0f}"):
    return "–" if math.isnan(value) else form.format(value)


def rows(header, lines):
    return ["| " + " | ".join(header) + " |", "|---" * len(header) + "|", *("| " + " | ".join(line) + " |" for line in lines), ""]


def engine_tables(part):
    def octavo(what, sequences, key):
        return mean(r[key] for one in part["octavo"] for r in one[what] if r["sequences"] == sequences and r[key] is not None)

    def vllm(what, sequences, key, of="vllm"):
        return mean(r[key] for r in part.get(of, []) if r["what"] == what and r["sequences"] == sequences)

    lines = []
    for n in SEQUENCES:
        ours, theirs = octavo("decode", n, "output_tokens_per_second"), vllm("decode", n, "output_tokens_per_second")
        lines.append([f"{n} sequence{'s' if n > 1 else ''}", cell(ours), cell(octavo("decode", n, "step_ms"), "{:.3f}"),
                      cell(octavo("decode", n, "first_token_ms"), "{:.1f}"), cell(theirs), cell(vllm("decode", n, "first_token_ms"), "{:.1f}"),
                      cell(ours / theirs, "{:.2f}"), str(DECODE_GOALS[n])])
    n, prompt = PREFILL
    ours, theirs = (n * prompt / f("prefill", n, "first_token_ms") * 1e3 for f in (octavo, vllm))
    lines.append([f"prompts of {n} × {prompt}, prompt tok/s", cell(ours), "", cell(octavo("prefill", n, "first_token_ms"), "{:.1f}"), cell(theirs),
                  cell(vllm("prefill", n, "first_token_ms"), "{:.1f}"), cell(ours / theirs, "{:.3f}"), "1.25"])
    bf16 = []
    for sequences, goal in BF16_GOALS.items():
        theirs = vllm("decode", sequences, "output_tokens_per_second", "vllm_bf16")
        ratio = octavo("decode", sequences, "output_tokens_per_second") / theirs
        bf16.append(f"{cell(theirs)} tok/s at {sequences} (Octavo {cell(ratio, '{:.2f}')} times as fast; goal: {goal})")
    bf16.append(f"prompts {cell(n * prompt / vllm('prefill', PREFILL[0], 'first_token_ms', 'vllm_bf16') * 1e3)} tok/s")
    start = next((r for r in part["vllm"] if r["what"] == "start"), {})
    starts = [s for one in part["octavo"] for s in one.get("starts", [])]
    ready = f"Ready after {max(s[0] for s in starts):.1f} s, first tokens {max(s[1] for s in starts):.2f} s later (goal: 10); " if starts else ""
    return ["## Engine", "", f"Prompts of 128, outputs of 512, temperature 1, log-probabilities of the sampled tokens. vLLM {start.get('vllm', '?')}, block FP8, "
            f"DeepGEMM, steps of {start.get('max_batch_tokens', 0):,} tokens, Octavo with its defaults. Means of each program's two runs, Octavo's before and after vLLM's (prompts: of six and three); vLLM's "
            "first token is the better of two calls for one token.", "",
            *rows(["", "output tok/s", "step ms", "first token ms", "vLLM tok/s", "first token ms", "ratio", "goal"], lines),
            f"vLLM in bf16: {', '.join(bf16)}.", "",
            f"{ready}vLLM ready after {start.get('seconds', '?')} s with DeepGEMM's kernels compiled before.", ""]


def gemm_tables(part):
    def ours(tokens, layer):
        return mean(r[1 + LAYERS.index(layer)] for table in part["octavo"] for r in table if r[0] == tokens)

    def theirs(what, tokens, layer):
        us = next((r["us"] for r in part["peers"] if r["what"] == what and r["layer"] == layer and r["tokens"] == tokens), {})
        deep = [us[k] for k in ("deepgemm", "deepgemm_pdl") if k in us]
        return min(deep, default=math.nan), us.get("cublaslt", math.nan)

    def geometric(values):
        return math.exp(mean(math.log(v) for v in values))

    all_tokens = [int(r[0]) for r in part["octavo"][0]]
    lines, ratios = [], {}
    for m in all_tokens:
        best = {layer: min((t for t in theirs("gemm", m, layer) if not math.isnan(t)), default=math.nan) for layer in LAYERS}
        ratios[m] = [best[layer] / ours(m, layer) for layer in LAYERS]
        cells = [" / ".join(cell(v, "{:.1f}") for v in (ours(m, layer), *theirs("gemm", m, layer))) for layer in LAYERS]
        lines.append([str(m), *cells, cell(geometric(ratios[m]), "{:.3f}")])
    def over(tokens):
        return geometric([r for m in tokens if m in ratios for r in ratios[m]])

    goals = [(", ".join(map(str, tokens)), over(tokens), goal) for tokens, goal in ((NARROW, 1.25), (WIDE, 1))]
    out = ["## GEMM", "", "The four linear layers of Llama-3.1-8B, random values, weights rotated past L2, one CUDA graph, medians, µs: Octavo / DeepGEMM (with programmatic "
           "dependent launch where that is quicker) / cuBLASLt's block scaling; the ratio is the better peer's time over Octavo's, the geometric mean over the four.", "",
           *rows(["tokens", *LAYERS, "ratio"], lines),
           *(f"- geometric mean over {name} tokens: {cell(ratio, '{:.3f}')} (goal: {goal})" for name, ratio, goal in goals)]
    one_kernel = {r[0]: r[1] for r in part["chain"] if len(r) == 4}
    chain = {**{r[0]: r[1] for r in part["chain"] if len(r) == 3 and r[0] <= max(NARROW)}, **one_kernel}
    if chain:
        times = ", ".join(f"{chain[m]:.1f} at {m:.0f}" for m in sorted(chain))
        missed = [f"{m:.0f}" for m in sorted(chain) if chain[m] > CHAIN_GOAL]
        out.append(f"- the four in one graph, up to {max(one_kernel, default=0):.0f} tokens as one kernel, µs: {times} (goal: {CHAIN_GOAL}, "
                   f"{'missed at ' + ', '.join(missed) if missed else 'met'})")
    if part["load"]:
        loaded = part["load"][0]
        out += ["", f"Under the power limit, {loaded[0]:.0f} tokens, µs, Octavo / DeepGEMM: " +
                ", ".join(f"{layer} {loaded[1 + i]:.0f} / {cell(theirs('load', loaded[0], layer)[0], '{:.0f}')}" for i, layer in enumerate(LAYERS)) +
                f"; gate_up with SiLU and quantization {min(loaded[5:7]):.0f}."]
    return [*out, ""]


def refit_tables(part):
    return ["## Refit", "", "The whole model from bf16 tensors on the GPU (goal: 8.5 ms, at most 64 MiB beside it), and plain torch.", "", "```", *filter(None, (part["octavo"], part["torch"])), "```", ""]


def ops_tables(part):
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in part["octavo"].splitlines() if line.startswith("| ")]
    of = {(row[0], row[1]): row for row in cells}
    rate = {name.split()[0]: float(row[3]) for (name, _), row in of.items() if name.endswith("by a kernel")}
    theirs = {(r["what"], r["rows"]): r["us"] for r in part.get("vllm", []) if "us" in r}
    lines = []
    for name, peer in (("residual + RMSNorm + quantize, 4096", "norm"), ("SiLU*up + quantize, 2x14336", "silu")):
        many, one = of.get((name, "8192")), of.get((name, "1"))
        if many and one and rate.keys() >= {"copy", "read"}:
            floor = float(many[4])
            beside = ", ".join(f"{theirs[peer, m]:.1f} at {m}" for m in (1, 64, 1024, 8192) if (peer, m) in theirs)
            lines.append(f"- {name}: {floor:.2f} floors at 8192 rows, {floor * rate['read'] / rate['copy']:.2f} by the rate of plain reads "
                         f"(goal: 1.25); {float(one[2]):.2f} µs at one row (goal: 3){'; vLLM, µs: ' + beside if beside else ''}")
    return ["## Single operations", "", "The floor is what a kernel that copies takes in the same run to read and write as many bytes; one that only reads is faster.", "",
            *lines, "", part["octavo"], ""]


TABLES = {"engine": engine_tables, "gemm": gemm_tables, "refit": refit_tables, "ops": ops_tables}


def document(result):
    lines = ["# GPU speed, against the peers", "", "Written by `bench/gpu_speed.py`, each part on one card in one run; engine and GEMM with Octavo before and after the peers, means of both. The "
             "measurements: [gpu-speed.json](gpu-speed.json). What bounds them: [gpu-engine.md](gpu-engine.md), [gpu-gemm.md](gpu-gemm.md), [gpu-ops.md](gpu-ops.md).", ""]
    for name, tables in TABLES.items():
        if name in result:
            card, driver, power = result[name]["machine"].split(", ")
            lines += tables(result[name]["figures"]) + [f"{card}, driver {driver}, limit {power}; {result[name]['when']} UTC.", ""]
    return "\n".join(lines).rstrip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/default", help="a build, or a folder with its programs")
    parser.add_argument("--python", default=sys.executable, help="of the peers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=int, default=1200, help="seconds that one program may take")
    parser.add_argument("--out", type=pathlib.Path, help="file of the measurements, read first where it exists")
    parser.add_argument("--from", dest="source", type=pathlib.Path, help="print the document of such a file instead")
    args = parser.parse_args()
    if args.source:
        sys.stdout.write(document(measurements(args.source)))
        return
    if not args.out:
        parser.error("--out says where the measurements go")
    card = machine()
    result = measurements(args.out) if args.out.exists() and args.out.stat().st_size else {}
    try:  # before the work, not after it
        args.out.open("a").close()
    except OSError as error:
        sys.exit(f"gpu_speed.py: cannot write {args.out}: {error.strerror}")
    run = Runner(args)
    for name in args.parts:
        when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M")
        failed = len(run.failures)
        part = {"machine": card, "when": when, "figures": PARTS[name](run)}
        if name in result and len(run.failures) > failed:
            run.failures.append(f"{args.out} keeps its older {name}")
            continue
        result[name] = part
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(document(result))
    if run.failures:
        sys.exit("gpu_speed.py: " + "; ".join(run.failures))


if __name__ == "__main__":
    main()
