"""Calibration: measured kernel times, and the profiles that are fitted to them."""
