"""The embedded default: a small ViT and a drawn data set, and the programs that made them."""
