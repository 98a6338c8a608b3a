"""The language model: a decoder with the Qwen3 architecture, in plain PyTorch, with a KV cache.

    x = x + Attention(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))          in every layer
    q, k = RoPE(RMSNorm_head(Wq x)), RoPE(RMSNorm_head(Wk x))           no biases anywhere
    SwiGLU(x) = W_down(SiLU(W_gate x) ⊙ W_up x)

Query heads share key/value heads in groups. `from_qwen3` renames the weights of Hugging Face's
`Qwen3ForCausalLM`, and then both give the same numbers.

Legend
    R rows · L new tokens of a row · P + L tokens it may see: P cached ones, then the new ones
    W width · d head_dim (its own number: heads·d need not be W) · V size of the vocabulary

What this file does not do: know what its tokens are. It takes embeddings, positions and a mask, so
you can mix text with anything else of width W.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class LLMConfig:
    """Sizes of the LLM. Raises ValueError if kv_heads does not divide heads, head_dim is odd, or one of them is
    below 1. Qwen3-0.6B has vocab_size 151936, width 1024, depth 28, heads 16, kv_heads 8, head_dim 128, mlp 3072."""

    vocab_size: int = 512
    width: int = 128
    depth: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 384
    rope_theta: float = 1e6
    eps: float = 1e-6
    tied: bool = True

    def __post_init__(self):
        if self.kv_heads < 1 or self.heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"LLM heads {self.heads} is not a multiple of kv_heads {self.kv_heads}: change one")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"LLM head_dim {self.head_dim} is not even, 2 or more: rotary positions turn pairs")


def added(allowed: Tensor, x: Tensor) -> Tensor:
    """Turn a bool mask, True = may attend, into what attention adds to its logits: 0 or −∞.

    It has the type that attention over x is computed in, under autocast, too. Otherwise every layer would convert it.

    >>> added(torch.tensor([True, False]), torch.ones(1)).tolist()
    [0.0, -inf]
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return torch.zeros(allowed.shape, dtype=dtype, device=x.device).masked_fill(~allowed, -math.inf)


