"""Bytes and arrays: image files, staged pixels, working state, scenes. No computation."""
