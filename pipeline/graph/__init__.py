"""From tokens to the kernel: nearest neighbours, groups of images, graphs (Eq. 2-4)."""
