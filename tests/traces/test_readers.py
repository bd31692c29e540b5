"""The readers: five formats, by content; each fault in one line; never another exception."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitwiser.traces import FORMATS, Trace, read_trace, sniff

DATA = Path(__file__).parents[2].parent / "shared" / "data"

AZURE = (
    b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    b"2023-11-16 18:15:46.6805900,374,44\r\n"
    b"2023-11-16 18:15:50.9951690,396,109"
)
MOONCAKE = (
    b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
    b'{"timestamp": 27, "input_length": 700, "output_length": 6, "hash_ids": [0, 2]}\n'
)
BAILIAN = (
    b'{"chat_id": 7, "parent_chat_id": -1, "timestamp": 1.5, "input_length": 20, '
    b'"output_length": 3, "type": "text", "turn": 1, "hash_ids": [4, 5]}\n'
    b'{"chat_id": 9, "parent_chat_id": 7, "timestamp": 2.25, "input_length": 33, '
    b'"output_length": 4, "type": "text", "turn": 2, "hash_ids": [4, 5, 6]}\n'
)
BURSTGPT = (
    b"Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
    b"Log Type\n"
    b"5,,1,ChatGPT,472,18,490,API log\n"
    b"45,12,2,GPT-4,87,0,87,Conversation log\n"
    b"50,12,3,GPT-4,10,20,30,Conversation log\n"
)
LENGTHS = b"num_prefill_tokens,num_decode_tokens,num_total_tokens\n3772,54,3826\n2015,156,2171\n"

VALID = {
    "azure": AZURE,
    "mooncake": MOONCAKE,
    "bailian": BAILIAN,
    "burstgpt": BURSTGPT,
    "lengths": LENGTHS,
}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "trace"
    path.write_bytes(data)
    return path


def error(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path: Path, name: str) -> None:
    """Each format is known by its content, and naming it changes nothing."""
    path = written(tmp_path, VALID[name])
    assert sniff(path) == name
    told, found = read_trace(path, format=name), read_trace(path)
    assert told.arrival.tolist() == found.arrival.tolist()
    assert found.arrival[0] == 0.0
    assert f"read as {name}" in found.notes


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "dress",
    [
        gzip.compress,
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
        lambda data: data.rstrip(),
        lambda data: b"\n" + data + b"\n\n",
    ],
    ids=["gzip", "bom", "crlf", "no final newline", "blank lines"],
)
def test_dress(tmp_path: Path, name: str, dress) -> None:  # type: ignore[no-untyped-def]
    """Gzip, a byte order mark, CRLF, blank lines or a lost last newline change nothing."""
    plain = read_trace(written(tmp_path, VALID[name]))
    dressed = read_trace(written(tmp_path, dress(VALID[name])))
    assert dressed.arrival.tolist() == plain.arrival.tolist()
    assert dressed.prompt_tokens.tolist() == plain.prompt_tokens.tolist()
    assert dressed.output_tokens.tolist() == plain.output_tokens.tolist()


def test_azure_times(tmp_path: Path) -> None:
    """Seven digits of a second are kept, with and without a time zone."""
    naive = read_trace(written(tmp_path, AZURE))
    zoned = AZURE.replace(b"0,374", b"0+00:00,374").replace(b"0,396", b"1+00:00,396")
    assert naive.arrival.tolist() == [0.0, 4.314579]
    assert read_trace(written(tmp_path, zoned)).arrival.tolist() == [0.0, 4.3145791]


def test_bailian_sessions(tmp_path: Path) -> None:
    """A chat belongs to its root's session; blocks have 16 tokens."""
    read = read_trace(written(tmp_path, BAILIAN))
    assert read.session is not None and read.session.tolist() == [7, 7]
    assert read.prefix is not None and read.prefix.block_tokens == 16
    assert read.prefix.row(1).tolist() == [4, 5, 6]
    assert read.prefix_hit_share == pytest.approx(32 / 53)


def test_burstgpt_failures(tmp_path: Path) -> None:
    """Requests without response tokens are dropped, counted, and said."""
    read = read_trace(written(tmp_path, BURSTGPT))
    assert read.prompt_tokens.tolist() == [472, 10]
    assert read.arrival.tolist() == [0.0, 45.0]
    assert read.session is not None and read.session.tolist() == [-1, 0]
    assert any("dropped 1 " in note for note in read.notes)


def test_lengths_arrivals(tmp_path: Path) -> None:
    """Without arrived_at all requests arrive at 0, and that is said; with it they do not."""
    bare = read_trace(written(tmp_path, LENGTHS))
    assert not bare.arrival.any() and any("no arrival" in note for note in bare.notes)
    timed = LENGTHS.replace(b"num_total_tokens", b"arrived_at")
    assert read_trace(written(tmp_path, timed)).arrival.tolist() == [0.0, 1655.0]


