"""Calibration: from measured kernels, devices and engines to profiles, and their reports."""
