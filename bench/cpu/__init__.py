"""`python -m bench cpu`: jattn on this machine's CPU beside its peers. README.md here says what limits it."""
