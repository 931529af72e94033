"""Forward for few queries, as in decoding: heads fold, so that keys are read in the layout in which they lie."""
