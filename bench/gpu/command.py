"""`python -m bench gpu`: jattn's GPU kernels, compiled without a GPU, or checked, timed and tuned on one.

Without a stage: check, time and tune, in this order.  Each stage stands alone, and writes as it goes.
"""
