import tokamax

out = tokamax.dot_product_attention(
    q,
    k,
    v,
    bias,
    is_causal=True,
    local_window_size=(63, 0),
    logits_soft_cap=30.0,
    key_value_seq_lengths=lengths,
)
