"""Verify: a few steps of a recipe's own layout against one process in fp32."""
