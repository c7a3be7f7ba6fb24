#!/usr/bin/env bash
# The FP8 accuracy study: every recipe of recipes/study over several seeds, then all of them set against the bf16 runs.
#
#   scripts/study.sh                                       # three seeds; ends with runs/study/study.html and study.md
#   scripts/study.sh --seeds "1 2 3 4 5" --recipes "bf16 fp8 fp8-tis" grpo.max_num_steps=200 cluster.device=cuda
#
# key=value overrides go to every run. Runs that are finished are kept, others begin anew: after a stop the same command goes
# on, and more seeds or recipes can be added later. Seeds are the outer loop, so that what there is can be compared any time:
#   scripts/study.sh --compare
set -euo pipefail
cd "$(dirname "$0")/.."

octavo=${OCTAVO:-build/default/cli/octavo}
out=runs/study
seeds="1 2 3"
recipes="bf16 fp8 fp8-is fp8-tis fp8-icepop fp8-seq-mask-tis fp8-bf16-ends fp8-pow2 fp8-matched"
compare_only=
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    --seeds) seeds=${2:?--seeds needs a list} && shift ;;
    --recipes) recipes=${2:?--recipes needs a list} && shift ;;
    --out) out=${2:?--out needs a folder} && shift ;;
    --compare) compare_only=1 ;;
    *=* | ~*) overrides+=("$1") ;;
    *) echo "study: '$1' is neither an option (--seeds, --recipes, --out, --compare) nor key=value" >&2 && exit 2 ;;
  esac
  shift
done
trap 'exit 130' INT TERM  # the run finishes its step and writes its report; the next one does not begin

# Faults of a recipe show before the first run, not hours later.
for name in $recipes; do
  "$octavo" recipe "recipes/study/$name.yaml" ${overrides[@]+"${overrides[@]}"} >/dev/null
done

for seed in $seeds; do
  for name in $recipes; do
    run=$out/$name-seed$seed
    if [ -n "$compare_only" ] || [ -e "$run/finished" ]; then continue; fi
    echo "=== $name, seed $seed"
    rm -rf "$run"
    "$octavo" train "recipes/study/$name.yaml" ${overrides[@]+"${overrides[@]}"} "grpo.seed=$seed" "logger.log_dir=$run"
    touch "$run/finished"
  done
done

runs=()
for name in $recipes; do  # the first one is the baseline
  for run in "$out/$name"-seed*; do
    if [ -e "$run/finished" ]; then runs+=("$name=$run"); fi
  done
done
if [ ${#runs[@]} -eq 0 ]; then echo "study: no run in $out is finished" >&2 && exit 2; fi
"$octavo" compare "${runs[@]}" --out "$out/study.html" | tee "$out/study.md"
