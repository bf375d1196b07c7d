"""The stores: the only code of eigenseg that touches disk."""
