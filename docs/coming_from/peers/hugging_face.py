import torch
from torch.nn.functional import scaled_dot_product_attention

t = q.shape[-2]
causal = torch.ones(t, t, dtype=torch.bool).tril()
mask = causal & attention_mask[:, None, None, :].bool()  # [b, 1, t, s]
out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
