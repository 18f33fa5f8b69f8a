"""Mixtures become smaller: fewer experts, or each in fewer bytes."""
