"""What arrives: traces, their files, and synthetic traffic. Knows no GPU, model or simulator."""

from splitwiser.traces import arrivals, lengths
from splitwiser.traces.prefix import PrefixBlocks
from splitwiser.traces.presets import PRESETS, Preset, preset
from splitwiser.traces.readers import FORMATS, read_trace, sniff
from splitwiser.traces.trace import Trace
from splitwiser.traces.traffic import random_trace
from splitwiser.traces.writers import write_mooncake

__all__ = [
    "FORMATS",
    "PRESETS",
    "PrefixBlocks",
    "Preset",
    "Trace",
    "arrivals",
    "lengths",
    "preset",
    "random_trace",
    "read_trace",
    "sniff",
    "write_mooncake",
]
