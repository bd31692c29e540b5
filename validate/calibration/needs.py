"""Which measurement identifies each parameter of a profile (`notes` of a fit that lacks one)."""

from __future__ import annotations

from collections.abc import Mapping

_GEMM = "GEMMs of a model's shapes"
_PAIRS = "prefill and decode beside each other under MPS"
_ALONE = "a phase alone on shares of the SMs (MPS percentages or green contexts)"

NEEDS: Mapping[str, str] = {
    "gemm_efficiency": f"{_GEMM} with thousands of rows",
    "attention_efficiency": "attention of long prompts, 4,096 tokens or more",
    "memory_efficiency": f"{_GEMM} with few rows, or copies larger than the L2 cache",
    "kv_efficiency": "decode attention of large batches with long contexts",
    "sharpness": f"{_GEMM} near the roofline's corner, 64 to 1,024 rows",
    "gemm_start": f"{_GEMM} with few rows",
    "stream_start": "element-wise kernels of few tokens",
    "tile_overhead": f"{_GEMM} with row counts between the tiles' multiples",
    "tile_traffic": f"{_GEMM} with hundreds of rows, of several widths",
    "tile_relief": f"{_ALONE}: decode on a fifth of the SMs and fewer",
    "tile_step": f"{_GEMM} with row counts between the tiles' multiples",
    "split_traffic": f"{_GEMM} of few rows and a long inner side",
    "attention_start": "attention of short prompts",
    "decode_block": "decode attention of large batches with short contexts",
    "mixed_decode": "attention of steps that decode beside prompts",
    "sampling_start": "sampling for few sequences",
    "sampling_passes": "sampling for large batches",
    "sustained": "steps of long prompts that follow each other, beside GEMMs timed one by one",
    "kernel_gap": "CUDA graphs of many empty or short kernels",
    "shared_gap": "a phase alone on the whole device under MPS, or in streams: decode of small batches",
    "launch_host": "eager steps of a small model, bound by the host",
    "step_overhead": "an engine's decode steps: time per token above that of the kernels",
    "sequence_overhead": "an engine's decode steps of batches of several sizes",
    "request_overhead": "an engine's time to first token for prompts of several lengths",
    "decided_ahead": "an engine's waits by when in a step requests come",
    "generate_overhead": "batches of Hugging Face's generate in one process",
    "compute_knee": f"{_ALONE}: prefill",
    "compute_bend": f"{_ALONE}: prefill, at four shares or more",
    "bandwidth_knee": f"{_ALONE}: decode of short contexts",
    "bandwidth_bend": f"{_ALONE}: decode, at four shares or more",
    "kv_knee": f"{_ALONE}: decode of large batches with long contexts",
    "quantum": "two processes that take turns without MPS",
    "switch": "two processes that take turns without MPS, of short and of long kernels",
    "clock_relief": "long prompts and decode that take turns without MPS",
    "slice_hold": "two processes that take turns without MPS, one of them bound by its host",
    "wait_memory": f"{_PAIRS} without limits, beside decode",
    "wait_compute": f"{_PAIRS} without limits, beside prefill",
    "passed": f"{_PAIRS} without limits: decode beside prefill, and two of the same phase",
    "yielded": "decode with priority beside long prefills under mps",
    "crowding": "prefill beside two decodes under MPS",
    "crowding_prompts": "two prefills beside decode under MPS",
    "contention_memory": "two decodes beside each other under MPS, at limits that sum to 100 %",
    "contention_compute": f"{_PAIRS}, at limits that sum to 100 %: decode's rate",
    "narrow": f"{_PAIRS}, at limits that overlap: decode's rate",
    "power_memory": f"{_PAIRS}, at small limits for decode: decode's rate",
    "power_compute": f"{_PAIRS}, at limits that sum to 100 %: prefill's rate",
    "second_wave": "prefill alone on green contexts of several sizes",
    "context_bytes": "device memory before and after a process opens its CUDA context",
    "activation_factor": "peak memory of the largest step",
    "startup": "the start of one process, models excluded",
    "handover": "a sequence passed from a prefill to a decode process",
    "pcie_efficiency": "copies between pinned host memory and the device",
}
