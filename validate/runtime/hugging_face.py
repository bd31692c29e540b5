"""A `transformers` model whose parameters are views of the runtime's own weights: no copy.

The fused matrices of `weights` hold the hub's as consecutive rows, so each is a view of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from splitwiser.models.llm import Llm
from splitwiser.validate.runtime.numerics import Numerics
from splitwiser.validate.runtime.weights import hub_views


def _transformers() -> Any:
    """The package, untyped here; ImportError in one line where it is missing."""
    try:
        return import_module("transformers")
    except ImportError:
        raise ImportError(
            "the paper's code needs transformers: pip install transformers tokenizers"
        ) from None


def config_of(llm: Llm, numerics: Numerics) -> Any:
    """The `transformers` configuration of a model; it never ends a sequence by itself.

    Raises ValueError for a model whose token table is not as wide as its hidden state (OPT-350m),
    and ImportError, in one line, where transformers is missing.
    """
    if llm.embedding not in (None, llm.hidden) or not llm.final_norm:
        raise ValueError(f"{llm.name} projects its token table; `generate` has no such model here")
    keys: dict[str, Any] = {
        "hidden_size": llm.hidden,
        "num_hidden_layers": llm.layers,
        "num_attention_heads": llm.heads,
        "vocab_size": llm.vocab,
        "max_position_embeddings": llm.max_context,
        "tie_word_embeddings": llm.tied_embeddings,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if llm.family == "opt":
        keys |= {"ffn_dim": llm.intermediate, "word_embed_proj_dim": llm.hidden, "dropout": 0.0}
    else:
        keys |= {
            "num_key_value_heads": llm.kv_heads,
            "head_dim": llm.head_dim,
            "intermediate_size": llm.intermediate,
            "rms_norm_eps": numerics.norm_eps,
            "rope_parameters": {"rope_type": "default"}
            | dict(numerics.rope_scaling or {})
            | {"rope_theta": numerics.rope_theta},
            "sliding_window": llm.sliding_window,
            "attention_bias": llm.out_bias,
            "mlp_bias": llm.mlp_biases,
        }
        if llm.family.startswith("qwen"):
            keys |= {"use_sliding_window": llm.sliding_window is not None, "max_window_layers": 0}
    return _transformers().AutoConfig.for_model(llm.family, **keys)


def model_on(llm: Llm, numerics: Numerics, weights: Mapping[str, Tensor]) -> Any:
    """The model, ready for `generate`, with *weights* (the runtime's names) as its parameters."""
    transformers = _transformers()
    transformers.utils.logging.set_verbosity_error()
    config = config_of(llm, numerics)
    device = weights["embed.weight"].device
    dtype = getattr(torch, llm.dtype)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    prefix = "model.decoder." if llm.family == "opt" else "model."
    tensors = hub_views(weights, llm, prefix)
    model.load_state_dict({**tensors, "lm_head.weight": weights["head.weight"]}, assign=True)
    model.tie_weights()
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RotaryEmbedding"):  # its table is computed, not loaded
            model.set_submodule(name, type(module)(config).to(device))
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=None, pad_token_id=0, bos_token_id=None
    )
    return model.eval().requires_grad_(False)
