"""From tokens and kernel to eigenfunctions: objective (Eq. 5-7), head, training, K-means."""
