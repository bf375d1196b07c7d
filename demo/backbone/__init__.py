"""The bundled ViT and the program that distilled it."""
