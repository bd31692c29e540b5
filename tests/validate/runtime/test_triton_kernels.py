"""The Triton kernels, each against a plain formulation in torch.

They need a CUDA device, or the environment variable TRITON_INTERPRET=1.
"""

import os
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="torch's CPU build comes without triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)

from splitwiser.validate.runtime import triton_attention
from splitwiser.validate.runtime.torch_kernels import TorchKernels
from splitwiser.validate.runtime.triton_kernels import TritonKernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SMS = 6  # few: so that small batches have one split, and a single row several


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def close(actual, expected, dtype):
    torch.testing.assert_close(
        actual.float(), expected.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


class Case(NamedTuple):
    """Decode rows at *positions*, each with a sequence of its own in a pool of random blocks."""

    positions: list[int]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    block_size: int = 16
    window: int | None = None
    dtype: torch.dtype = torch.float32

    def tensors(self):
        blocks_each = max(self.positions) // self.block_size + 3
        sequences = len(self.positions) + 2
        order = torch.randperm(
            sequences * blocks_each, generator=torch.Generator().manual_seed(1)
        ).reshape(sequences, blocks_each)
        shape = (sequences * blocks_each, self.kv_heads, self.block_size, self.head_dim)
        pool = torch.stack([normal(*shape, seed=2), normal(*shape, seed=3)]).to(self.dtype)
        rows = torch.randperm(sequences, generator=torch.Generator().manual_seed(4))
        rows = rows[: len(self.positions)]
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        qkv = normal(len(self.positions), width, dtype=self.dtype, seed=5)
        q = qkv[:, : self.heads * self.head_dim].unflatten(1, (self.heads, self.head_dim))
        tables = order.to(torch.int32)
        for row, position in zip(rows.tolist(), self.positions, strict=True):
            used = position // self.block_size + 1
            pool[:, order[row, used:]] = torch.nan  # what is not of the sequence is not read
            tables[row, used:] = -7
            if position >= 0:
                pool[:, order[row, used - 1], :, position % self.block_size + 1 :] = torch.nan
        positions = torch.tensor(self.positions)
        scale = self.head_dim**-0.5
        on_device = (tensor.to(DEVICE) for tensor in (tables, rows, positions))
        return q, pool[0], pool[1], *on_device, scale, self.window


def attend(q, keys, values, tables, rows, positions, scale, window):
    """Decode attention in float32, row by row."""
    group = q.shape[1] // keys.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    for index, position in enumerate(positions.tolist()):
        if position < 0:
            continue
        used = tables[rows[index], : position // keys.shape[2] + 1].long()
        start = 0 if window is None else max(0, position - window + 1)
        k, v = (
            pool[used].transpose(0, 1).flatten(1, 2)[:, start : position + 1].float()
            for pool in (keys, values)
        )
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        weight = torch.softmax(scale * torch.einsum("hd,htd->ht", q[index].float(), k), 1)
        out[index] = torch.einsum("ht,htd->hd", weight, v)
    return out


@pytest.mark.parametrize(
    "case",
    [
        Case([0]),
        Case([299]),
        Case([130, 5, -1, 64, 15, 16, 300, 0, 63]),
        Case([100, -1], heads=6, kv_heads=1, head_dim=80),
        Case([77], heads=3, kv_heads=3, head_dim=64, block_size=32),
        Case([300, 5], heads=34, kv_heads=2, head_dim=32, block_size=4),
        Case([40], heads=2, kv_heads=1, head_dim=256),
        Case([250, 9, -1, 128], window=100),
        Case([500], window=7),
        Case([300, -1], head_dim=128, dtype=torch.float16),
        Case([200, 31, -1], head_dim=128, window=150, dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_decode_attention(case):
    """Each row attends to its window of its sequence, through its blocks, and to nothing else."""
    if INTERPRETED and case.dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies no matrices of bfloat16")
    arguments = case.tensors()
    actual = TritonKernels(SMS).decode_attention(*arguments)
    assert actual.dtype == case.dtype and actual.is_contiguous()
    close(actual, attend(*arguments), case.dtype)
    close(actual, TorchKernels().decode_attention(*arguments), case.dtype)


@pytest.mark.parametrize("splits", [1, 2, 3, 7, 20])
def test_splits_do_not_change_attention(splits):
    """The result is the same for any number of splits, be it more than there are tiles."""
    arguments = Case([130, 5, -1, 299]).tensors()
    actual = triton_attention._launch(*arguments, splits=splits, tile=32, warps=4, stages=3)
    close(actual, attend(*arguments), torch.float32)


def test_no_split_is_planned_beyond_the_tiles():
    """A sequence has no more splits than tiles, and at least one; more SMs never mean fewer."""
    assert triton_attention._splits(1, 8, 5, 132) == 5
    assert triton_attention._splits(0, 8, 0, 132) == 1
    planned = [triton_attention._splits(64, 8, 1000, sms) for sms in range(1, 200)]
    assert planned[0] == 1 and planned == sorted(planned)


def norm_of(x, weight, bias, eps):
    """LayerNorm, or RMSNorm rounded before its weight as Hugging Face's Llama rounds."""
    wide = x.float()
    if bias is not None:
        return torch.nn.functional.layer_norm(
            wide, wide.shape[-1:], weight.float(), bias.float(), eps
        )
    root = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * root).to(x.dtype).float() * weight.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_bias", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("hidden", [48, 768])
def test_add_norm(hidden, with_bias, dtype):
    """The norm reads the sum after it was rounded; without a residual the sum is x."""
    x = normal(6, 2 * hidden, dtype=dtype)[1:, :hidden]  # rows that are not contiguous
    residual = normal(5, hidden, dtype=dtype, seed=1) + 3
    weight = normal(hidden, dtype=dtype, seed=2)
    bias = normal(hidden, dtype=dtype, seed=3) if with_bias else None
    kernels = TritonKernels(SMS)
    normed, summed = kernels.add_norm(x, residual, weight, bias, 1e-5)
    truncates = INTERPRETED and dtype == torch.bfloat16  # where the device rounds to nearest
    error = 2**-7 if truncates else 0
    torch.testing.assert_close(summed, x + residual, rtol=error, atol=0)
    close(normed, norm_of(summed, weight, bias, 1e-5), dtype)
    normed, summed = kernels.add_norm(x, None, weight, bias, 1e-5)
    torch.testing.assert_close(summed, x, rtol=0, atol=0)
    close(normed, norm_of(x, weight, bias, 1e-5), dtype)
    close(normed, TorchKernels().add_norm(x, None, weight, bias, 1e-5)[0], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotate"),
    [(4, 2, 16, True), (7, 1, 80, True), (20, 4, 32, True), (3, 3, 64, False)],
)
def test_rotate_and_store(heads, kv_heads, head_dim, rotate, dtype):
    """Queries and keys turn in place; turned keys and values go to their slots, and only there."""
    tokens, blocks, block_size = 5, 4, 8
    qkv = normal(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    angles = normal(40, head_dim // 2, seed=1)
    cos_sin = torch.cat([angles.cos(), angles.sin()], 1) if rotate else None
    positions = torch.tensor([0, 39, -1, 7, 8], device=DEVICE)
    slots = torch.tensor([17, 0, -1, -1, 31], device=DEVICE)
    keys = normal(blocks, kv_heads, block_size, head_dim, dtype=dtype, seed=2)
    values = normal(blocks, kv_heads, block_size, head_dim, dtype=dtype, seed=3)

    other = [qkv.clone(), keys.clone(), values.clone()]
    before = qkv.clone().unflatten(1, (-1, head_dim)).float()
    turned, kept = before.split([heads + kv_heads, kv_heads], 1)
    if cos_sin is not None:
        cos, sin = cos_sin[positions.clamp(0)][:, None].chunk(2, -1)
        low, high = turned.chunk(2, -1)
        turned = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
    expected = torch.cat([turned, kept], 1).to(dtype)
    pools = [keys.clone(), values.clone()]
    new = [expected[:, heads : heads + kv_heads], expected[:, heads + kv_heads :]]
    for pool, heads_of_tokens in zip(pools, new, strict=True):
        for slot, of_token in zip(slots.tolist(), heads_of_tokens, strict=True):
            if slot >= 0:
                pool[slot // block_size, :, slot % block_size] = of_token

    TritonKernels(SMS).rotate_and_store(
        qkv, heads, kv_heads, head_dim, cos_sin, positions, slots, keys, values
    )
    close(qkv.unflatten(1, (-1, head_dim)), expected, dtype)
    close(keys, pools[0], dtype)
    close(values, pools[1], dtype)
    TorchKernels().rotate_and_store(
        other[0], heads, kv_heads, head_dim, cos_sin, positions, slots, *other[1:]
    )
    real = positions >= 0
    for ours, theirs in zip([qkv[real], keys, values], [other[0][real], *other[1:]], strict=True):
        close(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [24, 1500])
def test_gated(width, dtype):
    """The gate goes through silu and multiplies what goes up."""
    gate_up = normal(3, 2 * width, dtype=dtype) * 4
    gate, up = gate_up.float().chunk(2, 1)
    actual = TritonKernels(SMS).gated(gate_up)
    close(actual, torch.nn.functional.silu(gate) * up, dtype)
    close(actual, TorchKernels().gated(gate_up), dtype)


@pytest.mark.parametrize("tokens", [0, 1])
def test_empty_batches(tokens):
    """A batch without rows gives no rows."""
    kernels = TritonKernels(SMS)
    x = normal(tokens, 32)
    weight = normal(32)
    assert kernels.gated(x).shape == (tokens, 16)
    assert kernels.add_norm(x, x, weight, None, 1e-5)[0].shape == (tokens, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_places_beyond_2_31_elements():
    """A token that is stored at the far end of a huge pool, and attends to itself, gets its value."""
    heads, head_dim, block_size, blocks = 8, 128, 16, 2**17 + 8
    shape = (blocks, heads, block_size, head_dim)
    keys, values = (torch.empty(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    qkv = normal(1, 3 * heads * head_dim, dtype=torch.bfloat16)
    slots = torch.tensor([(blocks - 1) * block_size], device=DEVICE)
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    tables = torch.full((1, 4), blocks - 1, dtype=torch.int32, device=DEVICE)
    kernels = TritonKernels()
    kernels.rotate_and_store(qkv, heads, heads, head_dim, None, zero, slots, keys, values)
    query, _, value = qkv.view(1, 3, heads, head_dim).unbind(1)
    found = kernels.decode_attention(query, keys, values, tables, zero, zero, 1.0, None)
    torch.testing.assert_close(found, value, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 40])
def test_a_captured_graph_follows_its_inputs(rows):
    """A graph captured with padding rows alone gives, at replay, what its inputs then say."""
    kernels = TritonKernels(SMS)
    arguments = Case(list(range(0, 7 * rows, 7)), head_dim=64, dtype=torch.float16).tensors()
    positions = arguments[5].clone()
    expected = kernels.decode_attention(*arguments)
    arguments[5].fill_(-1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = kernels.decode_attention(*arguments)
    arguments[5].copy_(positions)
    graph.replay()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
