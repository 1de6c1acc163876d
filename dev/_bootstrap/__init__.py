"""The steps from a bare clone to a working environment (standard library only)."""
