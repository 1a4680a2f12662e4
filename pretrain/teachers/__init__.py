"""Frozen networks that students learn from: one file a kind."""
