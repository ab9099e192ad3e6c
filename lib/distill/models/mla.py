"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

Keys and values of all heads come from one latent of R widths a position, and one rotary key of U widths;
these two are all that a cache holds. A weight's own axes: Q the queries' latent, Z a head's key without
position and its value (P + W).
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill.models.attention import attention_weights, from_heads, in_order, segments, settled_weights, to_heads
from distill.models.cache import LayerCache, joined, write
from distill.models.config import ModelConfig
from distill.models.int8 import wide
from distill.models.layers import Norm, at_least_float32, column, fan_in, product, weight
from distill.models.rope import Rotation, rotate

LATENT_EPS = 1e-6
"""Of the norms inside, whatever the configuration says of the others."""


class LatentAttention(nnx.Module):
    """Attention whose keys and values are low-rank: c = norm(W_kv x), [k; v] of a head = W_b c."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config, latent = config, config.latent
        start, out = fan_in(config.hidden), fan_in(config.heads * latent.value)
        low_rank = latent.q_rank is not None
        self.q = None if low_rank else weight(config, "N H D", start, rngs)
        self.q_a = weight(config, "Q D", start, rngs) if low_rank else None
        self.q_a_norm = Norm(config, rngs, "Q", eps=LATENT_EPS) if low_rank else None
        self.q_b = weight(config, "N H Q", fan_in(latent.q_rank), rngs) if low_rank else None
        self.kv_a = weight(config, "R D", start, rngs)
        self.k_rope = weight(config, "U D", start, rngs)
        self.kv_a_norm = Norm(config, rngs, "R", eps=LATENT_EPS)
        self.kv_b = weight(config, "N Z R", fan_in(latent.kv_rank), rngs)
        self.o = weight(config, "D N W", out, rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        turn: Rotation,
        mask: Bool[Array, "B T S"],
        cache: LayerCache | None = None,
        slots: Int[Array, "B T"] | None = None,
        room: int | None = None,
        only: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Attend over x itself, or, with a cache, over what it holds once x is written at `slots`.

        room: slots that the cache may grow to, as in `Attention`; only: too.
        """
        config, nope = self.config, self.config.latent.nope
        if self.q is not None:
            q = to_heads(x, self.q[...])
        else:
            q = self.q_a_norm(product(x, self.q_a[...]))
            q = to_heads(q, self.q_b[...])
        q, q_rope = q[..., :nope], rotate(q[..., nope:], turn, interleaved=config.rope_interleaved)
        if only is not None:
            q, q_rope, mask = column(q, only), column(q_rope, only), column(mask, only)
        latent = self.kv_a_norm(product(x, self.kv_a[...]))
        k_rope = product(x, self.k_rope[...])
        k_rope = rotate(k_rope[:, :, None], turn, interleaved=config.rope_interleaved)[:, :, 0]
        if cache is not None:
            latent, k_rope = write(cache["latent"], latent, slots), write(cache["rope"], k_rope, slots)
            cache = {"latent": latent, "rope": k_rope}
            latent, k_rope = wide(latent), wide(k_rope)
        if cache is not None and q.shape[1] == 1:
            room = room or mask.shape[-1]
            attended = self._absorbed(q[:, 0], q_rope[:, 0], latent, k_rope, mask[:, 0], room)[:, None]
        else:
            latent, k_rope = (latent, k_rope) if cache is None else (joined(latent), joined(k_rope))
            attended = self._expanded(q, q_rope, latent, k_rope, mask)
        return from_heads(attended, self.o[...]), cache

    def _expanded(
        self,
        q: Float[Array, "B T N P"],
        q_rope: Float[Array, "B T N U"],
        latent: Float[Array, "B S R"],
        k_rope: Float[Array, "B S U"],
        mask: Bool[Array, "B T S"],
    ) -> Float[Array, "B T N W"]:
        """Keys and values written out for each head: least work where there are many queries."""
        kv = jnp.einsum("BSR,NZR->BNSZ", latent, self.kv_b[...])
        k, v = kv[..., : self.config.latent.nope], kv[..., self.config.latent.nope :]
        type_ = at_least_float32(q)
        scores = jnp.einsum("BTNP,BNSP->BNTS", q, k, preferred_element_type=type_)
        scores += jnp.einsum("BTNU,BSU->BNTS", q_rope, k_rope, preferred_element_type=type_)
        weights = attention_weights(self.config, scores, mask[:, None]).astype(v.dtype)
        return jnp.einsum("BNTS,BNSW->BTNW", weights, v)

    def _absorbed(
        self,
        q: Float[Array, "B N P"],
        q_rope: Float[Array, "B N U"],
        latent: list[Float[Array, "B S R"]],
        k_rope: list[Float[Array, "B S U"]],
        mask: Bool[Array, "B S"],
        room: int,
    ) -> Float[Array, "B N W"]:
        """The same for one query, with W_b moved to the query's and the output's side: q·(W c) = (Wᵀ q)·c, so
        that it reads latents and not N heads of keys and values for each position."""
        kv_b, nope = self.kv_b[...], self.config.latent.nope
        latent, k_rope = [segments(piece) for piece in latent], [segments(piece) for piece in k_rope]
        q = jnp.einsum("BNP,NPR->BNR", q, kv_b[:, :nope])

        def scored(latent: Array, k_rope: Array) -> Array:
            asked = [jnp.broadcast_to(a[:, None], (a.shape[0], latent.shape[1], *a.shape[1:])) for a in (q, q_rope)]
            scores = jnp.einsum("BONR,BOJR->BNOJ", asked[0], latent, preferred_element_type=jnp.float32)
            return scores + jnp.einsum("BONU,BOJU->BNOJ", asked[1], k_rope, preferred_element_type=jnp.float32)

        scores = [scored(*part) for part in zip(latent, k_rope, strict=True)]
        weights = settled_weights(self.config, scores, mask[:, None], room)
        parts = [
            jnp.einsum("BNOJ,BOJR->BONR", w.astype(part.dtype), part, preferred_element_type=jnp.float32)
            for w, part in zip(weights, latent, strict=True)
        ]
        return jnp.einsum("BNR,NWR->BNW", in_order(parts, axis=1).astype(latent[0].dtype), kv_b[:, nope:])
