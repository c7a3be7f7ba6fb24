// Every key of NeMo-RL's example of a GRPO run (grpo_math_1B.yaml, commit 7ea279a), with the value that it
// has there, and what Octavo makes of it. docs/recipes.md says the same key by key.
#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "octavo/base/error.h"
#include "octavo/config/recipe.h"
#include "octavo/config/schema.h"

namespace octavo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

enum Use : std::uint8_t {
  kRead,      // Octavo does what it says
  kHarmless,  // of no use here, and with this value that changes nothing
  kWarns,     // of no use here, which is said
};

struct NemoKey {
  std::string_view path;
  std::string_view value;
  Use use;
};

constexpr NemoKey kKeys[] = {
    {"grpo.num_prompts_per_step", "32", kRead},
    {"grpo.num_generations_per_prompt", "16", kRead},
    {"grpo.max_rollout_turns", "1", kHarmless},
    {"grpo.max_num_epochs", "1", kRead},
    {"grpo.max_num_steps", "1000000", kRead},
    {"grpo.normalize_rewards", "true", kRead},
    {"grpo.use_leave_one_out_baseline", "true", kRead},
    {"grpo.val_period", "10", kRead},
    {"grpo.val_start_at", "-1", kRead},
    {"grpo.val_at_start", "false", kRead},
    {"grpo.val_at_end", "false", kRead},
    {"grpo.overlong_filtering", "false", kRead},
    {"grpo.advantage_clip_low", "null", kRead},
    {"grpo.advantage_clip_high", "null", kRead},
    {"grpo.max_val_samples", "256", kRead},
    {"grpo.val_num_generations_per_prompt", "1", kRead},
    {"grpo.stop_at_validation_metric", "null", kRead},
    {"grpo.stop_at_validation_threshold", "null", kRead},
    {"grpo.val_batch_size", "256", kWarns},
    {"grpo.seed", "42", kRead},
    {"grpo.use_dynamic_sampling", "false", kRead},
    {"grpo.dynamic_sampling_max_gen_batches", "10", kRead},
    {"grpo.batch_multiplier", "1", kRead},
    {"grpo.reward_shaping.enabled", "false", kRead},
    {"grpo.reward_shaping.overlong_buffer_length", "128", kRead},
    {"grpo.reward_shaping.overlong_buffer_penalty", "1", kRead},
    {"grpo.reward_shaping.max_response_length", "${policy.max_total_sequence_length}", kRead},
    {"grpo.reward_shaping.stop_properly_penalty_coef", "null", kRead},
    {"grpo.adv_estimator.name", "grpo", kHarmless},
    {"grpo.adv_estimator.normalize_rewards", "${grpo.normalize_rewards}", kRead},
    {"grpo.adv_estimator.use_leave_one_out_baseline", "${grpo.use_leave_one_out_baseline}", kRead},
    {"grpo.adv_estimator.minus_baseline", "true", kHarmless},
    {"grpo.reward_scaling.enabled", "false", kRead},
    {"grpo.reward_scaling.source_min", "0.0", kRead},
    {"grpo.reward_scaling.source_max", "1.0", kRead},
    {"grpo.reward_scaling.target_min", "0.0", kRead},
    {"grpo.reward_scaling.target_max", "1.0", kRead},
    {"grpo.seq_logprob_error_threshold", "null", kRead},
    {"grpo.invalid_tool_call_advantage", "null", kHarmless},
    {"grpo.malformed_thinking_advantage", "null", kHarmless},
    {"grpo.async_grpo.enabled", "false", kRead},
    {"grpo.async_grpo.max_trajectory_age_steps", "1", kRead},
    {"grpo.async_grpo.max_generation_failures", "0", kHarmless},
    {"grpo.async_grpo.in_flight_weight_updates", "false", kRead},
    {"grpo.async_grpo.recompute_kv_cache_after_weight_updates", "false", kRead},
    {"reward_penalties.penalize_duplicated_reasoning", "false", kWarns},
    {"reward_penalties.penalize_empty_final_answer", "false", kWarns},
    {"reward_penalties.penalize_unwanted_tokens", "false", kWarns},
    {"reward_penalties.penalize_malformed_think_tag", "false", kWarns},
    {"reward_penalties.token_ids", "null", kWarns},
    {"loss_fn.reference_policy_kl_penalty", "0.01", kRead},
    {"loss_fn.reference_policy_kl_type", "k3", kRead},
    {"loss_fn.kl_input_clamp_value", "20.0", kRead},
    {"loss_fn.kl_output_clamp_value", "10.0", kRead},
    {"loss_fn.ratio_clip_min", "0.2", kRead},
    {"loss_fn.ratio_clip_max", "0.2", kRead},
    {"loss_fn.ratio_clip_c", "null", kRead},
    {"loss_fn.use_on_policy_kl_approximation", "false", kRead},
    {"loss_fn.use_importance_sampling_correction", "false", kRead},
    {"loss_fn.truncated_importance_sampling_type", "null", kRead},
    {"loss_fn.truncated_importance_sampling_ratio", "null", kRead},
    {"loss_fn.truncated_importance_sampling_ratio_min", "null", kRead},
    {"loss_fn.sequence_level_importance_ratios", "false", kRead},
    {"loss_fn.token_level_loss", "true", kRead},
    {"loss_fn.force_on_policy_ratio", "false", kRead},
    {"loss_fn.use_kl_in_reward", "false", kHarmless},
    {"loss_fn.use_cispo", "false", kRead},
    {"loss_fn.disable_ppo_ratio", "false", kRead},
    {"loss_fn.positive_example_nll_weight", "0.0", kRead},
    {"checkpointing.enabled", "true", kRead},
    {"checkpointing.checkpoint_dir", "results/grpo", kRead},
    {"checkpointing.metric_name", "val:accuracy", kRead},
    {"checkpointing.higher_is_better", "true", kRead},
    {"checkpointing.keep_top_k", "3", kRead},
    {"checkpointing.save_period", "10", kRead},
    {"checkpointing.checkpoint_must_save_by", "null", kHarmless},
    {"checkpointing.model_save_format", "safetensors", kHarmless},
    {"checkpointing.save_consolidated", "false", kWarns},
    {"checkpointing.save_optimizer", "true", kHarmless},
    {"policy.model_name", "Qwen/Qwen2.5-1.5B", kRead},
    {"policy.tokenizer.name", "${policy.model_name}", kRead},
    {"policy.tokenizer.chat_template_kwargs", "null", kRead},
    {"policy.tokenizer.use_fastokens", "false", kWarns},
    {"policy.hf_config_overrides", "{}", kHarmless},
    {"policy.train_global_batch_size", "512", kRead},
    {"policy.train_micro_batch_size", "4", kRead},
    {"policy.generation_batch_size", "32", kWarns},
    {"policy.logprob_batch_size", "${policy.train_micro_batch_size}", kRead},
    {"policy.max_total_sequence_length", "512", kRead},
    {"policy.precision", "bfloat16", kRead},
    {"policy.logprob_chunk_size", "null", kHarmless},
    {"policy.offload_optimizer_for_logprob", "false", kHarmless},
    {"policy.dtensor_cfg._v2", "true", kWarns},
    {"policy.dtensor_cfg.enabled", "true", kWarns},
    {"policy.dtensor_cfg.cpu_offload", "False", kWarns},
    {"policy.dtensor_cfg.sequence_parallel", "false", kWarns},
    {"policy.dtensor_cfg.activation_checkpointing", "false", kWarns},
    {"policy.dtensor_cfg.tensor_parallel_size", "1", kWarns},
    {"policy.dtensor_cfg.context_parallel_size", "1", kWarns},
    {"policy.dtensor_cfg.custom_parallel_plan", "null", kWarns},
    {"policy.dtensor_cfg.automodel_kwargs", "{}", kWarns},
    {"policy.dtensor_cfg.lora_cfg.enabled", "False", kWarns},
    {"policy.dtensor_cfg.lora_cfg.target_modules", "[]", kWarns},
    {"policy.dtensor_cfg.lora_cfg.exclude_modules", "[]", kWarns},
    {"policy.dtensor_cfg.lora_cfg.match_all_linear", "true", kWarns},
    {"policy.dtensor_cfg.lora_cfg.dim", "8", kWarns},
    {"policy.dtensor_cfg.lora_cfg.alpha", "32", kWarns},
    {"policy.dtensor_cfg.lora_cfg.dropout", "0.0", kWarns},
    {"policy.dtensor_cfg.lora_cfg.dropout_position", "post", kWarns},
    {"policy.dtensor_cfg.lora_cfg.lora_A_init", "xavier", kWarns},
    {"policy.dtensor_cfg.lora_cfg.use_triton", "true", kWarns},
    {"policy.megatron_cfg.enabled", "false", kHarmless},
    {"policy.megatron_cfg.model_overrides", "{}", kWarns},
    {"policy.megatron_cfg.checkpoint.async_save", "true", kWarns},
    {"policy.megatron_cfg.checkpoint.ckpt_assume_constant_structure", "true", kWarns},
    {"policy.megatron_cfg.use_fused_linear_logprobs", "false", kWarns},
    {"policy.megatron_cfg.fused_linear_logprobs_chunk_size", "256", kWarns},
    {"policy.megatron_cfg.force_reconvert_from_hf", "False", kWarns},
    {"policy.megatron_cfg.empty_unused_memory_level", "1", kWarns},
    {"policy.megatron_cfg.activation_checkpointing", "false", kWarns},
    {"policy.megatron_cfg.cuda_graph_impl", "none", kWarns},
    {"policy.megatron_cfg.cuda_graph_modules", "[]", kWarns},
    {"policy.megatron_cfg.cuda_graph_warmup_steps", "3", kWarns},
    {"policy.megatron_cfg.fine_grained_activation_offloading", "false", kWarns},
    {"policy.megatron_cfg.offload_modules", "null", kWarns},
    {"policy.megatron_cfg.recompute_granularity", "full", kWarns},
    {"policy.megatron_cfg.recompute_modules", "null", kWarns},
    {"policy.megatron_cfg.tensor_model_parallel_size", "1", kWarns},
    {"policy.megatron_cfg.expert_tensor_parallel_size", "1", kWarns},
    {"policy.megatron_cfg.expert_model_parallel_size", "1", kWarns},
    {"policy.megatron_cfg.pipeline_model_parallel_size", "1", kWarns},
    {"policy.megatron_cfg.num_layers_in_first_pipeline_stage", "null", kWarns},
    {"policy.megatron_cfg.num_layers_in_last_pipeline_stage", "null", kWarns},
    {"policy.megatron_cfg.context_parallel_size", "1", kWarns},
    {"policy.megatron_cfg.pipeline_dtype", "${policy.precision}", kWarns},
    {"policy.megatron_cfg.sequence_parallel", "false", kWarns},
    {"policy.megatron_cfg.freeze_moe_router", "true", kWarns},
    {"policy.megatron_cfg.moe_router_dtype", "fp64", kWarns},
    {"policy.megatron_cfg.moe_router_load_balancing_type", "none", kWarns},
    {"policy.megatron_cfg.moe_router_bias_update_rate", "0.0", kWarns},
    {"policy.megatron_cfg.moe_permute_fusion", "true", kWarns},
    {"policy.megatron_cfg.apply_rope_fusion", "True", kWarns},
    {"policy.megatron_cfg.bias_activation_fusion", "True", kWarns},
    {"policy.megatron_cfg.defer_fp32_logits", "False", kWarns},
    {"policy.megatron_cfg.moe_per_layer_logging", "False", kWarns},
    {"policy.megatron_cfg.moe_enable_deepep", "false", kWarns},
    {"policy.megatron_cfg.moe_token_dispatcher_type", "alltoall", kWarns},
    {"policy.megatron_cfg.moe_shared_expert_overlap", "false", kWarns},
    {"policy.megatron_cfg.use_gloo_process_groups", "false", kWarns},
    {"policy.megatron_cfg.mtp_num_layers", "0", kWarns},
    {"policy.megatron_cfg.mtp_loss_scaling_factor", "0.0", kWarns},
    {"policy.megatron_cfg.mtp_use_repeated_layer", "false", kWarns},
    {"policy.megatron_cfg.mtp_detach_heads", "false", kWarns},
    {"policy.megatron_cfg.gradient_accumulation_fusion", "false", kWarns},
    {"policy.megatron_cfg.use_fused_weighted_squared_relu", "false", kWarns},
    {"policy.megatron_cfg.peft.enabled", "false", kWarns},
    {"policy.megatron_cfg.peft.target_modules", "[]", kWarns},
    {"policy.megatron_cfg.peft.exclude_modules", "[]", kWarns},
    {"policy.megatron_cfg.peft.dim", "8", kWarns},
    {"policy.megatron_cfg.peft.alpha", "32", kWarns},
    {"policy.megatron_cfg.peft.dropout", "0.0", kWarns},
    {"policy.megatron_cfg.peft.dropout_position", "post", kWarns},
    {"policy.megatron_cfg.peft.lora_A_init_method", "xavier", kWarns},
    {"policy.megatron_cfg.peft.lora_B_init_method", "zero", kWarns},
    {"policy.megatron_cfg.peft.a2a_experimental", "false", kWarns},
    {"policy.megatron_cfg.peft.lora_dtype", "None", kWarns},
    {"policy.megatron_cfg.optimizer.optimizer", "adam", kWarns},
    {"policy.megatron_cfg.optimizer.lr", "5.0e-6", kWarns},
    {"policy.megatron_cfg.optimizer.min_lr", "5.0e-7", kWarns},
    {"policy.megatron_cfg.optimizer.weight_decay", "0.01", kWarns},
    {"policy.megatron_cfg.optimizer.bf16", "true", kWarns},
    {"policy.megatron_cfg.optimizer.fp16", "false", kWarns},
    {"policy.megatron_cfg.optimizer.params_dtype", "float32", kWarns},
    {"policy.megatron_cfg.optimizer.adam_beta1", "0.9", kWarns},
    {"policy.megatron_cfg.optimizer.adam_beta2", "0.999", kWarns},
    {"policy.megatron_cfg.optimizer.adam_eps", "1e-8", kWarns},
    {"policy.megatron_cfg.optimizer.sgd_momentum", "0.9", kWarns},
    {"policy.megatron_cfg.optimizer.use_distributed_optimizer", "true", kWarns},
    {"policy.megatron_cfg.optimizer.use_precision_aware_optimizer", "true", kWarns},
    {"policy.megatron_cfg.optimizer.clip_grad", "${policy.max_grad_norm}", kWarns},
    {"policy.megatron_cfg.optimizer.optimizer_cpu_offload", "false", kWarns},
    {"policy.megatron_cfg.optimizer.optimizer_offload_fraction", "0.0", kWarns},
    {"policy.megatron_cfg.optimizer.overlap_cpu_optimizer_d2h_h2d", "false", kWarns},
    {"policy.megatron_cfg.scheduler.start_weight_decay", "${policy.megatron_cfg.optimizer.weight_decay}",
     kWarns},
    {"policy.megatron_cfg.scheduler.end_weight_decay", "${policy.megatron_cfg.optimizer.weight_decay}",
     kWarns},
    {"policy.megatron_cfg.scheduler.weight_decay_incr_style", "constant", kWarns},
    {"policy.megatron_cfg.scheduler.lr_decay_style", "constant", kWarns},
    {"policy.megatron_cfg.scheduler.lr_decay_iters", "1000", kWarns},
    {"policy.megatron_cfg.scheduler.lr_warmup_iters", "13", kWarns},
    {"policy.megatron_cfg.scheduler.lr_warmup_init", "5.0e-7", kWarns},
    {"policy.megatron_cfg.distributed_data_parallel_config.grad_reduce_in_fp32", "false", kWarns},
    {"policy.megatron_cfg.distributed_data_parallel_config.overlap_grad_reduce", "true", kWarns},
    {"policy.megatron_cfg.distributed_data_parallel_config.overlap_param_gather", "true", kWarns},
    {"policy.megatron_cfg.distributed_data_parallel_config.use_custom_fsdp", "false", kWarns},
    {"policy.megatron_cfg.distributed_data_parallel_config.data_parallel_sharding_strategy",
     "optim_grads_params", kWarns},
    {"policy.megatron_cfg.fp8_cfg.enabled", "false", kWarns},
    {"policy.megatron_cfg.fp8_cfg.fp8", "e4m3", kWarns},
    {"policy.megatron_cfg.fp8_cfg.fp8_recipe", "blockwise", kWarns},
    {"policy.megatron_cfg.fp8_cfg.fp8_param", "false", kWarns},
    {"policy.megatron_cfg.env_vars", "null", kWarns},
    {"policy.draft.enabled", "false", kHarmless},
    {"policy.draft.model_name", "null", kWarns},
    {"policy.draft.loss_weight", "0.1", kWarns},
    {"policy.draft.num_layers", "null", kWarns},
    {"policy.draft.aux_layer_indices", "null", kWarns},
    {"policy.dynamic_batching.enabled", "False", kHarmless},
    {"policy.dynamic_batching.train_mb_tokens",
     "${mul:${policy.max_total_sequence_length}, ${policy.train_micro_batch_size}}", kWarns},
    {"policy.dynamic_batching.logprob_mb_tokens",
     "${mul:${policy.max_total_sequence_length}, ${policy.logprob_batch_size}}", kWarns},
    {"policy.dynamic_batching.sequence_length_round", "64", kWarns},
    {"policy.sequence_packing.enabled", "True", kWarns},
    {"policy.sequence_packing.train_mb_tokens",
     "${mul:${policy.max_total_sequence_length}, ${policy.train_micro_batch_size}}", kWarns},
    {"policy.sequence_packing.logprob_mb_tokens",
     "${mul:${policy.max_total_sequence_length}, ${policy.logprob_batch_size}}", kWarns},
    {"policy.sequence_packing.algorithm", "modified_first_fit_decreasing", kWarns},
    {"policy.sequence_packing.microbatch_order", "packer", kWarns},
    {"policy.sequence_packing.sequence_length_round", "64", kWarns},
    {"policy.make_sequence_length_divisible_by", "${policy.dtensor_cfg.tensor_parallel_size}", kHarmless},
    {"policy.max_grad_norm", "1.0", kRead},
    {"policy.optimizer.name", "torch.optim.AdamW", kRead},
    {"policy.optimizer.kwargs.lr", "5.0e-6", kRead},
    {"policy.optimizer.kwargs.weight_decay", "0.01", kRead},
    {"policy.optimizer.kwargs.betas", "[0.9, 0.999]", kRead},
    {"policy.optimizer.kwargs.eps", "1e-8", kRead},
    {"policy.scheduler",
     "[{name: torch.optim.lr_scheduler.LinearLR, kwargs: {start_factor: 0.1, end_factor: 1.0, total_iters: "
     "50}}, {name: torch.optim.lr_scheduler.ConstantLR, kwargs: {factor: 1.0, total_iters: 10000000000}}, "
     "{milestones: [50]}]",
     kRead},
    {"policy.generation.port_range_low", "3000", kWarns},
    {"policy.generation.port_range_high", "4999", kWarns},
    {"policy.generation.backend", "vllm", kHarmless},
    {"policy.generation.max_new_tokens", "${policy.max_total_sequence_length}", kRead},
    {"policy.generation.temperature", "1.0", kRead},
    {"policy.generation.top_p", "1.0", kRead},
    {"policy.generation.top_k", "null", kRead},
    {"policy.generation.val_temperature", "${.temperature}", kRead},
    {"policy.generation.val_top_p", "${.top_p}", kRead},
    {"policy.generation.val_top_k", "${.top_k}", kRead},
    {"policy.generation.stop_token_ids", "null", kRead},
    {"policy.generation.stop_strings", "null", kRead},
    {"policy.generation.refit_transport", "null", kHarmless},
    {"policy.generation.real_quant_export_cpu_offload", "true", kWarns},
    {"policy.generation.refit_cfg.nixl.update_weights_bucket_memory_ratio", "0.05", kWarns},
    {"policy.generation.refit_cfg.nixl.device", "cuda", kWarns},
    {"policy.generation.refit_cfg.nixl.backend_name", "UCX", kWarns},
    {"policy.generation.refit_cfg.nixl.backend_init_params", "null", kWarns},
    {"policy.generation.refit_cfg.nixl.release_after_refit", "false", kWarns},
    {"policy.generation.refit_cfg.nixl.shard_expert_weights", "false", kWarns},
    {"policy.generation.mcore_generation_config.max_model_len", "${policy.max_total_sequence_length}",
     kWarns},
    {"policy.generation.mcore_generation_config.cuda_graph_impl", "local", kWarns},
    {"policy.generation.mcore_generation_config.inference_cuda_graph_scope", "block", kWarns},
    {"policy.generation.mcore_generation_config.buffer_size_gb", "10", kWarns},
    {"policy.generation.mcore_generation_config.num_cuda_graphs", "4", kWarns},
    {"policy.generation.mcore_generation_config.block_size_tokens", "256", kWarns},
    {"policy.generation.mcore_generation_config.use_cuda_graphs_for_non_decode_steps", "true", kWarns},
    {"policy.generation.mcore_generation_config.enable_chunked_prefill", "true", kWarns},
    {"policy.generation.mcore_generation_config.enable_prefix_caching", "false", kWarns},
    {"policy.generation.mcore_generation_config.max_tokens", "16384", kWarns},
    {"policy.generation.mcore_generation_config.kv_cache_management_mode", "persist", kWarns},
    {"policy.generation.mcore_generation_config.materialize_only_last_token_logits", "true", kWarns},
    {"policy.generation.mcore_generation_config.num_speculative_tokens", "0", kWarns},
    {"policy.generation.mcore_generation_config.refit_backend", "nccl", kWarns},
    {"policy.generation.mcore_generation_config.parsers", "[]", kWarns},
    {"policy.generation.mcore_generation_config.expose_http_server", "false", kWarns},
    {"policy.generation.vllm_cfg.async_engine", "false", kWarns},
    {"policy.generation.vllm_cfg.precision", "${policy.precision}", kRead},
    {"policy.generation.vllm_cfg.kv_cache_dtype", "auto", kHarmless},
    {"policy.generation.vllm_cfg.logprobs_mode", "processed_logprobs", kRead},
    {"policy.generation.vllm_cfg.tensor_parallel_size", "1", kHarmless},
    {"policy.generation.vllm_cfg.pipeline_parallel_size", "1", kHarmless},
    {"policy.generation.vllm_cfg.expert_parallel_size", "1", kHarmless},
    {"policy.generation.vllm_cfg.gpu_memory_utilization", "0.6", kWarns},
    {"policy.generation.vllm_cfg.max_model_len", "${policy.max_total_sequence_length}", kRead},
    {"policy.generation.vllm_cfg.enforce_eager", "False", kWarns},
    {"policy.generation.vllm_cfg.use_tqdm", "true", kWarns},
    {"policy.generation.vllm_cfg.use_deep_gemm", "False", kRead},
    {"policy.generation.vllm_cfg.num_last_layers_in_bf16", "0", kRead},
    {"policy.generation.vllm_cfg.num_first_layers_in_bf16", "0", kRead},
    {"policy.generation.vllm_cfg.enable_vllm_metrics_logger", "true", kWarns},
    {"policy.generation.vllm_cfg.vllm_metrics_logger_interval", "0.5", kWarns},
    {"policy.generation.vllm_cfg.http_refit_api_key_env_var", "null", kHarmless},
    {"policy.generation.vllm_cfg.reset_encoder_cache_after_weight_update", "false", kHarmless},
    {"policy.generation.vllm_cfg.http_refit_server_port", "null", kHarmless},
    {"policy.generation.vllm_cfg.zmq_refit_server_port", "null", kHarmless},
    {"policy.generation.vllm_kwargs", "{}", kHarmless},
    {"policy.generation.colocated.enabled", "true", kWarns},
    {"policy.generation.colocated.resources.gpus_per_node", "null", kWarns},
    {"policy.generation.colocated.resources.num_nodes", "null", kWarns},
    {"data.max_input_seq_length", "${policy.max_total_sequence_length}", kRead},
    {"data.shuffle", "true", kRead},
    {"data.num_workers", "1", kWarns},
    {"data.use_multiple_dataloader", "false", kHarmless},
    {"data.train.dataset_name", "OpenMathInstruct-2", kRead},
    {"data.train.split_validation_size", "0.05", kRead},
    {"data.train.seed", "${grpo.seed}", kRead},
    {"data.validation", "null", kRead},
    {"data.default.prompt_file", "examples/prompts/cot.txt", kRead},
    {"data.default.system_prompt_file", "null", kRead},
    {"data.default.processor", "math_hf_data_processor", kWarns},
    {"data.default.env_name", "math", kRead},
    {"env.math.num_workers", "8", kRead},
    {"env.math.math_verify_impl", "hf_math_verify", kWarns},
    {"logger.log_dir", "logs", kRead},
    {"logger.num_val_samples_to_print", "0", kRead},
    {"logger.wandb_enabled", "false", kHarmless},
    {"logger.tensorboard_enabled", "false", kRead},
    {"logger.mlflow_enabled", "false", kHarmless},
    {"logger.swanlab_enabled", "false", kHarmless},
    {"logger.monitor_gpus", "true", kWarns},
    {"logger.wandb.project", "grpo-dev", kWarns},
    {"logger.wandb.name", "grpo-dev-logger", kWarns},
    {"logger.wandb.log_nemo_gym_full_result_tables", "false", kWarns},
    {"logger.swanlab.project", "grpo-dev", kWarns},
    {"logger.swanlab.name", "grpo-dev-logger", kWarns},
    {"logger.tensorboard", "{}", kHarmless},
    {"logger.mlflow.experiment_name", "grpo-dev", kWarns},
    {"logger.mlflow.run_name", "grpo-dev-logger", kWarns},
    {"logger.mlflow.tracking_uri", "http://localhost:5000", kWarns},
    {"logger.gpu_monitoring.collection_interval", "10", kWarns},
    {"logger.gpu_monitoring.flush_interval", "10", kWarns},
    {"cluster.gpus_per_node", "1", kHarmless},
    {"cluster.num_nodes", "1", kHarmless},
    {"cluster.master_port_range_low", "1400", kWarns},
    {"cluster.master_port_range_high", "1999", kWarns},
    {"cluster.segment_size", "null", kHarmless},
    {"data_plane.enabled", "false", kHarmless},
    {"data_plane.impl", "transfer_queue", kWarns},
    {"data_plane.backend", "simple", kWarns},
    {"data_plane.storage_capacity", "1000000", kWarns},
    {"data_plane.num_storage_units", "2", kWarns},
    {"data_plane.claim_meta_poll_interval_s", "0.5", kWarns},
    {"data_plane.global_segment_size", "549755813888", kWarns},
    {"data_plane.local_buffer_size", "68719476736", kWarns},
    {"on_policy_distillation", "null", kHarmless},
};

class NemoRlKeysTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(path_) << "policy: {model_name: m}\ndata: {train: {dataset_name: addition}}\n";
  }
  ~NemoRlKeysTest() override { std::filesystem::remove(path_); }

  static std::string text(const NemoKey& key) { return std::string(key.path) + "=" + std::string(key.value); }
  // Those that other keys of the example refer to.
  static std::vector<std::string> with_references(const std::string& text) {
    return {text, "policy.dtensor_cfg.tensor_parallel_size=1",
            "policy.megatron_cfg.optimizer.weight_decay=0.01", "policy.max_grad_norm=1"};
  }

  std::string path_ =
      ::testing::TempDir() + ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".yaml";
};

bool is_read(std::string_view path) {
  Recipe every = recipe_with_every_section();
  std::string name(path);
  if (name.starts_with("data.default.")) name.replace(0, 12, "data.train");
  if (name.starts_with("env.math.")) name.replace(0, 8, "env.NAME");
  const auto keys = recipe_keys(every);
  return std::any_of(keys.begin(), keys.end(), [&](const RecipeKey& key) {
    return key.path == name || key.rules.also == name || key.path.starts_with(name + ".");
  });
}

TEST_F(NemoRlKeysTest, EachIsReadOrNamed) {
  for (const NemoKey& key : kKeys) {
    std::vector<std::string> warnings;
    EXPECT_NO_THROW(load_recipe(path_, with_references(text(key)), warnings)) << text(key);
    const bool warned = std::any_of(warnings.begin(), warnings.end(), [&](const std::string& warning) {
      return warning.find("'" + text(key) + "'") != std::string::npos;
    });
    EXPECT_EQ(warned, key.use == kWarns) << text(key);
    EXPECT_EQ(is_read(key.path), key.use == kRead) << text(key);
  }
}

