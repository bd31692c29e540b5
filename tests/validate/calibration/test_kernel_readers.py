"""Reading tables of kernel times: formats, faults, odd bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.validate.calibration.kernel_formats import FORMATS
from splitwiser.validate.calibration.kernel_readers import read_kernels
from splitwiser.validate.calibration.kernel_table import COLUMNS

DATA = Path(__file__).parents[4] / "shared" / "data" / "measured"
MODEL = llm("meta-llama/Llama-3.1-8B")
measured = pytest.mark.skipif(not DATA.is_dir(), reason="no measurements in ../shared/data")


def gemms(**columns: Any) -> pd.DataFrame:
    """Return a table of eight GEMMs of our own format, some columns replaced."""
    rows = [2**i for i in range(8)]
    frame = pd.DataFrame({"m": rows, "n": 4096, "k": 1024, "seconds": [1e-5 * m for m in rows]})
    return frame.assign(**columns)


def attention(op: str, **columns: Any) -> pd.DataFrame:
    """Return eight rows of an aiconfigurator attention table, some columns replaced."""
    frame = pd.DataFrame(
        {
            "framework": "VLLM",
            "version": "0.14.0",
            "device": "NVIDIA A100",
            "op_name": op,
            "batch_size": [2**i for i in range(8)],
            "isl": 512,
            "num_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "attn_dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16",
            "step": 3,
            "latency": [0.1 * 2**i for i in range(8)],
        }
    )
    return frame.assign(**columns)


def test_own_columns_are_read_as_they_are(tmp_path: Path) -> None:
    """A CSV with the columns of a kind is that kind, in seconds."""
    gemms().to_csv(tmp_path / "gemm.csv", index=False)
    table = read_kernels(tmp_path / "gemm.csv")
    assert list(table["gemm"]["seconds"]) == [1e-5 * 2**i for i in range(8)]
    assert table["decode_attention"].empty


def test_configured_tables_are_milliseconds_and_their_step_is_the_context_before(
    tmp_path: Path,
) -> None:
    """aiconfigurator's decode row at step 3 attends four tokens; its times are milliseconds."""
    attention("generation_attention").to_parquet(tmp_path / "generation.parquet")
    attention("context_attention", step=0).to_parquet(tmp_path / "context.parquet")
    table = read_kernels(tmp_path)
    assert set(table["decode_attention"]["context"]) == {4.0}
    assert table["decode_attention"]["seconds"].iloc[0] == pytest.approx(1e-4)
    assert set(table["prompt_attention"]["new"]) == {512}
    assert set(table["prompt_attention"]["cached"]) == {0}
    assert table.provenance["device"] == "NVIDIA A100"


def test_rows_of_another_dtype_are_left_out(tmp_path: Path) -> None:
    """A table of two KV-cache dtypes gives the rows of the one that is asked for."""
    both = [attention("generation_attention"), attention("generation_attention", latency=0.001)]
    both[1]["kv_cache_dtype"] = "fp8"
    pd.concat(both).to_parquet(tmp_path / "generation.parquet")
    assert read_kernels(tmp_path)["decode_attention"]["seconds"].min() == pytest.approx(1e-4)


def test_rows_of_one_kernel_become_their_median(tmp_path: Path) -> None:
    """Repeats within a factor of two are one kernel."""
    frame = pd.concat([gemms(), gemms().assign(seconds=lambda rows: rows["seconds"] * 1.5)])
    frame.to_csv(tmp_path / "gemm.csv", index=False)
    assert read_kernels(tmp_path)["gemm"]["seconds"].iloc[0] == pytest.approx(1.25e-5)


