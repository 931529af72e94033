"""What every family of Pallas kernels needs of a call: its terms as functions of tiles, its masks as lists of work."""
