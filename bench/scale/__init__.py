"""`python -m bench scale`: many chips that are not there. README.md here says what it assumes."""
