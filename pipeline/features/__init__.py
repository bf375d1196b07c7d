"""From pixels to patch tokens: tiles, the frozen ViT, whitening, tokens in context."""
