"""What the kernel families share: lists of work, places, terms as functions of tiles, packed layouts."""
