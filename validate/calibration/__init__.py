"""Calibration: from measurements of a GPU, or of an engine on it, to a profile and its report."""