TEST_F(NemoRlKeysTest, TheWholeExampleLoads) {
  std::vector<std::string> overrides;
  for (const NemoKey& key : kKeys) overrides.push_back(text(key));
  std::vector<std::string> warnings;
  const Recipe recipe = load_recipe(path_, overrides, warnings);
  EXPECT_EQ(recipe.policy.model_name, "Qwen/Qwen2.5-1.5B");
  EXPECT_EQ(recipe.policy.tokenizer.name, "Qwen/Qwen2.5-1.5B");
  EXPECT_EQ(recipe.policy.generation.vllm_cfg.precision, "bfloat16");
  EXPECT_EQ(recipe.policy.generation.val_temperature, 1.0);
  EXPECT_EQ(recipe.policy.scheduler.phases.size(), 2);
  EXPECT_EQ(recipe.grpo.reward_shaping.max_response_length, 512);
  EXPECT_EQ(recipe.data.train.env_name, "math");
  EXPECT_FALSE(recipe.data.validation);
  EXPECT_LT(warnings.size(), 40);  // one a section
}

// What would change the result and is not there.
TEST_F(NemoRlKeysTest, WhatIsNotSupportedIsRefused) {
  int refused = 0;
  for (const ForeignKey& key : foreign_keys()) {
    if (key.kind != ForeignKey::Kind::kUnsupported) continue;
    std::string path = key.path;
    if (const std::size_t star = path.find('*'); star != std::string::npos) path.replace(star, 1, "train");
    std::vector<std::string> warnings;
    EXPECT_THAT([&] { load_recipe(path_, {path + "=other"}, warnings); },
                ThrowsMessage<Error>(AllOf(HasSubstr("does not support"), HasSubstr(path))))
        << path;
    ++refused;
  }
  EXPECT_GE(refused, 30);
}

}  // namespace
}  // namespace octavo
