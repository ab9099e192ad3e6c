"""The architecture in `config.json` of well-known checkpoints, in the form that the Hub has it (before transformers
5), and their numbers of parameters."""

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
          "rope_type": "llama3"}  # fmt: skip
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096, "type": "yarn"}  # fmt: skip
LONGROPE = {"long_factor": [1.0 + i for i in range(48)], "short_factor": [1.0 + 0.01 * i for i in range(48)]}


def _config(architecture: str, kind: str, sizes: str, **more: object) -> dict[str, object]:
    """sizes: vocabulary, hidden, intermediate, layers, heads, key/value heads, positions."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings")  # fmt: skip
    numbers = (int(size) for size in sizes.split())
    return {"architectures": [architecture], "model_type": kind, **dict(zip(names, numbers, strict=True)), **more}


MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_layer_freq": 1}

CONFIGS = {
    "Llama-2-7b": (
        _config("LlamaForCausalLM", "llama", "32000 4096 11008 32 32 32 4096", rms_norm_eps=1e-5,
                hidden_act="silu", tie_word_embeddings=False, rope_scaling=None),
        6_738_415_616,
    ),
    "Llama-3.1-8B": (
        _config("LlamaForCausalLM", "llama", "128256 4096 14336 32 32 8 131072", rms_norm_eps=1e-5,
                rope_theta=500000.0, rope_scaling=LLAMA3, attention_bias=False, mlp_bias=False),
        8_030_261_248,
    ),
    "SmolLM2-135M": (
        _config("LlamaForCausalLM", "llama", "49152 576 1536 30 9 3 8192", rms_norm_eps=1e-5, rope_theta=100000,
                tie_word_embeddings=True),
        134_515_008,
    ),
    "Mistral-7B-v0.1": (
        _config("MistralForCausalLM", "mistral", "32000 4096 14336 32 32 8 32768", rms_norm_eps=1e-5,
                rope_theta=10000.0, sliding_window=4096),
        7_241_732_096,
    ),
    "Mixtral-8x7B-v0.1": (
        _config("MixtralForCausalLM", "mixtral", "32000 4096 14336 32 32 8 32768", rms_norm_eps=1e-5,
                rope_theta=1000000.0, sliding_window=None, num_local_experts=8, num_experts_per_tok=2),
        46_702_792_704,
    ),
    "Qwen2.5-7B": (
        _config("Qwen2ForCausalLM", "qwen2", "152064 3584 18944 28 28 4 131072", rms_norm_eps=1e-6,
                rope_theta=1000000.0, sliding_window=131072, use_sliding_window=False, max_window_layers=28),
        7_615_616_512,
    ),
    "Qwen2.5-7B with YaRN": (
        _config("Qwen2ForCausalLM", "qwen2", "152064 3584 18944 28 28 4 131072", rms_norm_eps=1e-6,
                rope_theta=1000000.0, sliding_window=65536, use_sliding_window=True, max_window_layers=20,
                rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
        7_615_616_512,
    ),
    "Qwen3-8B": (
        _config("Qwen3ForCausalLM", "qwen3", "151936 4096 12288 36 32 8 40960", rms_norm_eps=1e-6, head_dim=128,
                rope_theta=1000000, sliding_window=None, use_sliding_window=False, max_window_layers=36),
        8_190_735_360,
    ),
    "Qwen3-30B-A3B": (
        _config("Qwen3MoeForCausalLM", "qwen3_moe", "151936 2048 6144 48 32 4 40960", rms_norm_eps=1e-6,
                head_dim=128, rope_theta=1000000.0, decoder_sparse_step=1, mlp_only_layers=[], num_experts=128,
                num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True),
        30_532_122_624,
    ),
    "gemma-2-2b": (
        _config("Gemma2ForCausalLM", "gemma2", "256000 2304 9216 26 8 4 8192", rms_norm_eps=1e-6, head_dim=256,
                hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", rope_theta=10000.0,
                sliding_window=4096, query_pre_attn_scalar=256, attn_logit_softcapping=50.0,
                final_logit_softcapping=30.0),
        2_614_341_888,
    ),
    "gemma-3-1b": (
        _config("Gemma3ForCausalLM", "gemma3_text", "262144 1152 6912 26 4 1 32768", rms_norm_eps=1e-6,
                head_dim=256, hidden_activation="gelu_pytorch_tanh", rope_theta=1000000, rope_scaling=None,
                rope_local_base_freq=10000, sliding_window=512, sliding_window_pattern=6,
                query_pre_attn_scalar=256, attn_logit_softcapping=None, final_logit_softcapping=None),
        999_885_952,
    ),
    "Phi-3-mini-4k": (
        _config("Phi3ForCausalLM", "phi3", "32064 3072 8192 32 32 32 4096", rms_norm_eps=1e-5, rope_theta=10000.0,
                rope_scaling=None, sliding_window=2047, original_max_position_embeddings=4096),
        3_821_079_552,
    ),
    "Phi-3-mini-128k": (
        _config("Phi3ForCausalLM", "phi3", "32064 3072 8192 32 32 32 131072", rms_norm_eps=1e-5,
                rope_theta=10000.0, rope_scaling=LONGROPE | {"type": "longrope"}, sliding_window=262144,
                original_max_position_embeddings=4096),
        3_821_079_552,
    ),
    "DeepSeek-V2-Lite": (
        _config("DeepseekV2ForCausalLM", "deepseek_v2", "102400 2048 10944 27 16 16 163840", rms_norm_eps=1e-6,
                rope_theta=10000, rope_scaling=YARN, q_lora_rank=None, first_k_dense_replace=1,
                moe_intermediate_size=1408, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
                n_group=1, topk_group=1, topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0,
                scoring_func="softmax", **MLA),
        15_706_484_224,
    ),
    "DeepSeek-V2": (
        _config("DeepseekV2ForCausalLM", "deepseek_v2", "102400 5120 12288 60 128 128 163840", rms_norm_eps=1e-6,
                rope_theta=10000, rope_scaling=YARN, q_lora_rank=1536, first_k_dense_replace=1,
                moe_intermediate_size=1536, n_routed_experts=160, n_shared_experts=2, num_experts_per_tok=6,
                n_group=8, topk_group=3, topk_method="group_limited_greedy", norm_topk_prob=False,
                routed_scaling_factor=16.0, scoring_func="softmax", **MLA),
        235_741_434_880,
    ),
    "DeepSeek-V3": (
        _config("DeepseekV3ForCausalLM", "deepseek_v3", "129280 7168 18432 61 128 128 163840", rms_norm_eps=1e-6,
                rope_theta=10000, rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, q_lora_rank=1536,
                first_k_dense_replace=3, moe_intermediate_size=2048, n_routed_experts=256, n_shared_experts=1,
                num_experts_per_tok=8, n_group=8, topk_group=4, topk_method="noaux_tc", norm_topk_prob=True,
                routed_scaling_factor=2.5, scoring_func="sigmoid", num_nextn_predict_layers=1, **MLA),
        671_026_419_200,
    ),
}  # fmt: skip
