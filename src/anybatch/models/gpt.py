"""A small decoder-only transformer for text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from anybatch.errors import InputError
from anybatch.models.geometry import require_at_least_one

__all__ = ["GPT"]

_INITIAL_DEVIATION = 0.02


class GPT(nn.Module):
    """Decoder-only transformer of Radford et al. (2019), GPT-2, with pre-LayerNorm blocks.

    Token plus learned position embeddings; blocks of causal self-attention and a GELU network of
    four times the embedding size, each after a LayerNorm and inside a residual; a final LayerNorm;
    a linear head without bias. Weights begin as N(0, 0.02^2), the two projections that write into
    the residual stream as N(0, 0.02^2 / (2 num_layers)), biases as 0. Query, key and value are
    separate matrices, so that every hidden weight is one plain matrix (Muon, K-FAC). The default
    size is that of nanoGPT's CPU example (Karpathy, 2022): 818,176 parameters at 65 characters and
    64 positions.

    Args:
        vocabulary_size: number of distinct tokens, >= 1.
        context_length: most tokens in one sequence, >= 1.
        embedding_size: entries of a token's vector, a multiple of `num_heads`.
        num_layers: number of blocks, >= 1.
        num_heads: attention heads of a block, >= 1.
        dropout: probability that an entry is dropped in training, in [0, 1).
        tie_head: let the head share the token embedding's weight.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self,
        vocabulary_size: int,
        context_length: int,
        *,
        embedding_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        dropout: float = 0.0,
        tie_head: bool = False,
    ) -> None:
        super().__init__()
        require_at_least_one("vocabulary_size", vocabulary_size)
        require_at_least_one("context_length", context_length)
        require_at_least_one("num_layers", num_layers)
        require_at_least_one("num_heads", num_heads)
        require_at_least_one("embedding_size", embedding_size)
        if embedding_size % num_heads:
            raise InputError(
                "embedding_size", f"must be a multiple of num_heads = {num_heads}", embedding_size
            )
        if not 0 <= dropout < 1:
            raise InputError("dropout", "must be in [0, 1)", dropout)
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.position_embedding = nn.Embedding(context_length, embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(_Block(embedding_size, num_heads, dropout) for _ in range(num_layers))
        )
        self.norm = nn.LayerNorm(embedding_size)
        self.head = nn.Linear(embedding_size, vocabulary_size, bias=False)
        _initialize(self, num_layers)
        if tie_head:
            self.head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (n, length) integer tokens to (n, length, vocabulary_size) logits of the next one.

        Raises:
            InputError: if the length is more than `context_length`.
        """
        length = tokens.shape[1]
        if length > self.context_length:
            raise InputError(
                "the token sequence", f"must have at most {self.context_length} tokens", length
            )
        positions = torch.arange(length, device=tokens.device)
        features = self.token_embedding(tokens) + self.position_embedding(positions)
        features = self.blocks(self.dropout(features))
        logits: Tensor = self.head(self.norm(features))
        return logits


class _Block(nn.Module):
    def __init__(self, embedding_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embedding_size)
        self.attention = _CausalSelfAttention(embedding_size, num_heads, dropout)
        self.mlp_norm = nn.LayerNorm(embedding_size)
        self.mlp_in = nn.Linear(embedding_size, 4 * embedding_size)
        self.mlp_out = nn.Linear(4 * embedding_size, embedding_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.dropout(self.attention(self.attention_norm(features)))
        # GPT-2's GELU is the tanh approximation.
        hidden = functional.gelu(self.mlp_in(self.mlp_norm(features)), approximate="tanh")
        written: Tensor = self.dropout(self.mlp_out(hidden))
        return features + written


class _CausalSelfAttention(nn.Module):
    def __init__(self, embedding_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout_probability = dropout
        self.query = nn.Linear(embedding_size, embedding_size)
        self.key = nn.Linear(embedding_size, embedding_size)
        self.value = nn.Linear(embedding_size, embedding_size)
        self.out = nn.Linear(embedding_size, embedding_size)

    def forward(self, features: Tensor) -> Tensor:
        query, key, value = (
            projection(features).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout_probability if self.training else 0.0,
            is_causal=True,
        )
        written: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return written


def _initialize(model: GPT, num_layers: int) -> None:
    residual_deviation = _INITIAL_DEVIATION / (2 * num_layers) ** 0.5
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        writes_residual = name.endswith(("attention.out", "mlp_out"))
        deviation = residual_deviation if writes_residual else _INITIAL_DEVIATION
        nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
