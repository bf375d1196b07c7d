"""Pure numerics: arrays and tensors in, arrays and tensors out."""
