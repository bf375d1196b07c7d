"""The bundled demonstration backbone and the script that makes it."""
