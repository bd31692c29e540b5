"""Calibration: from measurements, ours or others', to a profile."""
