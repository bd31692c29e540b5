"""`Llm`: the shape of a decoder-only transformer, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from splitwiser.models.names import unknown_name

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
"""Bytes of one element, by torch's name of the dtype."""

_DTYPE_ALIASES = {  # vLLM's --dtype and everyday speech
    "float": "float32",
    "fp32": "float32",
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8_e4m3fn",
    "float8": "float8_e4m3fn",
}

_COUNTS = (
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_dim",
    "intermediate",
    "vocab",
    "max_context",
    "experts",
    "experts_per_token",
)


def dtype_named(name: str) -> str:
    """torch's name for the dtype that `name` means: "bf16" and "torch.bfloat16" are "bfloat16".

    Raises ValueError, with the nearest names, for a dtype that is not one of `DTYPE_BYTES`.
    """
    key = name.strip().lower().removeprefix("torch.")
    key = _DTYPE_ALIASES.get(key, key)
    if key not in DTYPE_BYTES:
        raise unknown_name("dtype", name, DTYPE_BYTES)
    return key


@dataclass(frozen=True, slots=True)
class Llm:
    """The shape of a decoder-only transformer.

    Sizes are counts of elements; `sliding_window` is in tokens, or None where every layer
    attends to the whole context; `learned_positions` is the number of rows of a learned position
    table (0 for rotary positions). `experts` is 1 for a dense model; `intermediate` is the width
    of one expert. `dtype` is that of the weights, the activations and the KV cache alike.

    `biases` says that every linear layer and norm carries a bias vector (OPT); `qkv_biases`,
    `out_bias` and `mlp_biases` name the layers that do where only some have one. `qk_norm` is a
    norm over each query and key head. `embedding` is the width of the token table where it is not
    `hidden` (OPT-350m), which adds a projection at either end.

    Counts are exact: they are what `sum(p.numel() for p in model.parameters())` gives in
    transformers, shared tables once. Raises ValueError where the numbers cannot be those of a
    transformer.
    """

    name: str
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_context: int
    gated_mlp: bool
    tied_embeddings: bool
    learned_positions: int = 0
    sliding_window: int | None = None
    experts: int = 1
    experts_per_token: int = 1
    biases: bool = False
    dtype: str = "bfloat16"
    qkv_biases: bool = False
    out_bias: bool = False
    mlp_biases: bool = False
    qk_norm: bool = False
    final_norm: bool = True
    embedding: int | None = None

    def __post_init__(self) -> None:
        for field in _COUNTS:
            value = getattr(self, field)
            if value < 1:
                raise ValueError(f"{field} is {value}; at least 1 is needed")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} attention heads cannot share {self.kv_heads} key-value heads; "
                "the first must be a multiple of the second"
            )
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"{self.experts_per_token} experts per token of {self.experts} experts; "
                "at most all of them"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window is {self.sliding_window}; at least 1, or None")
        if self.learned_positions < 0:
            raise ValueError(f"learned_positions is {self.learned_positions}; at least 0")
        if self.dtype not in DTYPE_BYTES:
            raise unknown_name("dtype", self.dtype, DTYPE_BYTES)

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one weight, activation or cached value."""
        return DTYPE_BYTES[self.dtype]

    @property
    def query_width(self) -> int:
        """Elements of one token's queries in one layer: heads times head_dim."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of one token's keys in one layer (and of its values): kv_heads * head_dim."""
        return self.kv_heads * self.head_dim

    @property
    def projection_parameters(self) -> int:
        """Matrix weights of one layer's query, key, value and output projections."""
        return 2 * self.hidden * (self.query_width + self.kv_width)

    @property
    def expert_parameters(self) -> int:
        """Matrix weights of one expert (of the whole MLP where the model is dense), one layer."""
        return (3 if self.gated_mlp else 2) * self.hidden * self.intermediate

    @property
    def router_parameters(self) -> int:
        """Matrix weights that choose the experts in one layer; 0 for a dense model."""
        return self.hidden * self.experts if self.experts > 1 else 0

    @property
    def mlp_parameters(self) -> int:
        """Matrix weights of one layer's MLP: every expert and the router."""
        return self.experts * self.expert_parameters + self.router_parameters

    @property
    def active_mlp_parameters(self) -> int:
        """Matrix weights of one layer's MLP that one token meets: its experts and the router."""
        return self.experts_per_token * self.expert_parameters + self.router_parameters

    @property
    def head_parameters(self) -> int:
        """Matrix weights between the last hidden state and the logits: hidden times vocab.

        The table is counted here whether or not the input embedding shares it. Where the table is
        narrower than `hidden`, the projection down to it is included.
        """
        width = self.embedding or self.hidden
        return self.vocab * width + self._table_projection

    @property
    def parameters(self) -> int:
        """Every parameter: embeddings, positions, all experts, biases and norms; shared once."""
        tables = self._lookup_parameters + self._table_projection
        norm = self.hidden * (2 if self.biases else 1)
        layers = self.layers * (
            self.projection_parameters + self.mlp_parameters + self._layer_vectors
        )
        return tables + layers + (norm if self.final_norm else 0) + self.head_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token computes with: its experts only, and no table look-ups.

        The input embedding and the learned positions are read a row at a time, so they are left
        out; the head is in, tied or not. (Published "active" counts often include the embedding.)
        """
        bias = self._expert_biases if self.biases or self.mlp_biases else 0
        idle = self.experts - self.experts_per_token
        return (
            self.parameters
            - self._lookup_parameters
            - self.layers * idle * (self.expert_parameters + bias)
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of one copy of the weights in `dtype`."""
        return self.parameters * self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the keys and values that one token of context keeps, over all layers."""
        return 2 * self.layers * self.kv_width * self.dtype_bytes

    def with_dtype(self, dtype: str) -> Llm:
        """The same model in another dtype; ValueError with the nearest names if it is unknown."""
        return replace(self, dtype=dtype_named(dtype))

    @property
    def _table_projection(self) -> int:
        """Weights between a token table of another width and the hidden state, one end."""
        if self.embedding is None or self.embedding == self.hidden:
            return 0
        return self.hidden * self.embedding

    @property
    def _lookup_parameters(self) -> int:
        """Parameters that are looked up and never multiplied."""
        own_table = 0 if self.tied_embeddings else self.vocab * (self.embedding or self.hidden)
        return own_table + self.learned_positions * self.hidden

    @property
    def _expert_biases(self) -> int:
        return self.intermediate * (2 if self.gated_mlp else 1) + self.hidden

    @property
    def _layer_vectors(self) -> int:
        """Biases and norms of one layer."""
        norms = 2 * self.hidden * (2 if self.biases else 1)
        heads = 2 * self.head_dim if self.qk_norm else 0
        qkv = self.query_width + 2 * self.kv_width if self.biases or self.qkv_biases else 0
        out = self.hidden if self.biases or self.out_bias else 0
        mlp = self.experts * self._expert_biases if self.biases or self.mlp_biases else 0
        return norms + heads + qkv + out + mlp
