"""`python -m bench decode`: a step of decoding against what its bytes take."""
