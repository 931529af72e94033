"""One module per backend: each adapts a kernel to what `_dispatch.Backend` asks for."""