class KVCache:
    """Keys and values of every layer, (R, kv_heads, P, d) each, growing along P. The buffers have spare room, so a new
    token is written behind the old ones, and those are not copied."""

    def __init__(self):
        self.layers: list[tuple[Tensor, Tensor]] = []  # the buffers
        self.lengths: list[int] = []  # P of each layer

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new keys and values to a layer, and return all of its keys and values."""
        if layer == len(self.layers):
            self.layers.append((k, v))
            self.lengths.append(k.shape[2])
            return k, v
        P, end = self.lengths[layer], self.lengths[layer] + k.shape[2]
        if end > self.layers[layer][0].shape[2]:  # grow by half, so that copies are rare
            room = (0, 0, 0, max(end - P, P // 2))
            self.layers[layer] = tuple(F.pad(old[:, :, :P], room) for old in self.layers[layer])
        for buffer, new in zip(self.layers[layer], (k, v), strict=True):
            buffer[:, :, P:end] = new
        self.lengths[layer] = end
        return tuple(buffer[:, :, :end] for buffer in self.layers[layer])

    def rows(self, index: Tensor, columns: Tensor, room: int = 0) -> KVCache:
        """A copy of some tokens of some rows. Row r of it has the tokens columns[r] of row index[r]. Rows may repeat.
        index (R,), columns (R, P), `room`: for how many more tokens."""
        taken = KVCache()
        for layer in self.layers:
            copies = (x[index[:, None], :, columns].transpose(1, 2) for x in layer)  # from (R, P, kv_heads, d)
            taken.layers.append(tuple(F.pad(x, (0, 0, 0, room)) for x in copies))
            taken.lengths.append(columns.shape[1])
        return taken


def rotary(positions: Tensor, d: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE's angles, (R, 1, L, d), at least in float32."""
    dtype = torch.promote_types(dtype, torch.float32)
    frequency = theta ** (-torch.arange(0, d, 2, device=positions.device, dtype=dtype) / d)
    angle = positions[:, None, :, None].to(dtype) * frequency  # (R, 1, L, d/2)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + d/2]) by their angles. x (R, heads, L, d)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """x / √(mean(x²) + eps) · weight, over the last dimension. Computed in float32 even if x is in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.config = c = config
        self.q_proj = nn.Linear(c.width, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.width, bias=False)
        self.q_norm = RMSNorm(c.head_dim, eps=c.eps)
        self.k_norm = RMSNorm(c.head_dim, eps=c.eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None, layer: int):
        c = self.config
        q, k, v = (p(x).unflatten(-1, (-1, c.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)  # (R, L, heads, d), per head
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (R, heads, L, d)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (R, kv_heads, P + L, d)
        # cuDNN's attention has given wrong results under masks: keep to kernels that are right
        masked_on_cuda = q.is_cuda and mask is not None
        if masked_on_cuda:  # that kernel has no groups: copy k and v; elsewhere copies would cost more than attention
            k, v = (t.repeat_interleave(c.heads // c.kv_heads, dim=1) for t in (k, v))
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if masked_on_cuda else nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=not masked_on_cuda)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (R, L, W)


class SwiGLU(nn.Module):
    """W_down(SiLU(W_gate x) ⊙ W_up x)."""

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A pre-RMSNorm decoder layer: x (R, L, W) → (R, L, W)."""

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, eps=config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, eps=config.eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None, layer: int):
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class LLM(nn.Module):
    """Embeddings in, hidden states after the final RMSNorm out. `embed` makes the input, `logits` reads the output."""

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, eps=config.eps)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Embeddings (and an untied head) are normal with std 0.02, other linear weights with std 1/√fan_in, norms 1.
        Weights that write to the residual stream (o_proj, down_proj) have a hundredth of that std, so that every layer
        starts as almost the identity."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding) or name == "lm_head":
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                gain = 0.01 if name.endswith(("o_proj", "down_proj")) else 1.0
                nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...) → embeddings (..., W)."""
        return self.embed_tokens(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., W) → logits (..., V)."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(hidden, head.weight)

    def forward(
        self, x: Tensor, positions: Tensor | None = None, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """x (R, L, W) embeddings → hidden states (R, L, W).

        positions  (R, L) int; None: 0, 1, 2, … (not with a cache)
        mask       (R, 1, L, P + L) bool, True = may attend; None: causal (not with a filled cache)
        cache      is read and extended
        """
        if cache is not None and cache.layers and (positions is None or mask is None):
            raise ValueError("a filled cache needs positions and a mask: the new tokens do not start at 0")
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        rope = rotary(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        if mask is not None:
            mask = added(mask, x)  # once here, instead of once in every layer
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, mask, cache, i)
        return self.norm(x)

    @torch.no_grad()
    def generate(
        self,
        hidden: Tensor,
        positions: Tensor,
        cache: KVCache,
        row: Tensor,
        seen: Tensor,
        max_new_tokens: int,
        stop: int,
    ) -> list[list[int]]:
        """Continue R prompts greedily, one token at a time, until `stop` or `max_new_tokens`.

        hidden     (R, W), the hidden state of each prompt's last token
        positions  (R,) int, the position of that token; new tokens follow it
        cache      keys and values of the prompts
        row        (R,) int, the row of the cache that each prompt is in; prompts may share one
        seen       (R, P) bool, which of the row's P tokens the prompt's last token sees, itself included;
                   new tokens see these and each other
        Returns the new ids of each prompt, without `stop`.
        """
        new: list[list[int]] = [[] for _ in hidden]
        for step in range(1, max_new_tokens + 1):
            next_id = self.logits(hidden).argmax(-1)  # (R,)
            for ids, token in zip(new, next_id.tolist(), strict=True):
                ids.append(token)
            if step == max_new_tokens or all(stop in ids for ids in new):
                break
            if step == 1:  # from here on each prompt has a row of its own, with a copy of what it sees
                columns = (~seen).int().argsort(stable=True)[:, : seen.sum(1).max()]  # (R, P')
                cache, seen = cache.rows(row, columns, room=max_new_tokens - 1), seen.gather(1, columns)
            seen = F.pad(seen, (0, 1), value=True)  # (R, P' + step)
            x, mask = self.embed(next_id[:, None]), seen[:, None, None]
            hidden = self(x, positions[:, None] + step, mask, cache)[:, -1]  # (R, W)
        return [ids[: ids.index(stop)] if stop in ids else ids for ids in new]


def from_qwen3(state: dict[str, Tensor], tied: bool = True) -> dict[str, Tensor]:
    """Rename the state dict of Hugging Face's `Qwen3ForCausalLM` to that of `LLM`.

    A tied model has its embeddings under `lm_head.weight` once more. That copy is left out.
    """
    return {key.removeprefix("model."): x for key, x in state.items() if not (tied and key == "lm_head.weight")}
