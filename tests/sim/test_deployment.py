"""Deployments: their presets, their TOML files, and what is refused."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.models.sharing import sharing_for
from splitwiser.sim import deployment as keys
from splitwiser.sim.deployment import PRESETS, Deployment, Workers, chunked, continuous
from splitwiser.sim.deployment_file import deployment, parse_deployment, read_deployment, to_toml
from splitwiser.sim.deployment_schema import MAX_PROCESSES, DeploymentTable, WorkersTable
from splitwiser.sim.physics import Physics

SPLIT = """
sharing = "mps"                 # exclusive | time_slice | mps | streams | green_contexts
weights = "shared"              # shared (one copy, CUDA IPC) | per_process
gpu_memory_utilization = 0.9
block_size = 16
[[workers]]
phase = "prefill"               # prefill | decode | both
processes = 1
sm_percent = 75                 # omitted = no limit
max_num_batched_tokens = 8192
[[workers]]
phase = "decode"
processes = 1
sm_percent = 25
max_num_seqs = 256
"""


def parse(text: str) -> Deployment:
    return parse_deployment(text, name="file", place="file.toml")


def complaint(text: str) -> str:
    """The one line with which *text* is refused."""
    with pytest.raises(ValueError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.isprintable(), "an error is one line"
    assert message.startswith("file.toml")
    return message


def worker(line: str) -> str:
    return f"[[workers]]\n{line}\n"


# What a file says ---------------------------------------------------------------------------------


def test_a_file_says_what_its_keys_say() -> None:
    """Every key of the file stands in the deployment, and what is left out is the default."""
    made = parse(SPLIT)
    assert made == Deployment(
        "file",
        (
            Workers(phase="prefill", sm_percent=75),
            Workers(phase="decode", sm_percent=25, max_num_seqs=256),
        ),
        sharing="mps",
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_name_and_survives_toml(name: str) -> None:
    """A preset written as TOML and read back is the same preset."""
    preset = deployment(name.upper())
    assert preset == PRESETS[name]()
    assert parse(to_toml(preset)) == preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_decode_has_priority_where_it_has_workers_of_its_own(name: str) -> None:
    """The law of a simulated GPU is that with priorities for splits, and that without for engines."""
    made = deployment(name)
    assert made.decode_first == any(group.phase == "decode" for group in made.workers)
    profile = profile_for("h200")
    law = Physics.of(made, llm("facebook/opt-125m"), gpu("h200"), profile).sharing
    assert law is sharing_for(made.sharing, profile, decode_first=made.decode_first)


@pytest.mark.parametrize(
    ("sharing", "prefill", "decode"), [("mps", 98, 32), ("green_contexts", 100, 32)]
)
def test_a_step_costs_what_it_does_on_the_sms_that_are_granted(
    sharing: str, prefill: int, decode: int
) -> None:
    """75 and 25 % of an H200 are the whole groups of SMs that it grants, in the simulation too."""
    made = replace(parse(SPLIT), sharing=sharing)
    profile, model = profile_for("h200"), llm("meta-llama/Llama-3.1-8B")
    costs = Physics.of(made, model, gpu("h200"), profile).costs
    for group, sms in zip(made.workers, (prefill, decode), strict=True):
        share = sms / gpu("h200").sms
        exact = CostModel(model, gpu("h200"), profile, sm_share=share, sharing=sharing)
        assert costs(group).step(512, 1, 131_328, 512) == exact.step(512, 1, 131_328, 512)


def one_of(*values: str) -> st.SearchStrategy[str]:
    return st.sampled_from(values)


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    """Any valid deployment of whole engines."""
    sharing = draw(one_of("time_slice", "mps", "streams"))
    group = Workers(
        processes=draw(st.integers(1, MAX_PROCESSES)),
        sm_percent=draw(st.none() | st.floats(1, 100)) if sharing == "mps" else None,
        scheduler=draw(one_of(*keys.SCHEDULERS)),
        max_num_seqs=draw(st.integers(1, 4096)),
    )
    return Deployment(
        draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)),
        (group,) * draw(st.integers(1, 3)),
        sharing=sharing,
        gpu_memory_utilization=draw(st.floats(0, 1, exclude_min=True)),
        num_gpu_blocks=draw(st.none() | st.integers(1, 10**6)),
        enforce_eager=draw(st.booleans()),
        start=draw(one_of(*keys.START)),
        startup_s=draw(st.none() | st.floats(0, 1e5)),
    )


@given(deployments())
def test_toml_is_a_round_trip(made: Deployment) -> None:
    """Any deployment written as TOML, whatever its name, reads back equal."""
    assert parse(to_toml(made)) == made


def test_the_schema_has_every_key() -> None:
    """What a file may say is what a deployment has: no key more, none less."""
    assert set(DeploymentTable.model_fields) == {field.name for field in fields(Deployment)}
    assert set(WorkersTable.model_fields) == {field.name for field in fields(Workers)}


def test_the_name_is_the_file_s(tmp_path: Path) -> None:
    """A file without the key `name` gives its own name to the deployment."""
    file = tmp_path / "two-engines.toml"
    file.write_text(worker('phase = "both"'))
    assert deployment(str(file)).name == "two-engines"
    file.write_text('name = "mine"\n' + worker('phase = "both"'))
    assert read_deployment(file).name == "mine"


# What is refused ----------------------------------------------------------------------------------


def test_every_fault_is_told_at_once() -> None:
    """One line names the key path, the value and what is accepted, for each of several faults."""
    message = complaint(
        'sharing = "msp"\nweigths = "shared"\n'
        + worker('phase = "both"')
        + worker('phase = "prefil"\nprocesses = 0\nsm_percent = true')
    )
    for part in (
        "sharing is 'msp'; accepted: exclusive, time_slice, mps",
        "weigths is not a key here (did you mean weights?)",
        "workers[1].phase is 'prefil'; accepted: prefill, decode, both (did you mean prefill?)",
        "workers[1].processes is 0",
        "workers[1].sm_percent is True",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "workers is missing"),
        ("workers = []", "workers is []"),
        ("workers = 1", "workers is 1"),
        ('sharing = "mps\n', "line 1"),
        ("a = 1\nb = = 2\n", "line 2"),
        (worker('phase = "prefill"'), "no decode worker"),
        (worker('phase = "decode"'), "no prefill worker"),
        (worker("sm_percent = 0"), "workers[0].sm_percent is 0"),
        (worker("sm_percent = 101"), "workers[0].sm_percent is 101"),
        (worker("sm_percent = 50"), 'needs sharing = "mps" or "green_contexts"'),
        (worker("sm_percent = nan"), "finite"),
        (worker("processes = 1.5"), "workers[0].processes is 1.5"),
        (worker("processes = 1000000000000"), f"less than or equal to {MAX_PROCESSES}"),
        (worker("processes = 2"), "exclusive"),
        ("gpu_memory_utilization = 90\n" + worker(""), "less than or equal to 1"),
        ("block_size = -16\n" + worker(""), "block_size is -16"),
        ("startup_s = inf\n" + worker(""), "startup_s is inf"),
        ("x = " + "[" * 5000, "not TOML"),
        ("x = " + "1" * 5000, "not TOML"),
        (
            'sharing = "green_contexts"\n' + worker("sm_percent = 60\nprocesses = 2"),
            "at most 100 %",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line(text: str, told: str) -> None:
    """What is wrong, and where, stands in the one line of the error."""
    assert told in complaint(text)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("splitt", "did you mean split?"),
        ("no/such.toml", "no deployment file at no/such.toml"),
        ("nothing.toml", "no deployment file at nothing.toml"),
        ("\0", "unknown deployment"),
        ("\0.toml", "cannot be read"),
        ("", "directory"),
        ("a" * 5000, "unknown deployment"),
    ],
)
def test_a_name_that_is_neither_preset_nor_file_is_refused(name: str, told: str) -> None:
    """An unknown preset offers the nearest; an absent file is said to be absent."""
    with pytest.raises((ValueError, FileNotFoundError), match=r"\A.*\Z") as caught:
        deployment(name)
    assert told in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A directory and bytes that are not UTF-8 are refused in one line."""
    with pytest.raises(ValueError, match=r"\A.* is a directory; .*\Z"):
        deployment(str(tmp_path))
    binary = tmp_path / "x.toml"
    binary.write_bytes(b"a = '\xff'")
    with pytest.raises(ValueError, match=r"\A.*byte 5 is not UTF-8.*\Z"):
        deployment(binary)


