"""`splitwiser llms`: the models of the catalogue, or of a `config.json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import App

from splitwiser.cli.console import print_json, print_pairs, print_table
from splitwiser.cli.options import Flag
from splitwiser.models.catalogue import catalogue, llm
from splitwiser.models.llm import Llm

app = App(name="llms")
GIB = 2**30


@app.default
def describe(name: str | None = None, /, *, json: Annotated[bool, Flag] = False) -> None:
    """List the models, or describe one: its shape and memory.

    Parameters
    ----------
    name
        A model of the catalogue, or the path of a config.json. Without it, all are listed.
    json
        Print one JSON object.
    """
    if json:
        print_json(
            _facts(llm(name)) if name else {"llms": [_facts(model) for model in catalogue()]}
        )
    elif name:
        print_pairs(_shape(llm(name)))
    else:
        print_table(
            ("name", ">parameters", ">active", ">weights", ">KV/token", ">context"),
            (
                (
                    model.name,
                    f"{model.parameters / 1e9:.2f} B",
                    f"{model.active_parameters / 1e9:.2f} B",
                    f"{model.weight_bytes / GIB:.2f} GiB",
                    f"{model.kv_bytes_per_token / 1024:.0f} KiB",
                    model.max_context,
                )
                for model in catalogue()
            ),
        )


def _facts(model: Llm) -> dict[str, Any]:
    return {
        **asdict(model),
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "weight_bytes": model.weight_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
    }


def _shape(model: Llm) -> list[tuple[str, str]]:
    experts = f", {model.experts_per_token} of {model.experts} experts" if model.experts > 1 else ""
    window = f", window {model.sliding_window}" if model.sliding_window else ""
    return [
        ("name", model.name),
        ("family", model.family),
        ("layers", f"{model.layers}"),
        ("hidden", f"{model.hidden}, intermediate {model.intermediate}{experts}"),
        ("heads", f"{model.heads} of {model.head_dim}, {model.kv_heads} for keys and values"),
        ("vocabulary", f"{model.vocab}{', tied embeddings' if model.tied_embeddings else ''}"),
        ("context", f"{model.max_context} tokens{window}"),
        ("parameters", f"{model.parameters:,}"),
        ("active", f"{model.active_parameters:,} (that one token computes with)"),
        ("weights", f"{model.weight_bytes / GIB:.2f} GiB in {model.dtype}"),
        ("KV cache", f"{model.kv_bytes_per_token:,} bytes per token"),
    ]