def test_a_profile_of_layers_has_the_shapes_of_its_model(tmp_path: Path) -> None:
    """LLMServingSim names layers; their sizes are the model's."""
    pd.DataFrame(
        {"layer": ["qkv_proj"] * 8 + ["act_fn"] * 8, "tokens": [*range(1, 9)] * 2, "time_us": 5.0}
    ).to_csv(tmp_path / "dense.csv", index=False)
    table = read_kernels(tmp_path, llm=MODEL)
    assert (table["gemm"][["n", "k"]] == [6144, 4096]).to_numpy().all()
    assert table["elementwise"]["bytes"].iloc[0] == 3 * 14_336 * 2
    with pytest.raises(ValueError, match=r"dense.csv: a profile of named layers needs the model"):
        read_kernels(tmp_path)


def misread(frame: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """Return a frame whose fourth row has other values."""
    frame = frame.astype(object)
    for name, value in columns.items():
        frame.loc[3, name] = value
    return frame


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: misread(gemms(), m=float("nan")), "line 5: m is nan; expected a number"),
        (lambda: misread(gemms(), seconds=0.0), "line 5: seconds is 0.0"),
        (lambda: misread(gemms(), seconds=-1e-5), "line 5: seconds is -1e-05"),
        (lambda: misread(gemms(), n="wide"), "line 5: n is wide"),
        (lambda: misread(gemms(), k=float("inf")), "line 5: k is inf"),
        (lambda: gemms().head(7), "7 rows of gemm; at least 8"),
        (lambda: gemms().drop(columns="k"), "columns m, n, seconds are no table of kernels"),
        (
            lambda: pd.concat([gemms(), gemms(seconds=1.0)]),
            r"line 10: 1 s, but another row of the same kernel takes less than half",
        ),
    ],
)
def test_a_faulty_table_is_refused_in_one_line(
    make: Callable[[], pd.DataFrame], message: str, tmp_path: Path
) -> None:
    """File, line and column of the fault are in the message."""
    make().to_csv(tmp_path / "gemm.csv", index=False)
    with pytest.raises(ValueError, match=message) as refusal:
        read_kernels(tmp_path / "gemm.csv")
    assert "gemm.csv" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_absent_and_empty_places_are_named(tmp_path: Path) -> None:
    """Nothing there, nothing in it, nothing of this dtype, and no parquet behind the name."""
    with pytest.raises(FileNotFoundError, match="no kernel times at"):
        read_kernels(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no .csv or .parquet file"):
        read_kernels(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"cannot read .*x.parquet"):
        read_kernels(tmp_path)
    attention("generation_attention", attn_dtype="fp8").to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x.parquet: no rows whose attn_dtype is bfloat16"):
        read_kernels(tmp_path)


HEADS = st.sampled_from([",".join(columns) for columns in FORMATS])


@given(head=HEADS, content=st.binary(max_size=120) | st.text("0123456789.,-e\nabn", max_size=120))
@settings(max_examples=150, deadline=None)
def test_any_bytes_give_a_table_or_one_line(
    head: str, content: bytes | str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever follows the header of a format, the reader returns a table or a ValueError."""
    path = tmp_path_factory.mktemp("kernels") / "table.csv"
    body = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(head.encode() + b"\n" + body)
    try:
        table = read_kernels(path, llm=MODEL)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all((frame["seconds"] > 0).all() for frame in table.frames.values())


@measured
@pytest.mark.parametrize(
    ("folder", "rows"),
    [
        ("op_tables/a100_sxm", {"gemm": 9240, "prompt_attention": 5049, "decode_attention": 5431}),
        ("op_tables/l40s", {"gemm": 9240, "prompt_attention": 5049, "decode_attention": 5432}),
        (
            "llmservingsim_profile_RTXPRO6000_Llama-3.1-8B",
            {
                "gemm": 648,
                "prompt_attention": 233,
                "decode_attention": 171,
                "mixed_attention": 18_960,
                "elementwise": 496,
            },
        ),
    ],
)
def test_the_public_tables_are_read_whole(folder: str, rows: dict[str, int]) -> None:
    """Every distinct kernel of the public tables is there, and no other kind."""
    table = read_kernels(DATA / folder, llm=MODEL)
    assert {kind: len(table[kind]) for kind in COLUMNS if len(table[kind])} == rows
