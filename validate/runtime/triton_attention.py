"""Decode attention over a paged pool in Triton: one query for each sequence, split over its keys.

The work is reading keys and values once, so what counts is how many bytes are under way. One
program takes one sequence, one KV head and one split of the sequence, with all query heads of the
group together (padded to the 16 rows of a tensor-core tile: the arithmetic hides behind memory), so
keys and values are read once for the group. It walks its split in tiles of 16 KiB of keys and as
much of values, gathered through the block table; 16-byte asynchronous copies keep `stages - 1`
tiles ahead in shared memory. The block numbers are read one tile earlier still, since otherwise
each tile would wait for two trips to memory, one after the other.

The grid is fixed by shapes alone, as CUDA graphs need it: enough splits for about eight programs on
each SM, whatever the lengths. Each split takes an equal share of its own sequence's tiles; one
without a share leaves at once. A second kernel merges the splits by their log-sum-exp.
Flash decoding: Dao et al., https://pytorch.org/blog/flash-decoding/.
"""

from math import e, log2

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS_PER_SM = 8  # two waves or more, which evens out sequences of unequal lengths
_MAX_SPLITS = 64
_TILE_BYTES = 16384
_STAGES = 3


@triton.jit
def _attend_split(
    q,
    keys,
    values,
    tables,
    rows,
    positions,
    out,  # [batch, heads, head_dim] where splits == 1, else float32 [batch, heads, splits, head_dim]
    lse,  # float32 [batch, heads, splits]: log2 of the sum of exp2(score), -inf of an empty split
    scale,  # of the scores, times log2(e)
    q_row,
    q_head,
    pool_block,
    pool_head,
    pool_token,
    table_row,
    group: tl.constexpr,
    group_pad: tl.constexpr,
    head_dim: tl.constexpr,
    dim_pad: tl.constexpr,
    block_size: tl.constexpr,
    window: tl.constexpr,  # 0: none
    tile: tl.constexpr,
    single: tl.constexpr,  # splits == 1
):
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    row = tl.program_id(2).to(tl.int64)
    position = tl.load(positions + row).to(tl.int32)

    member = tl.arange(0, group_pad)
    dim = tl.arange(0, dim_pad)
    head = kv_head * group + member
    heads = tl.num_programs(0) * group
    q_mask = (member[:, None] < group) & (dim[None, :] < head_dim)
    place = (row * heads + head) * splits + split  # of this split's results

    start = 0
    if window > 0:
        start = tl.maximum(position - window + 1, 0)
    lowest = start // tile
    tiles = (position + tile) // tile - lowest
    share = tl.cdiv(tiles, splits)
    first = lowest + split * share
    last = tl.minimum(first + share, lowest + tiles)
    if first >= last:
        if single:
            nothing = tl.zeros([group_pad, dim_pad], out.dtype.element_ty)
            tl.store(out + place[:, None] * head_dim + dim[None, :], nothing, mask=q_mask)
        else:
            tl.store(lse + place, tl.full([group_pad], float("-inf"), tl.float32), member < group)
        return

    q_place = row * q_row + head[:, None] * q_head + dim[None, :]
    query = tl.load(q + q_place, mask=q_mask, other=0.0)
    table = tables + tl.load(rows + row) * table_row
    lane = tl.arange(0, tile)
    in_head = kv_head.to(tl.int64) * pool_head + dim
    top = tl.full([group_pad], float("-inf"), tl.float32)
    total = tl.zeros([group_pad], tl.float32)
    acc = tl.zeros([group_pad, dim_pad], tl.float32)
    token = first * tile + lane
    block = tl.load(table + token // block_size, mask=token <= position, other=0)
    for index in range(first, last):
        token = index * tile + lane
        seen = (token <= position) & (token >= start)
        at = block.to(tl.int64) * pool_block + (token % block_size) * pool_token
        ahead = token + tile
        # A tile early: its latency would otherwise stand before every load of keys.
        block = tl.load(table + ahead // block_size, mask=ahead <= position, other=0)
        key = tl.load(
            keys + at[None, :] + in_head[:, None],
            mask=seen[None, :] & (dim[:, None] < head_dim),
            other=0.0,
        )
        value = tl.load(
            values + at[:, None] + in_head[None, :],
            mask=seen[:, None] & (dim[None, :] < head_dim),
            other=0.0,
        )
        score = tl.dot(query, key, input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        acc = tl.dot(weight.to(value.dtype), value, acc * shrink[:, None], input_precision="ieee")
        top = higher

    result = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + place[:, None] * head_dim + dim[None, :], result, mask=q_mask)
    if not single:
        tl.store(lse + place, top + tl.log2(total), mask=member < group)


@triton.jit
def _merge_splits(
    partial,  # float32 [batch, heads, splits, head_dim]
    lse,  # float32 [batch, heads, splits]
    out,  # [batch, heads, head_dim]
    splits,
    splits_pad: tl.constexpr,
    head_dim: tl.constexpr,
    dim_pad: tl.constexpr,
):
    index = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    split = tl.arange(0, splits_pad)
    dim = tl.arange(0, dim_pad)
    share = tl.load(lse + index * splits + split, mask=split < splits, other=float("-inf"))
    top = tl.max(share, 0)
    weight = tl.exp2(share - tl.where(top == float("-inf"), 0.0, top))
    # Nothing was written for an empty split: whatever its scratch holds must not be read.
    some = (share != float("-inf"))[:, None] & (dim[None, :] < head_dim)
    place = (index * splits + split)[:, None] * head_dim + dim[None, :]
    acc = tl.sum(tl.load(partial + place, mask=some, other=0.0) * weight[:, None], 0)
    total = tl.sum(weight, 0)
    result = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(out + index * head_dim + dim, result.to(out.dtype.element_ty), mask=dim < head_dim)


def _dim_pad(head_dim: int) -> int:
    width: int = triton.next_power_of_2(head_dim)
    return max(16, width)  # tl.dot needs 16 at least


def _launch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    positions: Tensor,
    scale: float,
    window: int | None,
    *,
    splits: int,
    tile: int,
    warps: int,
    stages: int,
) -> Tensor:
    """Launch with these constants; benchmarks sweep them."""
    if q.stride(2) != 1 or keys.stride(3) != 1 or keys.stride() != values.stride():
        raise ValueError(
            f"q, keys and values need contiguous heads, and keys and values the same strides: "
            f"strides are {q.stride()}, {keys.stride()} and {values.stride()}"
        )
    batch, heads, head_dim = q.shape
    _, kv_heads, block_size, _ = keys.shape
    group = heads // kv_heads
    dim_pad = _dim_pad(head_dim)
    single = splits == 1
    out = torch.empty((batch, heads, head_dim), dtype=q.dtype, device=q.device)
    partial, lse = out, out
    if not single:
        sums = (batch, heads, splits)
        partial = torch.empty((*sums, head_dim), dtype=torch.float32, device=q.device)
        lse = torch.empty(sums, dtype=torch.float32, device=q.device)
    _attend_split[(kv_heads, splits, batch)](
        q,
        keys,
        values,
        block_tables,
        rows,
        positions,
        partial,
        lse,
        scale * log2(e),
        q.stride(0),
        q.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        block_tables.stride(0),
        group=group,
        group_pad=max(16, triton.next_power_of_2(group)),
        head_dim=head_dim,
        dim_pad=dim_pad,
        block_size=block_size,
        window=window or 0,
        tile=tile,
        single=single,
        num_warps=warps,
        num_stages=stages,
    )
    if not single:
        splits_pad = triton.next_power_of_2(splits)
        merging = max(1, min(4, splits_pad // 8))
        _merge_splits[(heads, batch)](
            partial, lse, out, splits, splits_pad, head_dim, dim_pad, num_warps=merging
        )
    return out


def _splits(batch: int, kv_heads: int, tiles: int, sms: int) -> int:
    """Splits of each sequence: programs enough for *sms*, no more than a sequence's *tiles*."""
    wanted: int = triton.cdiv(_PROGRAMS_PER_SM * sms, max(1, batch * kv_heads))
    return max(1, min(wanted, tiles, _MAX_SPLITS))


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    positions: Tensor,
    scale: float,
    window: int | None,
    sms: int,
) -> Tensor:
    """Attention of one query for each row: [batch, heads, head_dim], as `Kernels` has it.

    *sms* are those that the launching stream can use; they set the number of splits.
    """
    head_dim = q.shape[2]
    _, kv_heads, block_size, _ = keys.shape
    tile = min(128, max(16, _TILE_BYTES // (_dim_pad(head_dim) * q.element_size())))
    longest = block_tables.shape[1] * block_size
    if window is not None:
        longest = min(longest, window + tile - 1)  # a window may begin within a tile
    splits = _splits(len(rows), kv_heads, triton.cdiv(longest, tile), sms)
    return _launch(
        q,
        keys,
        values,
        block_tables,
        rows,
        positions,
        scale,
        window,
        splits=splits,
        tile=tile,
        warps=4 if q.element_size() == 2 else 8,  # float32 has no tensor cores: registers
        stages=_STAGES,
    )
