"""Ways to put a float matrix on the grid of a ggml type; the seam and its table are in `base`."""
