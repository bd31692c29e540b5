"""Synthetic documents, and a byte-level BPE that was trained on such: no download is needed.

Words are made of syllables and drawn by Zipf's law, so that the tokeniser works as hard as on
natural text; what they say is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from splitwiser.validate.runtime.messages import Ids

WORDS = 20_000  # different words
VOCAB = 8_192  # of the tokeniser, where the model's is not smaller
BYTES = 256  # tokens that a byte-level BPE begins with
_SYLLABLES = tuple(
    first + last for first in "bdfghklmnprstvwz" for last in ("a", "e", "i", "o", "u")
)


def documents(words: Sequence[int] | NDArray[np.int64], seed: int) -> list[str]:
    """A document of each number of words; at least as many tokens, for any byte-level BPE."""
    stream = np.random.default_rng([seed, 1])
    lexicon = _lexicon(stream)
    reach = np.cumsum(1.0 / np.arange(1, WORDS + 1))
    drawn = np.searchsorted(reach, stream.random(int(np.sum(words))) * reach[-1])
    ends = np.cumsum(words)
    return [
        " ".join(lexicon[word] for word in drawn[end - count : end])
        for end, count in zip(ends, words, strict=True)
    ]


def trained(vocab: int, seed: int) -> str:
    """A byte-level BPE with at most *vocab* tokens, trained on such documents, as JSON.

    Raises ValueError where *vocab* has no room for the 256 bytes, and ImportError, in one line,
    where the package tokenizers is missing.
    """
    if vocab < BYTES:
        raise ValueError(f"vocabulary of {vocab}: a byte-level BPE needs {BYTES} tokens or more")
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError("the paper's code needs the package tokenizers") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab, VOCAB),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents([500] * 100, seed), trainer)
    return str(tokenizer.to_str())


def tokenised(tokenizer: str, texts: Sequence[str], lengths: Sequence[int]) -> list[Ids]:
    """Each text as int32 ids, cut off after its length; one text after another, on one thread."""
    from tokenizers import Tokenizer

    encode = Tokenizer.from_str(tokenizer).encode
    return [
        np.asarray(encode(text).ids[:length], dtype=np.int32)
        for text, length in zip(texts, lengths, strict=True)
    ]


def tokenise(
    tokenizer: str, texts: Sequence[str], lengths: Sequence[int], connection: Connection
) -> None:
    """The life of a tokenising process: tokenise, hand the ids over, leave."""
    connection.send(tokenised(tokenizer, texts, lengths))


def _lexicon(stream: np.random.Generator) -> list[str]:
    """Words by falling frequency: the frequent ones are short."""
    sizes = np.minimum(1 + np.arange(WORDS) // 60, 1 + stream.integers(1, 5, WORDS))
    picks = stream.integers(0, len(_SYLLABLES), (WORDS, 5))
    return [
        "".join(_SYLLABLES[pick] for pick in row[:size])
        for row, size in zip(picks, sizes, strict=True)
    ]
