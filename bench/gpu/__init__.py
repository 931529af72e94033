"""`python -m bench gpu`: what jattn's GPU kernels are made of, whether they are right, and how long they take."""