def test_unsorted(tmp_path: Path) -> None:
    """Rows out of order are sorted with all their columns, and that is said."""
    rows = MOONCAKE.splitlines(keepends=True)
    read = read_trace(written(tmp_path, b"".join(reversed(rows))))
    assert read.prompt_tokens.tolist() == [600, 700]
    assert read.prefix is not None and read.prefix.row(1).tolist() == [0, 2]
    assert any("sorted" in note and "2 rows" in note for note in read.notes)
    ordered = read_trace(written(tmp_path, MOONCAKE))
    assert not any("sorted" in note for note in ordered.notes)


def rounded(count: int = 3000) -> bytes:
    rng = random.Random(0)
    stamps = sorted(rng.randrange(200) * 3000 for _ in range(count))
    row = b'{"timestamp": %d, "input_length": %d, "output_length": 1}\n'
    return b"".join(row % (stamp, number + 1) for number, stamp in enumerate(stamps))


def test_mooncake_spread(tmp_path: Path) -> None:
    """Stamps rounded to 3 s are spread within their bins in the order of the rows, by seed."""
    path = written(tmp_path, rounded())
    raw, spread = read_trace(path, spread=False), read_trace(path)
    assert raw.gap_cv is not None and raw.gap_cv > 3
    assert spread.gap_cv == pytest.approx(1.0, abs=0.08)
    assert any("spread" in note for note in spread.notes)
    assert spread.prompt_tokens.tolist() == raw.prompt_tokens.tolist()
    shift = spread.arrival - raw.arrival
    assert shift.max() - shift.min() <= 3
    assert read_trace(path).arrival.tobytes() == spread.arrival.tobytes()
    assert read_trace(path, seed=1).arrival.tobytes() != spread.arrival.tobytes()


@pytest.mark.parametrize("stamps", [(0, 0, 0), (0, 3000, 6000), (0, 3000, 3100)])
def test_not_rounded(tmp_path: Path, stamps: tuple[int, ...]) -> None:
    """Stamps that show no rounding (all at once, one per bin, off the grid) stay as they are."""
    row = b'{"timestamp": %d, "input_length": 1, "output_length": 1}\n'
    read = read_trace(written(tmp_path, b"".join(row % stamp for stamp in stamps)))
    assert read.arrival.tolist() == [stamp / 1000 for stamp in stamps]


LINE = b"2023-11-16 18:15:51,%s\n"
OBJECT = b'{"timestamp": 1, "input_length": %s, "output_length": 3%s}\n'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty"]),
        (b" \n\n", ["empty"]),
        (AZURE[:41], ["no rows"]),
        (AZURE + b"\n" + LINE % b"NaN,4", ["line 4", "ContextTokens", "'NaN'", "whole number"]),
        (AZURE + b"\n" + LINE % b"3,-4", ["line 4", "GeneratedTokens", "'-4'"]),
        (AZURE + b"\n\n" + LINE % b"0,4", ["line 5", "ContextTokens", "'0'"]),
        (AZURE + b"\n" + LINE % b"99999999999,4", ["line 4", "'99999999999'", "10000000"]),
        (AZURE + b"\n" + LINE % b"3.5,4", ["line 4", "'3.5'"]),
        (AZURE + b"\n" + LINE % b"3", ["line 4", "GeneratedTokens", "''"]),
        (AZURE + b"\n" + LINE % b"3,4,5", ["line 4", "4 cells"]),
        (AZURE + b"\nyesterday,3,4", ["line 4", "TIMESTAMP", "'yesterday'", "ISO 8601"]),
        (AZURE + b"\n2023,3,4", ["line 4", "TIMESTAMP", "'2023'"]),
        (AZURE + b"\n2063-11-16 18:15:51,3,4", ["line 4", "TIMESTAMP", "ten years"]),
        (AZURE + b"\ncaf\xe9,3,4", ["line 4", "0xe9", "UTF-8"]),
        (AZURE.replace(b"GeneratedT", b"GenratedT"), ["no column 'GeneratedTokens'", "Genrated"]),
        (LENGTHS.replace(b"3772", b"inf"), ["line 2", "num_prefill_tokens", "'inf'"]),
        (BURSTGPT.replace(b"5,,1", b"-5,,1"), ["line 2", "Timestamp", "'-5'"]),
        (BURSTGPT.replace(b",18,", b",0,").replace(b",20,", b",0,"), ["nothing is left"]),
        (b"a,b\n1,2\n", ["line 1", "'a,b'", "ContextTokens"]),
        (b"\x00\x01PAR1", ["line 1", "0x00"]),
        (gzip.compress(AZURE)[:-6], ["broken gzip"]),
        (MOONCAKE + b"[1, 2]\n", ["line 3", "[1, 2]", "not a JSON object"]),
        (b"[]", ["line 1", "array"]),
        (MOONCAKE + b"{oops\n", ["line 3", "'{oops'"]),
        (MOONCAKE + b'{"timestamp": 1}', ["line 3", "'input_length'"]),
        (MOONCAKE + OBJECT % (b'"4"', b""), ["line 3", "input_length", "'4'", "a number"]),
        (MOONCAKE + OBJECT % (b"true", b""), ["line 3", "input_length", "True"]),
        (MOONCAKE + OBJECT % (b"NaN", b""), ["line 3", "input_length", "nan"]),
        (MOONCAKE + OBJECT % (b"-4", b""), ["line 3", "input_length", "-4"]),
        (MOONCAKE + OBJECT % (b"1" * 400, b""), ["line 3", "input_length", "111"]),
        (MOONCAKE + OBJECT % (b"1" * 5000, b""), ["line 3", "not a JSON object"]),
        (MOONCAKE + OBJECT % (b"4", b', "hash_ids": ["a"]'), ["line 3", "hash_ids", "['a']"]),
        (MOONCAKE + OBJECT % (b"4", b', "hash_ids": 0'), ["line 3", "hash_ids", "0"]),
        (MOONCAKE + OBJECT % (b"4", b', "hash_ids": [%d]' % 2**70), ["line 3", "64-bit"]),
        (MOONCAKE + OBJECT % (b"4", b', "hash_ids": [1, 2]'), ["line 3", "hash_ids", "2"]),
        (MOONCAKE + OBJECT % (b"4", b', "session_id": [1]'), ["line 3", "session_id", "[1]"]),
        (BAILIAN.replace(b'"chat_id": 9', b'"chat_id": "x"'), ["line 2", "chat_id", "'x'"]),
        (b'{"a":' + b"[" * 100_000, ["line 1", "not a JSON object"]),
    ],
)
def test_bad_input(tmp_path: Path, data: bytes, words: list[str]) -> None:
    """A fault is one line that names file, line, column, value and what is accepted."""
    path = written(tmp_path, data)
    message = error(path)
    assert str(path) in message
    assert all(word in message for word in words), message


