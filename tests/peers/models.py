"""Tiny models of transformers, the same in `jattn.nn`, and where the parameters of one are in the other."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  (the peers extra)
import transformers  # pyright: ignore[reportMissingImports]  (the peers extra)
from flax import nnx

from jattn import masks, mods, scores
from jattn.nn import (
    Alibi,
    Decoder,
    Encoder,
    EncoderDecoder,
    Latent,
    Llama3Scaling,
    RelativeBias,
    Residual,
    Rotary,
    YarnScaling,
)
from tests.peers import mapping as to
from tests.peers.mapping import State, Tree

TOKENS, F, H, G, HIDDEN = 40, 16, 4, 2, 24


class Model(nnx.Module):
    """Tokens to logits: an embedding, a stack, a product."""

    def __init__(
        self,
        stack: Any,
        *,
        scale: float = 1.0,
        cap: float | None = None,
        norm: Any = None,
        tokens: int = TOKENS,
        bias: bool = False,
    ):
        rngs = nnx.Rngs(0)
        self.scale, self.cap = scale, cap
        self.embed = nnx.Embed(tokens, F, rngs=rngs)
        self.norm = nnx.data(None) if norm is None else norm(F, rngs=rngs)
        self.stack = stack
        self.head = nnx.Linear(F, tokens, use_bias=bias, rngs=rngs)

    def into(self, tokens: jax.Array) -> jax.Array:
        x = self.scale * self.embed(tokens)
        return x if self.norm is None else self.norm(x)

    def logits(self, x: jax.Array) -> jax.Array:
        x = self.head(x)
        return x if self.cap is None else self.cap * jnp.tanh(x / self.cap)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.logits(self.stack(self.into(tokens)))

    def cache(self, n: int, batch: int) -> Any:
        return self.stack.cache(n, batch)

    def begin(self, tokens: jax.Array) -> Any:
        return self.cache(tokens.shape[1], tokens.shape[0])

    def decode(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        x, cache = self.stack.decode(self.into(tokens), cache)
        return self.logits(x), cache


class Peer(NamedTuple):
    """theirs and ours: make the models.  map: a state dict, or its gradients with one = 0, as our parameters.  ask: what
    theirs makes of tokens.  wide: whether it computes in float64 throughout.
    """

    theirs: Callable[[], torch.nn.Module]
    ours: Callable[[], Any]
    map: Callable[[State, float], Tree]
    ask: Callable[[Any, torch.Tensor], torch.Tensor] = lambda theirs, tokens: theirs(tokens).logits
    wide: bool = False
    decodes: bool = True


def of_llama(state: State, block: Callable[[State], Tree], kinds: int = 1, one: float = 0.0) -> Tree:
    """Models whose parts have the names of Llama's."""
    body = to.under(state, "model.")
    stack = to.stack(to.layers(body, "layers.", block), kinds)
    return {
        "embed": {"embedding": body["embed_tokens.weight"]},
        "stack": {**stack, "norm": to.norm(body, "norm", one)},
        "head": to.linear(state, "lm_head"),
    }


def llama_block(state: State, attention: Tree | None = None) -> Tree:
    return {
        "attention": to.attention(to.under(state, "self_attn."), H, G) if attention is None else attention,
        "attention_norm": to.norm(state, "input_layernorm"),
        "mlp_norm": to.norm(state, "post_attention_layernorm"),
        **to.gated(to.under(state, "mlp.")),
    }


