"""`python -m bench tpu` and `tune tpu`: kernels for TPUs that are not there. README.md here says what it rests on."""