def test_no_file(tmp_path: Path) -> None:
    """A directory, an absent file and an unknown format are refused by name."""
    assert "directory" in error(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="did you mean azure"):
        read_trace(written(tmp_path, AZURE), format="azur")


def holds(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        read = read_trace(path)
    except ValueError as caught:
        assert "\n" not in str(caught) and str(path) in str(caught)
    else:
        assert isinstance(read, Trace) and len(read) >= 1


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_fuzz_garbage(tmp_path: Path, data: bytes) -> None:
    """Any bytes are a trace or one line of error."""
    holds(tmp_path / "trace", data)


SPOILERS = (
    b'nan 1e400 " , - null 99999999999999999999 [] {} 0001-01-01 9999-12-31 1e5 0x1F _1'.split()
)
SPOILERS += [b"\r", b"\n", b" ", b"\xef\xbb\xbf", b"\x1f\x8b", b"\0"]


@FUZZ
@given(
    name=st.sampled_from(sorted(VALID)),
    cuts=st.lists(
        st.tuples(
            st.integers(0, 400),
            st.integers(0, 12),
            st.binary(max_size=6) | st.sampled_from(SPOILERS),
        ),
        min_size=1,
        max_size=4,
    ),
    packed=st.booleans(),
)
def test_fuzz_mutants(
    tmp_path: Path, name: str, cuts: list[tuple[int, int, bytes]], packed: bool
) -> None:
    """A valid file with bytes replaced, plain or gzipped, is a trace or one line of error."""
    data = VALID[name]
    for start, length, put in cuts:
        data = data[:start] + put + data[start + length :]
    holds(tmp_path / "trace", gzip.compress(data) if packed else data)


@FUZZ
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(1, 9999), st.integers(1, 9999)), min_size=1
    )
)
def test_lengths_round_trip(tmp_path: Path, rows: list[tuple[int, int, int]]) -> None:
    """What a CSV says is what the trace holds, sorted by time and from 0."""
    body = "".join(f"{time},{prompt},{output}\n" for time, prompt, output in rows)
    (tmp_path / "t").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + body)
    read = read_trace(tmp_path / "t")
    ordered = sorted(rows, key=lambda row: row[0])
    assert read.arrival.tolist() == [row[0] - ordered[0][0] for row in ordered]
    assert read.prompt_tokens.tolist() == [row[1] for row in ordered]
    assert read.output_tokens.tolist() == [row[2] for row in ordered]


@pytest.mark.parametrize(
    ("file", "requests", "name", "prompt_mean"),
    [
        ("traces/AzureLLMInferenceTrace_conv.csv", 19_366, "azure", 1154.7),
        ("traces/mooncake_conversation_head20min.jsonl", 3_658, "mooncake", 13_403.1),
        (
            "lengths/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
            28_257,
            "lengths",
            2588.1,
        ),
    ],
)
def test_public_files(file: str, requests: int, name: str, prompt_mean: float) -> None:
    """The public files are read whole, with the statistics they are known by."""
    if not (DATA / file).exists():
        pytest.skip(f"no {DATA / file}")
    read = read_trace(DATA / file)
    assert (len(read), sniff(DATA / file)) == (requests, name)
    assert read.prompt_tokens.mean() == pytest.approx(prompt_mean, abs=0.1)
    if name == "mooncake":
        assert read.gap_cv == pytest.approx(1.01, abs=0.03)
        assert np.isclose(read.prefix_hit_share or 0, 0.3234, atol=1e-3)