rms = functools.partial(nnx.RMSNorm, epsilon=1e-6)
layer_norm = functools.partial(nnx.LayerNorm, epsilon=1e-5)
sizes: dict[str, Any] = {
    "vocab_size": TOKENS, "hidden_size": F, "num_attention_heads": H, "tie_word_embeddings": False,
    "attn_implementation": "eager", "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
grouped = {**sizes, "intermediate_size": HIDDEN, "num_key_value_heads": G, "rms_norm_eps": 1e-6}
swiglu: dict[str, Any] = {
    "hidden": HIDDEN, "gated": True, "activation": jax.nn.silu, "norm": rms, "use_bias": False, "rngs": nnx.Rngs(0),
}  # fmt: skip
also = lambda options, **more: dict[str, Any]({**options, **more})
rope = lambda kind="default", theta=1e4, **more: {"rope_type": kind, "rope_theta": theta, **more}


def llama() -> Peer:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
    config = transformers.LlamaConfig(
        **grouped, num_hidden_layers=3, rope_parameters=rope("llama3", 500.0, **scaling), max_position_embeddings=64
    )
    return Peer(
        lambda: transformers.LlamaForCausalLM(config),
        lambda: Model(Decoder(F, H, 3, kv_heads=G, rotary=Rotary(500.0, scaling=Llama3Scaling(8.0, 24)), **swiglu)),
        lambda state, one: of_llama(state, llama_block),
    )


def qwen2() -> Peer:
    config = transformers.Qwen2Config(**grouped, num_hidden_layers=2, rope_parameters=rope())
    options = also(swiglu, use_bias=("query", "key", "value"))
    return Peer(
        lambda: transformers.Qwen2ForCausalLM(config),
        lambda: Model(Decoder(F, H, 2, kv_heads=G, rotary_base=1e4, **options)),
        lambda state, one: of_llama(state, llama_block),
    )


def qwen3() -> Peer:
    config = transformers.Qwen3Config(**grouped, head_dim=6, num_hidden_layers=2, rope_parameters=rope())
    return Peer(
        lambda: transformers.Qwen3ForCausalLM(config),
        lambda: Model(Decoder(F, H, 2, kv_heads=G, head_dim=6, qk_norm=rms, rotary_base=1e4, **swiglu)),
        lambda state, one: of_llama(state, llama_block),
    )


def gemma2() -> Peer:
    config = transformers.Gemma2Config(
        **grouped, head_dim=6, num_hidden_layers=3, rope_parameters=rope(), sliding_window=4, query_pre_attn_scalar=10,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    options = also(swiglu, activation=jax.nn.gelu, residual=Residual("sandwich"), mods=mods.softcap(2.0))
    turns = {"mask": masks.causal() & masks.window(3)}, {}

    def block(state: State, one: float) -> Tree:
        return {
            "attention": to.attention(to.under(state, "self_attn."), H, G),
            "attention_norm": to.norm(state, "input_layernorm", one),
            "attention_out_norm": to.norm(state, "post_attention_layernorm", one),
            "mlp_norm": to.norm(state, "pre_feedforward_layernorm", one),
            "mlp_out_norm": to.norm(state, "post_feedforward_layernorm", one),
            **to.gated(to.under(state, "mlp.")),
        }

    stack = lambda: Decoder(
        F, H, 3, pattern=turns, kv_heads=G, head_dim=6, rotary_base=1e4, score=scores.dot(10**-0.5), **options
    )
    return Peer(
        lambda: transformers.Gemma2ForCausalLM(config),
        lambda: Model(stack(), scale=math.sqrt(F), cap=3.0),
        lambda state, one: of_llama(state, lambda layer: block(layer, one), 2, one),
    )


class Experts(nnx.Module):
    """The mixture of experts of gpt-oss, every expert computed for every token."""

    def __init__(self, features: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        n, self.top = 3, 2
        zeros = lambda *shape: nnx.Param(jnp.zeros(shape, param_dtype))
        self.router = nnx.Linear(features, n, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.into, self.into_bias = zeros(n, features, 2 * HIDDEN), zeros(n, 2 * HIDDEN)
        self.out, self.out_bias = zeros(n, HIDDEN, features), zeros(n, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        best, chosen = jax.lax.top_k(self.router(x), self.top)
        weight = (jax.nn.one_hot(chosen, len(self.out)) * jax.nn.softmax(best)[..., None]).sum(-2)
        inside = jnp.einsum("...f,nfm->...nm", x, self.into[...]) + self.into_bias[...]
        gate, up = jnp.minimum(inside[..., ::2], 7.0), jnp.clip(inside[..., 1::2], -7.0, 7.0)
        inside = (up + 1) * gate * jax.nn.sigmoid(1.702 * gate)
        out = jnp.einsum("...nm,nmf->...nf", inside, self.out[...]) + self.out_bias[...]
        return jnp.einsum("...n,...nf->...f", weight, out)


def gpt_oss() -> Peer:
    scaling = {
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 64,
    }
    config = transformers.GptOssConfig(
        **grouped, head_dim=6, num_hidden_layers=2, sliding_window=4, num_local_experts=3, num_experts_per_tok=2,
        rope_parameters=rope("yarn", 100.0, **scaling), layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    rotary = Rotary(100.0, scaling=YarnScaling(4.0, 64, truncate=False))

    def block(state: State) -> Tree:
        experts = to.under(state, "mlp.experts.")
        return {
            "attention": to.attention(to.under(state, "self_attn."), H, G),
            "attention_norm": to.norm(state, "input_layernorm"),
            "mlp_norm": to.norm(state, "post_attention_layernorm"),
            "mlp": {
                "router": to.linear(state, "mlp.router"),
                "into": experts["gate_up_proj"], "into_bias": experts["gate_up_proj_bias"],
                "out": experts["down_proj"], "out_bias": experts["down_proj_bias"],
            },
        }  # fmt: skip

    stack = lambda: Decoder(
        F, H, 2, pattern=({"mask": masks.causal() & masks.window(3)}, {}), kv_heads=G, head_dim=6, sinks=True,
        rotary=rotary, norm=rms, mlp=Experts, rngs=nnx.Rngs(0),
    )  # fmt: skip
    return Peer(
        lambda: transformers.GptOssForCausalLM(config),
        lambda: Model(stack()),
        lambda state, one: of_llama(state, block, 2),
    )


def deepseek() -> Peer:
    scaling = {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 64}
    config = transformers.DeepseekV3Config(
        **{**grouped, "num_key_value_heads": H}, num_hidden_layers=2, first_k_dense_replace=2, q_lora_rank=10,
        kv_lora_rank=7, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=5, rope_parameters=rope("yarn", 100.0, **scaling),
    )  # fmt: skip
    rotary = Rotary(100.0, interleaved=True, scaling=YarnScaling(4.0, 64, attention_factor=1.0))
    sharpened = scores.dot(10**-0.5 * (0.1 * math.log(4.0) + 1) ** 2)
    block = lambda state: llama_block(state, to.latent(to.under(state, "self_attn."), H, 6))
    stack = lambda: Decoder(
        F,
        H,
        2,
        latent=Latent(7, 4, query_rank=10, norm=rms),
        head_dim=6,
        value_dim=5,
        rotary=rotary,
        score=sharpened,
        **swiglu,
    )
    return Peer(
        lambda: transformers.DeepseekV3ForCausalLM(config),
        lambda: Model(stack()),
        lambda state, one: of_llama(state, block),
    )


def gpt_neox() -> Peer:
    config = transformers.GPTNeoXConfig(
        **sizes, intermediate_size=HIDDEN, num_hidden_layers=2, rope_parameters=rope(partial_rotary_factor=0.5)
    )

    def block(state: State) -> Tree:
        return {
            "attention": to.fused(to.under(state, "attention."), H, "query_key_value", "dense"),
            "attention_norm": to.norm(state, "input_layernorm"),
            "mlp_norm": to.norm(state, "post_attention_layernorm"),
            "mlp_in": to.linear(state, "mlp.dense_h_to_4h"),
            "mlp_out": to.linear(state, "mlp.dense_4h_to_h"),
        }

    def mapped(state: State, one: float) -> Tree:
        stack = to.stack(to.layers(state, "gpt_neox.layers.", block))
        return {
            "embed": {"embedding": state["gpt_neox.embed_in.weight"]},
            "stack": {**stack, "norm": to.norm(state, "gpt_neox.final_layer_norm")},
            "head": to.linear(state, "embed_out" if "embed_out.weight" in state else "lm_head"),
        }

    stack = lambda: Decoder(
        F, H, 2, hidden=HIDDEN, rotary=Rotary(fraction=0.5), residual=Residual(parallel=True), norm=layer_norm,
        activation=functools.partial(jax.nn.gelu, approximate=False), rngs=nnx.Rngs(0),
    )  # fmt: skip
    return Peer(lambda: transformers.GPTNeoXForCausalLM(config), lambda: Model(stack()), mapped)


def bloom() -> Peer:
    config = transformers.BloomConfig(**{**sizes, "n_head": H, "n_layer": 2})

    def block(state: State) -> Tree:
        return {
            "attention": to.fused(to.under(state, "self_attention."), H, "query_key_value", "dense"),
            "attention_norm": to.norm(state, "input_layernorm"),
            "mlp_norm": to.norm(state, "post_attention_layernorm"),
            "mlp_in": to.linear(state, "mlp.dense_h_to_4h"),
            "mlp_out": to.linear(state, "mlp.dense_4h_to_h"),
        }

    def mapped(state: State, one: float) -> Tree:
        stack = to.stack(to.layers(state, "transformer.h.", block))
        return {
            "embed": {"embedding": state["transformer.word_embeddings.weight"]},
            "norm": to.norm(state, "transformer.word_embeddings_layernorm"),
            "stack": {**stack, "norm": to.norm(state, "transformer.ln_f")},
            "head": to.linear(state, "lm_head"),
        }

    stack = lambda: Decoder(F, H, 2, positional=Alibi(H), norm=layer_norm, rngs=nnx.Rngs(0))
    return Peer(lambda: transformers.BloomForCausalLM(config), lambda: Model(stack(), norm=layer_norm), mapped)


class Translator(nnx.Module):
    """Tokens of a source, which are those of the target too, to logits; the embedding is also the output."""

    def __init__(self, stack: EncoderDecoder, scale: float):
        self.scale, self.stack, self.embed = scale, stack, nnx.Embed(TOKENS, F, rngs=nnx.Rngs(0))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.embed.attend(self.scale * self.stack(self.embed(tokens), self.embed(tokens)))

    def begin(self, tokens: jax.Array) -> Any:
        return self.stack.cache(tokens.shape[1], self.embed(tokens))

    def decode(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        x, cache = self.stack.decode(self.embed(tokens), cache)
        return self.embed.attend(self.scale * x), cache


def t5() -> Peer:
    config = transformers.T5Config(
        vocab_size=TOKENS, d_model=F, d_kv=6, d_ff=HIDDEN, num_layers=2, num_heads=H, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8, relative_attention_max_distance=20, dropout_rate=0.0, attn_implementation="eager",
        decoder_start_token_id=0,
    )  # fmt: skip

    def block(state: State) -> Tree:
        last = 2 if "layer.2.layer_norm.weight" in state else 1
        names = ("q", "k", "v", "o")
        tree = {
            "attention": to.attention(to.under(state, "layer.0.SelfAttention."), H, H, names),
            "attention_norm": to.norm(state, "layer.0.layer_norm"),
            "mlp_norm": to.norm(state, f"layer.{last}.layer_norm"),
            **to.gated(to.under(state, f"layer.{last}.DenseReluDense."), "wi_0", "wi_1", "wo"),
        }
        if last == 2:
            tree["cross_attention"] = to.attention(to.under(state, "layer.1.EncDecAttention."), H, H, names)
            tree["cross_norm"] = to.norm(state, "layer.1.layer_norm")
        return tree

    def half(state: State) -> Tree:
        table = state["block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        stack = to.stack(to.layers(state, "block.", block))
        return {**stack, "norm": to.norm(state, "final_layer_norm"), "positional": {"table": table.T}}

    def mapped(state: State, one: float) -> Tree:
        halves = {name: half(to.under(state, f"{name}.")) for name in ("encoder", "decoder")}
        return {"embed": {"embedding": state["shared.weight"]}, "stack": halves}

    bias = lambda both: {
        "positional": RelativeBias(H, buckets=8, max_distance=20, bidirectional=both, rngs=nnx.Rngs(0))
    }
    stack = lambda: EncoderDecoder(
        F, H, 2, encoder=bias(True), decoder=bias(False), head_dim=6, score=scores.dot(1.0),
        **also(swiglu, activation=jax.nn.gelu),
    )  # fmt: skip
    scale = F**-0.5 if config.scale_decoder_outputs else 1.0
    return Peer(
        lambda: transformers.T5ForConditionalGeneration(config),
        lambda: Translator(stack(), scale),
        mapped,
        lambda theirs, tokens: theirs(input_ids=tokens, decoder_input_ids=tokens).logits,
    )


class Listener(nnx.Module):
    """Sound to logits of tokens: two convolutions and learned positions before the stacks."""

    def __init__(self, stack: EncoderDecoder, sound: np.ndarray, room: int):
        rngs, (_, length, mels) = nnx.Rngs(0), sound.shape
        self.sound, self.stack, self.embed = (
            nnx.Variable(jnp.asarray(sound)),
            stack,
            nnx.Embed(TOKENS, F, param_dtype=jnp.result_type(float), rngs=rngs),
        )
        self.first, self.second = nnx.Conv(mels, F, 3, rngs=rngs), nnx.Conv(F, F, 3, 2, padding=((1, 1),), rngs=rngs)
        self.source_places = nnx.Param(jnp.zeros((length // 2, F)))
        self.target_places = nnx.Param(jnp.zeros((room, F)))

    def source(self) -> jax.Array:
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        return gelu(self.second(gelu(self.first(self.sound[...])))) + self.source_places[...]

    def into(self, tokens: jax.Array, start: Any = 0) -> jax.Array:
        places = jax.lax.dynamic_slice_in_dim(self.target_places[...], start, tokens.shape[1])
        return self.embed(tokens) + places

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.embed.attend(self.stack(self.source(), self.into(tokens)))

    def begin(self, tokens: jax.Array) -> Any:
        return self.stack.cache(tokens.shape[1], self.source(), dtype=jnp.result_type(float))

    def decode(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        start = cache.blocks[0].past.length[0, 0]
        x, cache = self.stack.decode(self.into(tokens, start), cache)
        return self.embed.attend(x), cache


def whisper() -> Peer:
    config = transformers.WhisperConfig(
        vocab_size=TOKENS, num_mel_bins=5, d_model=F, encoder_layers=2, decoder_layers=2, encoder_attention_heads=H,
        decoder_attention_heads=H, encoder_ffn_dim=HIDDEN, decoder_ffn_dim=HIDDEN, max_source_positions=6,
        max_target_positions=12, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        attn_implementation="eager", dropout=0.0,
    )  # fmt: skip
    sound = np.random.default_rng(3).standard_normal((2, 12, 5))  # [b, s, mels]
    names = ("q_proj", "k_proj", "v_proj", "out_proj")

    def block(state: State) -> Tree:
        tree = {
            "attention": to.attention(to.under(state, "self_attn."), H, H, names),
            "attention_norm": to.norm(state, "self_attn_layer_norm"),
            "mlp_norm": to.norm(state, "final_layer_norm"),
            "mlp_in": to.linear(state, "fc1"),
            "mlp_out": to.linear(state, "fc2"),
        }
        if "encoder_attn_layer_norm.weight" in state:
            tree["cross_attention"] = to.attention(to.under(state, "encoder_attn."), H, H, names)
            tree["cross_norm"] = to.norm(state, "encoder_attn_layer_norm")
        return tree

    def half(state: State) -> Tree:
        return {**to.stack(to.layers(state, "layers.", block)), "norm": to.norm(state, "layer_norm")}

    def mapped(state: State, one: float) -> Tree:
        body = to.under(state, "model.")
        conv = lambda name: {
            "kernel": body[f"encoder.{name}.weight"].transpose(2, 1, 0),
            "bias": body[f"encoder.{name}.bias"],
        }
        return {
            "embed": {"embedding": body["decoder.embed_tokens.weight"]},
            "first": conv("conv1"),
            "second": conv("conv2"),
            "source_places": body["encoder.embed_positions.weight"],
            "target_places": body["decoder.embed_positions.weight"],
            "stack": {name: half(to.under(body, f"{name}.")) for name in ("encoder", "decoder")},
        }

    def theirs() -> torch.nn.Module:
        model = transformers.WhisperForConditionalGeneration(config)
        model.model.encoder.embed_positions.requires_grad_(True)
        return model

    stack = lambda: EncoderDecoder(
        F, H, 2, hidden=HIDDEN, use_bias=("query", "value", "out", "mlp"), norm=layer_norm,
        activation=functools.partial(jax.nn.gelu, approximate=False), rngs=nnx.Rngs(0),
    )  # fmt: skip
    features = torch.tensor(sound).transpose(1, 2)
    ask = lambda theirs, tokens: theirs(input_features=features, decoder_input_ids=tokens).logits
    return Peer(theirs, lambda: Listener(stack(), sound, 12), mapped, ask, wide=True)


class Identity(nnx.Module):
    """No norm, in the place of one."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class MaskedModel(Model):
    """Between the stack and the logits, a product and a norm."""

    def __init__(self, stack: Encoder, norm: Any):
        super().__init__(stack, norm=norm, bias=True)
        self.dense, self.last = nnx.Linear(F, F, use_bias=False, rngs=nnx.Rngs(0)), norm(F, rngs=nnx.Rngs(0))
        stack.blocks[0].attention_norm = Identity()  # ModernBERT's first layer has none: its input is normalised

    def logits(self, x: jax.Array) -> jax.Array:
        return self.head(self.last(jax.nn.gelu(self.dense(x), approximate=False)))


def modernbert() -> Peer:
    given = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"), 0)
    config = transformers.ModernBertConfig(
        **{**sizes, **given}, intermediate_size=HIDDEN, num_hidden_layers=4, local_attention=4,
        rope_parameters={"full_attention": rope(theta=500.0), "sliding_attention": rope(theta=1e4)},
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip

    def block(state: State) -> Tree:
        weights = state["attn.Wqkv.weight"].reshape(3, -1, F)
        gate, into = np.split(state["mlp.Wi.weight"], 2)
        tree = {
            "attention": {
                **{name: to.split(weights[n], None, H) for n, name in enumerate(("query", "key", "value"))},
                "out": to.merged(state, "attn.Wo", H),
            },
            "mlp_norm": to.norm(state, "mlp_norm"),
            "mlp_gate": {"kernel": gate.T},
            "mlp_in": {"kernel": into.T},
            "mlp_out": to.linear(state, "mlp.Wo"),
        }
        return {**tree, "attention_norm": to.norm(state, "attn_norm")} if "attn_norm.weight" in state else tree

    def mapped(state: State, one: float) -> Tree:
        body = to.under(state, "model.")
        return {
            "embed": {"embedding": body["embeddings.tok_embeddings.weight"]},
            "norm": to.norm(body, "embeddings.norm"),
            "stack": {**to.stack(to.layers(body, "layers.", block), 3), "norm": to.norm(body, "final_norm")},
            "dense": to.linear(state, "head.dense"),
            "last": to.norm(state, "head.norm"),
            "head": to.linear(state, "decoder"),
        }

    norm = functools.partial(layer_norm, use_bias=False)
    local = {"mask": masks.window(2, 2), "rotary_base": 1e4}
    stack = lambda: Encoder(
        F, H, 4, pattern=({"rotary_base": 500.0}, local, local),
        **also(swiglu, norm=norm, activation=functools.partial(jax.nn.gelu, approximate=False)),
    )  # fmt: skip
    return Peer(
        lambda: transformers.ModernBertForMaskedLM(config), lambda: MaskedModel(stack(), norm), mapped, decodes=False
    )


ALL = (llama, qwen2, qwen3, gemma2, gpt_oss, t5, whisper, bloom, modernbert, deepseek, gpt_neox)
PEERS = {make.__name__: make for make in ALL}
