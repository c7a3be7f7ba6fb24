#!/usr/bin/env bash
# How far rollout and trainer are apart, setting by setting (docs/results/grpo-mismatch.md):
# bench/grpo_mismatch.sh OCTAVO OUT_FOLDER [key=value...]
#
# Every setting starts from the same weights and answers the same prompts; the learning rate is 0, so that all its
# steps measure the same policy.
set -euo pipefail
octavo=$1
out=$2
shift 2
common=(grpo.max_num_steps=1 grpo.num_prompts_per_step=4 policy.optimizer.kwargs.lr=0 checkpointing.enabled=false logger.tensorboard_enabled=false policy.matched_fp8_forward=false
  data.train.task_options.max=99 policy.generation.max_new_tokens=48 policy.max_total_sequence_length=192)
fp8=policy.generation.vllm_cfg

run() { # name, overrides
  local name=$1
  shift
  "$octavo" train recipes/demo.yaml "${common[@]}" "logger.log_dir=$out/$name" \
    "checkpointing.checkpoint_dir=$out/$name/checkpoints" "$@"
}
run bf16 $fp8.precision=bfloat16 "${@}"
run fp8 "${@}"
run fp8-guide $fp8.num_first_layers_in_bf16=1 $fp8.num_last_layers_in_bf16=3 "${@}"
run fp8-pow2 $fp8.use_weight_pow2_scale=true $fp8.use_activation_pow2_scale=true "${@}"
run fp8-matched policy.matched_fp8_forward=true "${@}"
run fp8-guide-matched $fp8.num_first_layers_in_bf16=1 $fp8.num_last_layers_in_bf16=3 policy.matched_fp8_forward=true "${@}"

echo "| setting | token_mult_prob_error | gen_kl_error | greatest sequence's mult_prob_error | tokens |"
echo "|---|---|---|---|---|"
for name in bf16 fp8 fp8-guide fp8-pow2 fp8-matched fp8-guide-matched; do
  .venv/bin/python - "$name" "$out/$name/metrics.jsonl" <<'PY'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[2])]
tokens = sum(l["num_valid_tokens"] for l in lines)
mean = lambda key: sum(l[key] * l["num_valid_tokens"] for l in lines) / tokens
worst = max(l["seq_mult_prob_error/max"] for l in lines)
print(f"| {sys.argv[1]} | {mean('token_mult_prob_error'):.5f} | {mean('gen_kl_error'):.2e} | {worst:.3f} | {tokens} |")
PY
done
