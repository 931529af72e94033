from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def document_causal(b, h, i, j):
    return (i >= j) & (ids[b, i] == ids[b, j])


def alibi(score, b, h, i, j):
    return score - slopes[h] * (i - j)


sizes = {"B": 2, "H": None, "Q_LEN": 256, "KV_LEN": 256}
mask = create_block_mask(document_causal, **sizes, device=q.device)
# on an accelerator: torch.compile(flex_attention)(...)
out = flex_attention(q, k, v, score_mod=alibi, block_mask=mask)
