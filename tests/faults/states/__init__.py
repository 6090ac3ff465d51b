"""State machines: whatever is done in whatever order, what was promised holds."""
