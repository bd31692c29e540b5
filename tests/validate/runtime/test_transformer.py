"""Laws of the forward pass: it is transformers', however the work is cut and wherever it lies."""

from functools import cache

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.config import read_config
from splitwiser.validate.runtime.kernels import kernels_for
from splitwiser.validate.runtime.numerics import numerics_of
from splitwiser.validate.runtime.prompt_attention import PromptAttention, Span
from splitwiser.validate.runtime.torch_kernels import TorchKernels
from splitwiser.validate.runtime.transformer import ModelBatch, Transformer
from splitwiser.validate.runtime.weights import fill_from_folder, layout

torch.set_num_threads(1)

BLOCK = 4
BLOCKS = 40
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # far from uniform attention, so that a wrong mask shows
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
    "dtype": "float32",
}
OPT_SHAPE = {key: SHAPE[key] for key in SHAPE.keys() - {"intermediate_size", "initializer_range"}}
OPT_SHAPE |= {"ffn_dim": 48, "init_std": 0.3, "word_embed_proj_dim": 32, "pad_token_id": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}
CONFIGS = {
    "opt": ("opt", OPT_SHAPE),
    "opt-350m": ("opt", OPT_SHAPE | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "llama": ("llama", SHAPE | {"rms_norm_eps": 1e-3, "rope_parameters": LLAMA3}),
    "llama-biases": (
        "llama",
        SHAPE | {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR},
    ),
    "mistral": ("mistral", SHAPE | {"sliding_window": 7}),
    "qwen2": ("qwen2", SHAPE | {"use_sliding_window": False, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", SHAPE | {"head_dim": 16, "use_sliding_window": False}),
}
every_family = pytest.mark.parametrize("name", CONFIGS)
MIXED = ("opt", "llama", "mistral")  # biases, rotation and a window: what a batch can get wrong


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By name: the model of transformers, and ours with the weights that it saved."""

    @cache
    def pair(name):
        family, keys = CONFIGS[name]
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **keys)
        theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)  # no bias is zero
        folder = tmp_path_factory.mktemp(name)
        theirs.save_pretrained(folder)
        llm = read_config(folder / "config.json")
        flat = torch.zeros(layout(llm).nbytes, dtype=torch.uint8)
        fill_from_folder(flat, llm, folder)
        weights = layout(llm).views(flat)
        return theirs, Transformer(llm, numerics_of(llm, folder), weights, TorchKernels())

    return pair


def pool(model, fill=torch.nan):
    """A KV pool whose every place is *fill*: memory that nobody has written may hold NaN."""
    llm = model.llm
    return torch.full((llm.layers, 2, BLOCKS, llm.kv_heads, BLOCK, llm.head_dim), fill)


def prompt(length, seed=1):
    return torch.randint(2, 97, (length,), generator=torch.Generator().manual_seed(seed))


def blocks_of(index, length=32):
    """The blocks of sequence *index* in a pool that no two of them share, out of order."""
    order = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(3))
    need = length // BLOCK
    return order[index * need : (index + 1) * need]


def slots(blocks, positions):
    return blocks[positions // BLOCK] * BLOCK + positions % BLOCK


def batch_of(chunks=(), decodes=(), padding=0):
    """A batch of *decodes* (token, position, blocks) and *chunks* (tokens, context, blocks).

    Its outputs are the decode rows and the last row of each chunk.
    """
    width = max([len(blocks) for _, _, blocks in decodes], default=1)
    tables = torch.full((len(decodes) + 1, width), -1, dtype=torch.int32)
    ids, positions, places, spans, wanted = [], [], [], [], list(range(len(decodes)))
    for row, (token, position, blocks) in enumerate(decodes):
        tables[row + 1, : len(blocks)] = blocks
        ids.append(torch.tensor([token]))
        positions.append(torch.tensor([position]))
        places.append(slots(blocks, positions[-1]))
    for _ in range(padding):
        ids.append(torch.tensor([0]))
        positions.append(torch.tensor([-1]))
        places.append(torch.tensor([-1]))
    start = len(decodes) + padding
    for tokens, context, blocks in chunks:
        stop = start + len(tokens)
        ids.append(tokens)
        positions.append(torch.arange(context, context + len(tokens)))
        places.append(slots(blocks, positions[-1]))
        held = blocks[: -(-(context + len(tokens)) // BLOCK)]
        spans.append(Span(start, stop, context, held if context else None))
        wanted.append(stop - 1)
        start = stop
    rows = torch.tensor([*range(1, len(decodes) + 1), *[0] * padding], dtype=torch.int64)
    joined = [torch.cat(parts) for parts in (ids, positions, places)]
    outputs = torch.tensor(wanted)
    return ModelBatch(*joined, len(rows), rows, tables, tuple(spans), outputs)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@every_family
def test_logits_are_those_of_transformers(models, name):
    """Every row of a prompt has the logits of transformers' model with the same weights."""
    theirs, ours = models(name)
    tokens = prompt(23)
    batch = batch_of([(tokens, 0, blocks_of(0))])
    found = ours.logits(batch._replace(outputs=torch.arange(23)), pool(ours))
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    assert expected.std() > 0.1
    close(found, expected)


@every_family
def test_greedy_tokens_are_those_of_generate(models, name):
    """Twenty greedy steps through the paged pool give the tokens of transformers' generate."""
    theirs, ours = models(name)
    tokens, blocks, kv = prompt(9), blocks_of(0), pool(ours)
    last = ours.next_tokens(batch_of([(tokens, 0, blocks)]), kv).item()
    found = [last]
    for position in range(9, 28):
        batch = batch_of(decodes=[(last, position, blocks)])._replace(outputs=None)
        last = ours.next_tokens(batch, kv).item()
        found.append(last)
    expected = theirs.generate(
        tokens[None], attention_mask=torch.ones(1, 9), max_new_tokens=20, do_sample=False
    )
    assert found == expected[0, 9:].tolist()


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("cuts", [(1,), (8, 9), (3, 10, 20)])
def test_a_prompt_in_chunks_is_the_whole_prompt(models, name, cuts):
    """Wherever a prompt is cut, its chunks store the same keys and values and give one token."""
    _, ours = models(name)
    tokens, blocks = prompt(22), blocks_of(1)
    whole, chunked = pool(ours, 0.0), pool(ours, 0.0)
    expected = ours.logits(batch_of([(tokens, 0, blocks)]), whole)
    for start, stop in zip((0, *cuts), (*cuts, 22), strict=True):
        found = ours.logits(batch_of([(tokens[start:stop], start, blocks)]), chunked)
    close(found, expected)
    close(chunked, whole)


@pytest.mark.parametrize("name", MIXED)
def test_a_batch_is_its_parts(models, name):
    """Decodes, padding, a chunk and two prompts in one batch give what each gives alone."""
    _, ours = models(name)
    kv = pool(ours)
    for sequence in (0, 1):
        ours.hidden(batch_of([(prompt(12 + sequence), 0, blocks_of(sequence))]), kv)
    ours.hidden(batch_of([(prompt(5, 2), 0, blocks_of(2))]), kv)
    decodes = [(11, 12, blocks_of(0)), (23, 13, blocks_of(1))]
    chunks = [(prompt(10, 3), 5, blocks_of(2)), (prompt(1, 4), 0, blocks_of(3))]
    chunks.append((prompt(14, 5), 0, blocks_of(4)))
    alone, together = kv.clone(), kv.clone()
    expected = [ours.logits(batch_of([chunk]), alone) for chunk in chunks]
    expected = [ours.logits(batch_of(decodes=[row]), alone) for row in decodes] + expected
    found = ours.logits(batch_of(chunks, decodes, padding=2)._replace(outputs=None), together)
    close(found[:2], torch.cat(expected[:2]))
    assert torch.isfinite(found).all()
    close(torch.nan_to_num(together), torch.nan_to_num(alone))
    assert torch.equal(torch.isnan(together), torch.isnan(alone))
    mixed = batch_of(chunks, decodes, padding=2)
    wanted = torch.tensor([0, 1, *(span.stop - 1 for span in mixed.spans)])
    close(ours.logits(mixed._replace(outputs=wanted), kv), torch.cat(expected))


@pytest.mark.parametrize("name", ["opt", "llama-biases", "qwen3"])
def test_prompts_rounded_up_to_planned_lengths_are_the_prompts(models, name, monkeypatch):
    """Rows behind a prompt, up to a length that has a plan, change nothing, wherever it stands."""
    _, ours = models(name)
    chunks = [(prompt(n, n), 0, blocks_of(i)) for i, n in enumerate((3, 8, 13))]
    chunks.insert(1, (prompt(6, 2), 4, blocks_of(3)))
    decodes = [(11, 3, blocks_of(4))]
    before, after = pool(ours, 0.0), pool(ours, 0.0)
    expected = ours.logits(batch_of(chunks, decodes), before)
    planned = PromptAttention(ours.llm, torch.device("cpu"), torch.float32)
    planned._ready = [8, 16]
    sizes = []

    def by_plan(q, k, v):
        sizes.append((len(q), len(k), len(v)))
        return planned._attend(q, k, v, None)

    planned._by_cudnn = by_plan
    monkeypatch.setattr(ours, "_prompts", planned)
    close(ours.logits(batch_of(chunks, decodes), after), expected)
    close(after, before)
    assert sizes == [(n, n, n) for n in (8, 8, 16)] * ours.llm.layers


def test_a_row_without_a_slot_stores_nothing(models):
    """A prompt whose slots are all -1 has its token, and leaves the pool as it was."""
    _, ours = models("llama")
    kv = pool(ours, 7.0)
    batch = batch_of([(prompt(6), 0, blocks_of(0))])
    expected = ours.logits(batch, pool(ours))
    close(ours.logits(batch._replace(slots=torch.full((6,), -1)), kv), expected)
    assert (kv == 7.0).all()


def test_a_chunk_needs_its_blocks(models):
    """A later chunk without blocks is refused, not computed as if it were the first."""
    _, ours = models("opt")
    batch = batch_of([(prompt(3), 4, blocks_of(0))])
    batch = batch._replace(spans=(batch.spans[0]._replace(blocks=None),))
    with pytest.raises(ValueError, match="a chunk after 4 tokens needs its blocks"):
        ours.hidden(batch, pool(ours))


@settings(max_examples=60, deadline=None)
@given(
    positions=st.lists(st.integers(-1, 60), min_size=1, max_size=6),
    groups=st.integers(1, 3),
    block_size=st.sampled_from([1, 4, 16]),
    window=st.none() | st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_paged_attention_is_sdpa_on_one_cache(positions, groups, block_size, window, seed):
    """Through any block table, attention is torch's own over the same keys laid out in a row."""
    random = torch.Generator().manual_seed(seed)
    kv_heads, head_dim, width = 2, 8, 60 // block_size + 1
    blocks = width * len(positions)
    keys, values = torch.randn(2, blocks, kv_heads, block_size, head_dim, generator=random)
    tables = torch.randperm(blocks, generator=random).view(-1, width).int()
    rows = torch.randperm(len(positions), generator=random)
    q = torch.randn(len(positions), kv_heads * groups, 2 * head_dim, generator=random)
    q = q[..., :head_dim]
    found = TorchKernels().decode_attention(
        q, keys, values, tables, rows, torch.tensor(positions), 0.3, window
    )
    assert found.is_contiguous()
    for row, position in enumerate(positions):
        if position < 0:
            assert (found[row] == 0).all()
            continue
        first = 0 if window is None else max(0, position - window + 1)
        k, v = (
            part[tables[rows[row]].long()].transpose(1, 2).flatten(0, 1)[first : position + 1]
            for part in (keys, values)
        )
        expected = torch.nn.functional.scaled_dot_product_attention(
            q[row, :, None],
            k.transpose(0, 1).repeat_interleave(groups, 0),
            v.transpose(0, 1).repeat_interleave(groups, 0),
            scale=0.3,
        )
        close(found[row], expected.squeeze(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_family
def test_a_cuda_device_computes_the_same(models, name, dtype):
    """Prompts, a chunk and decodes on CUDA give the CPU's logits, within the dtype's rounding."""
    _, ours = models(name)
    llm = ours.llm.with_dtype(dtype)
    weights = {key: value.to(dtype=layout(llm).dtype) for key, value in ours.weights.items()}
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        placed = {key: value.to(device) for key, value in weights.items()}
        model = Transformer(llm, ours.numerics, placed, kernels_for(device))
        kv = pool(model).to(device, layout(llm).dtype)
        on = _moved(device)
        first = on(batch_of([(prompt(13), 0, blocks_of(0)), (prompt(1), 0, blocks_of(1))]))
        later = on(batch_of([(prompt(9, 2), 13, blocks_of(0))], [(5, 1, blocks_of(1))]))
        found.append(torch.cat([model.logits(batch, kv).float().cpu() for batch in (first, later)]))
    error = (found[1] - found[0]).square().mean().sqrt() / found[0].std()
    assert error < {"float32": 1e-4, "bfloat16": 0.05}[dtype]  # bfloat16 on the CPU: up to 0.03


def _moved(device):
    """A function that moves a batch to *device*."""

    def move(value):
        return value.to(device) if isinstance(value, torch.Tensor) else value

    def moved(batch):
        spans = tuple(Span(*map(move, span)) for span in batch.spans)
        return ModelBatch(*map(move, batch))._replace(spans=spans)

    return moved
