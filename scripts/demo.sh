#!/usr/bin/env bash
# FP8 generation on the embedded model, with bf16 next to it: scripts/demo.sh OCTAVO MODEL_FOLDER
set -euo pipefail
octavo=$1
model=$2

prompts=("The capital of France is" "Water boils when" "def fibonacci(n):")

"$octavo" inspect "$model"
for prompt in "${prompts[@]}"; do
  for precision in fp8 bf16; do
    printf '\n--- %s\n' "$precision"
    "$octavo" generate --model "$model" --precision $precision --prompt "$prompt" --temperature 0 --max-tokens 40
  done
done
