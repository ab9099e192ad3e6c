"""Configurations and weight tables: read, written, and refused."""

import copy
import math
from typing import Any

import numpy as np
import pytest
from golden_models import FOLDER, NAMES, load
from models.hub_configs import CONFIGS, LLAMA3
from safetensors.numpy import load_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from distill.checkpoints.hf import their_tensors
from distill.checkpoints.store import flat
from distill.errors import DistillError
from distill.files import read_json
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.models.families import ARCHITECTURES, config_from_hf, config_to_hf, weight_rows
from distill.models.table import weights


def golden_config(name: str) -> dict[str, Any]:
    return read_json(FOLDER / name / "config.json")


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_bit_for_bit(name: str, holds) -> None:
    """Each tensor of the checkpoint, once, with its own bytes."""
    config, params = load(name)
    leaves = flat(params)
    table = weights(config, weight_rows(config), decoder.weight_axes(config))
    ours = dict(their_tensors(table, lambda weight: np.asarray(leaves[weight.ours])))
    theirs = load_file(FOLDER / name / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert (ours[tensor].shape, ours[tensor].tobytes()) == (value.shape, value.tobytes()), tensor
    holds(name, "tensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_comes_back(name: str, holds) -> None:
    """Alone, over the original, and through the classes of `transformers`, which check what they are given."""
    hf = golden_config(name)
    config = config_from_hf(hf)
    back = config_to_hf(config)
    theirs = CONFIG_MAPPING[hf["model_type"]](**copy.deepcopy(back)).to_dict()
    assert config == config_from_hf(back) == config_from_hf(hf | back) == config_from_hf(back | theirs)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    holds(name, "configuration")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_hub_has_means_what_transformers_makes_of_it(name: str) -> None:
    """Files of before version 5 keep rope_theta, rope_scaling and more in other places, or leave them out."""
    hf, _ = CONFIGS[name]
    theirs = CONFIG_MAPPING[hf["model_type"]](**copy.deepcopy(hf)).to_dict()
    assert config_from_hf(hf) == config_from_hf(hf | theirs) == config_from_hf(config_to_hf(config_from_hf(hf)))


@pytest.mark.parametrize("name", CONFIGS)
def test_known_models_have_their_number_of_parameters(name: str) -> None:
    hf, parameters = CONFIGS[name]
    config = config_from_hf(hf)
    axes = decoder.weight_axes(config).values()
    assert sum(math.prod(config.sizes[axis] for axis in names.split()) for names in axes) == parameters


def test_every_family_is_tested() -> None:
    golden = {name for folder in NAMES for name in golden_config(folder)["architectures"]}
    hub = {name for hf, _ in CONFIGS.values() for name in hf["architectures"]}
    assert golden == hub == set(ARCHITECTURES)


@pytest.mark.parametrize("named", [["GPT2LMHeadModel"], ["Gemma3ForConditionalGeneration"], [], None])
def test_another_architecture_is_refused_by_name(named: list[str] | None) -> None:
    with pytest.raises(DistillError) as error:
        config_from_hf({"architectures": named})
    assert (named or ["none named"])[0] in str(error.value)
    assert all(name in str(error.value) for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("llama_mha", {"hidden_size": None}, "no hidden_size"),
        ("llama_mha", {"hidden_size": "32"}, "hidden_size is '32', expected int"),
        ("llama_mha", {"num_hidden_layers": True}, "num_hidden_layers is True"),
        ("llama_mha", {"num_hidden_layers": 0}, "no layers"),
        ("llama_mha", {"vocab_size": 0}, "axes V are empty"),
        ("llama_mha", {"num_attention_heads": 0}, "axes N are empty"),
        ("llama_mha", {"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ("llama_mha", {"hidden_act": "relu"}, "hidden_act is 'relu', only 'silu' or 'gelu_pytorch_tanh'"),
        ("llama_mha", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ("llama_mha", {"rope_parameters": {"rope_type": "linear"}}, r"no rope_parameters\.factor"),
        ("llama_mha", {"rope_parameters": ["linear"]}, "rope_parameters is"),
        ("mistral", {"sliding_window": -1}, "a window of no positions"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("phi3_longrope", {"num_attention_heads": 4}, "6 and 6 factors for 3 pairs"),
        ("mixtral", {"num_experts_per_tok": 9}, "a token asks 9 experts"),
        ("deepseek_v2", {"n_group": 3}, "8 experts in 3 groups"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is True, only False"),
        ("deepseek_v2", {"attention_bias": True}, "attention_bias is True"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    ],
)
def test_a_configuration_that_we_would_not_follow_is_refused(name: str, changed: dict, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        config_from_hf(golden_config(name) | changed)


def test_a_scaling_may_be_called_type_and_have_its_context_outside() -> None:
    old = {key: value for key, value in LLAMA3.items() if key not in ("rope_type", "original_max_position_embeddings")}
    hf, _ = CONFIGS["Llama-3.1-8B"]
    named = hf | {"rope_scaling": old | {"type": "llama3"}, "original_max_position_embeddings": 8192}
    assert config_from_hf(named) == config_from_hf(hf)


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_longrope_has_had_other_names(kind: str) -> None:
    hf, _ = CONFIGS["Phi-3-mini-128k"]
    assert config_from_hf(hf | {"rope_scaling": hf["rope_scaling"] | {"type": kind}}) == config_from_hf(hf)
