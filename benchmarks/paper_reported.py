"""What the Splitwiser paper (arXiv 2505.03763) reports, as `benchmarks/paper.py` holds it against
the simulator.

Seconds unless a name says otherwise. Numbers marked (figure) are read off a plot, good to 1-2 %;
the others stand in the text, or follow from the paper's arithmetic.
"""

from __future__ import annotations

# Figure 8 (figure): Hugging Face on an A100, about 30,000 inputs; processes -> prompt, token,
# total. One process is the sequential baseline: tokenise everything, then generate.
FIGURE_8 = {
    1: (14.3, 360.0, 375.0),
    2: (38.0, 292.5, 331.0),
    4: (49.0, 267.0, 316.5),
    8: (70.0, 239.0, 309.0),
}
SAVING_A100 = -17.6  # % of the total, 8 processes against sequential (text)

# Figure 9 (figure): the same on an A10; total. The saving under MPS is the text's.
FIGURE_9 = {"sequential": 682.0, "time_slice": 683.0, "mps": 557.0}
SAVING_A10_MPS = -18.2  # %

# Figure 6 (figure): 16,000 inputs, total; Figure 7 (figure): batches/s in the steady state, 4
# processes.
FIGURE_6 = {"sequential": 168.5, "split": 144.7}
FIGURE_7 = {"sequential": 4.8, "split": 5.26}
SPEED_UP_STEADY = 1.1  # text

# Figure 10 (figure): vLLM, OPT-125m on an A10; requests -> total of one process, two, two under
# MPS.
FIGURE_10 = {
    20: (20.0, 24.0, 16.0),
    40: (32.0, 35.5, 36.5),
    80: (57.0, 66.0, 53.0),
    160: (109.5, 123.0, 77.0),
}
# Two processes' speed-up over one at 160 requests: Figure 10's totals, and the text's 1.42.
RATIO_TWO, RATIO_MPS = 0.89, 1.42
# Figure 11 (figure): time of one process's batch: alone, beside another, beside another under MPS.
FIGURE_11 = {
    10: (7.0, 14.0, 8.0),
    20: (13.0, 27.5, 17.0),
    40: (26.5, 57.0, 35.0),
    80: (52.0, 113.0, 67.0),
}

# Llama-2-7B on an A10, 1024 tokens in and out; requests -> Figure 5 (mean KV use of the prompt
# phase, %), Figure 12 (TPOT, ms) and Figure 13 (mean end-to-end latency, s), all (figure).
BATCHES = {
    1: (8.0, 31.4, 32.0),
    5: (23.5, 40.0, 41.0),
    10: (43.0, 44.0, 54.0),
    15: (60.0, 45.0, 69.0),
    20: (68.5, 45.3, 85.0),
    25: (74.0, 46.2, 100.0),
}

# Figure 15: mean KV use over the decode steps of one request, %; input length -> by output length.
OUTPUTS = (128, 256, 512, 1024, 2048)
FIGURE_15 = {
    128: (1.50, 2.00, 2.98, 4.94, 8.85),
    256: (2.47, 2.97, 3.96, 5.92, 9.83),
    512: (4.42, 4.92, 5.91, 7.87, 11.79),
    1024: (8.30, 8.82, 9.82, 11.78, 15.71),
    2048: (16.08, 16.63, 17.64, 19.61, 23.54),
}

# One request of Llama-2-7B on the A10 (the authors' logs, rounded): prompt tokens -> TTFT, and TPOT
# for the first 1024 output tokens from its fit of 29.8 ms + 1.1 us a context token.
TTFT = {128: 0.0425, 512: 0.117, 2048: 0.463}
TPOT = {prompt: 29.8e-3 + 1.1e-6 * (prompt + 512) for prompt in TTFT}

# Figures 2-4: share of the peak by Nsight Compute, %; prefill of 1024, and the middle of decode's
# range.
SHARES = {
    "SM, prefill of 1024": 61.0,
    "DRAM, prefill of 1024": 45.0,
    "SM, decode (12-17)": 14.5,
    "DRAM, decode (33-43)": 38.0,
}