VALUES = st.one_of(
    st.integers(),
    st.booleans(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda s: f"{s!r}"),
    st.sampled_from(['"mps"', '"both"', '"prefill"', "[]", "{}", "[[1]]", "1979-05-27"]),
)
NAMES = st.sampled_from([*DeploymentTable.model_fields, *WorkersTable.model_fields, "x", ""])
LINES = st.one_of(
    st.just("[[workers]]"),
    st.tuples(NAMES, VALUES).map(lambda pair: f"{pair[0]} = {str(pair[1]).lower()}"),
    st.text(max_size=12),
)


@given(st.lists(LINES, max_size=12).map("\n".join))
def test_any_text_is_a_deployment_or_refused_in_one_line(text: str) -> None:
    """No text raises anything but a ValueError of one line; what is accepted is valid TOML."""
    try:
        made = parse(text)
    except ValueError as error:
        assert str(error).isprintable()
    else:
        tomllib.loads(text)
        assert parse(to_toml(made)) == made


def test_every_key_is_documented() -> None:
    """docs/deployments.md has a row for every key that a TOML file may hold."""
    text = (Path(__file__).parents[2] / "docs" / "deployments.md").read_text("utf-8")
    for kind in (Deployment, Workers):
        for key in fields(kind):
            if key.name != "workers":
                assert f"| `{key.name}` |" in text, key.name


def test_scheduling_ahead_is_for_chunked_engines_with_lines_of_their_own() -> None:
    """Where it would have no meaning it is refused, with what is accepted."""
    ahead = replace(chunked(), async_scheduling=True)
    assert ahead.as_dict()["async_scheduling"] is True
    with pytest.raises(ValueError, match=r'async_scheduling needs workers\.scheduler = "chunked"'):
        replace(continuous(), async_scheduling=True)
    with pytest.raises(ValueError, match=r'async_scheduling needs routing = "round_robin"'):
        replace(
            ahead,
            workers=(replace(ahead.workers[0], processes=2),),
            sharing="mps",
            routing="shared_queue",
        )
