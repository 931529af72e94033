import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash

b, t, h, d = q.shape
mask = splash.MultiHeadMask([splash.LocalMask((t, t), (63, 0), 0)] * h)
kernel = splash.make_splash_mha(
    mask,
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=30.0,
    interpret=jax.default_backend() != "tpu",
)
q, k, v = (x.swapaxes(1, 2) for x in (q * d**-0.5, k, v))
out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(ids, ids)).swapaxes(1, 2)
