#!/usr/bin/env bash
# What `make demo` runs: SmolLM2-135M-Instruct learns to add by GRPO from FP8 rollouts: scripts/demo.sh OCTAVO
# [key=value...]. A run that was stopped or killed goes on where it was; one that is done begins anew.
set -euo pipefail
octavo=$1
shift
run=runs/demo

resume=()
if [ -f $run/metrics.jsonl ]; then
  wanted=$(sed -n 's/^ *max_num_steps: *//p' $run/recipe.yaml)
  if [ "$(wc -l <$run/metrics.jsonl)" -lt "$wanted" ]; then
    resume=(--resume)
  else
    rm -rf $run
  fi
fi
"$octavo" train recipes/demo.yaml ${resume[@]+"${resume[@]}"} "$@"
