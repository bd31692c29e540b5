"""The same deployments on a real device, calibration, and predictions held against measurements.

`corun` reads measured rates of phases that share a GPU and predicts them; `corun_fit` fits a
profile to them.
"""
