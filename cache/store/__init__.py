"""Common ground of all stores: whole artefacts, parts, shards, tables and tensors."""
