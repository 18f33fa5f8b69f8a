"""Whatever lies in a directory, the doctor has a line for it and never faints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from coterie.errors import CheckpointError, OptionError
from coterie.jobs.checking import checkup_checkpoint, checkup_machine
from coterie.jobs.checking.checkup_checkpoint import CheckpointCheckup
from coterie.jobs.checking.doctor import doctor
from coterie.jobs.checking.findings import Diagnosis, State, carefully, ok, problem, warning
from coterie.jobs.running import budget
from coterie.store.measure import Speed
from coterie.store.place import Place
from coterie.store.processor import Processor
from coterie.testing.checkpoints import save_tiny

OK, WARNING, PROBLEM = State.OK, State.WARNING, State.PROBLEM
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("doctor") / "tiny", "olmoe", shards=3)


@pytest.fixture
def sick(whole, tmp_path):
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "sick")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Any disk is as fast as this one."""
    monkeypatch.setattr(checkup_checkpoint, "disk_speed", lambda blobs: Speed(1e9, "made up"))


def look(path, **options):
    """The findings about a directory by check; the machine is left out."""
    checkup = CheckpointCheckup(path, lambda text: None)
    checks = checkup.checks(checksum=options.get("checksum", False), values=options.get("values", False))
    found = [finding for name, check in checks.items() for finding in carefully(name, check)]
    return {finding.check: finding for finding in found}, Diagnosis(tuple(found))


def config(path):
    return path / "config.json"


def edit_index(path, change):
    table = json.loads((path / INDEX).read_text())
    change(table)
    (path / INDEX).write_text(json.dumps(table))


def shards(path):
    return sorted(path.glob("*.safetensors"))


def cut(path):
    with shards(path)[0].open("r+b") as file:
        file.truncate(file.seek(0, 2) - 8)


def lengthen(path):
    with shards(path)[0].open("ab") as file:
        file.write(b"behind")


def drop_tensor(path):
    """From shard and index alike: only the model itself misses it."""
    weights = load_file(shards(path)[0])
    name = next(iter(weights))
    del weights[name]
    save_file(weights, shards(path)[0], metadata={"format": "pt"})
    edit_index(path, lambda table: table["weight_map"].pop(name))


def poison(path):
    weights = load_file(shards(path)[1])
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, shards(path)[1], metadata={"format": "pt"})


def stray(path):
    shutil.copy(shards(path)[0], path / "consolidated.safetensors")


BROKEN = {
    "no config": (lambda path: config(path).unlink(), "config", PROBLEM, 3, "no config.json"),
    "a config that is no JSON": (lambda path: config(path).write_text("{"), "config", PROBLEM, 3, "config.json"),
    "a config that is a list": (lambda path: config(path).write_text("[]"), "config", PROBLEM, 3, "no table"),
    "no weights": (lambda path: [file.unlink() for file in shards(path)], "shards", PROBLEM, 3, "no safetensors"),
    "a shard cut short": (cut, "shards", PROBLEM, 3, "truncated"),
    "a shard with a tail": (lengthen, "shards", WARNING, 0, "6 bytes behind"),
    "an empty shard": (lambda path: shards(path)[0].write_bytes(b""), "shards", PROBLEM, 3, "0 bytes"),
    "a shard that is missing": (lambda path: shards(path)[0].unlink(), "index", PROBLEM, 3, "is missing"),
    "an index that is no JSON": (lambda path: (path / INDEX).write_text("no"), "index", PROBLEM, 3, "cannot be read"),
    "an index without a map": (lambda path: (path / INDEX).write_text("{}"), "index", PROBLEM, 3, "weight_map"),
    "no index": (lambda path: (path / INDEX).unlink(), "index", PROBLEM, 3, "neither"),
    "an index that names too much": (
        lambda path: edit_index(path, lambda t: t["weight_map"].update({"ghost": shards(path)[0].name})),
        "index", PROBLEM, 3, "ghost is in no shard",
    ),
    "an index that names too little": (
        lambda path: edit_index(path, lambda t: t["weight_map"].pop("model.norm.weight")), "index", WARNING, 0, "norm",
    ),
    "a tensor too few": (drop_tensor, "tensors", PROBLEM, 3, "download"),
    "another family": (
        lambda path: config(path).write_text('{"model_type": "llama"}'), "tensors", PROBLEM, 3, "different models",
    ),
    "no tokenizer": (lambda path: [f.unlink() for f in path.glob("token*")], "tokenizer", WARNING, 0, "no tokenizer"),
    "one more file": (stray, "index", OK, 0, "not read: consolidated.safetensors"),
}  # fmt: skip


def test_a_whole_checkpoint_is_well(whole):
    found, diagnosis = look(whole, checksum=True, values=True)
    assert [finding.state for finding in found.values() if finding.check != "disk"] == [OK] * 9
    assert diagnosis.exit_code == 0
    assert "none is missing" in found["tensors"].text
    assert "nothing to compare" in found["checksums"].text


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named(kind, sick):
    breaking, check, state, code, words = BROKEN[kind]
    breaking(sick)
    found, diagnosis = look(sick)
    assert found[check].state is state, found[check]
    assert words in found[check].text, found[check]
    assert found[check].exit_code == code
    assert diagnosis.exit_code == code or state is not PROBLEM
    assert "could not be checked" not in diagnosis.describe()


def test_one_broken_thing_hides_no_other(sick):
    (sick / "config.json").write_text("{")
    cut(sick)
    found, _ = look(sick)
    assert {name for name, finding in found.items() if finding.state is PROBLEM} >= {"config", "shards"}


def test_values_that_are_no_numbers(sick):
    poison(sick)
    found, diagnosis = look(sick, values=True)
    assert "NaN" in found["values"].text
    assert diagnosis.exit_code == 3
    assert "values" not in look(sick)[0]


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("kind", ["a cache of the hub", "a download to a directory"])
def test_checksums_that_the_hub_gave(kind, right, sick, tmp_path):
    shard = shards(sick)[0]
    digest = hashlib.sha256(shard.read_bytes()).hexdigest() if right else "0" * 64
    if kind == "a cache of the hub":
        blob = shard.rename(tmp_path / digest)
        shard.symlink_to(blob)
    else:
        note = sick / ".cache" / "huggingface" / "download" / f"{shard.name}.metadata"
        note.parent.mkdir(parents=True)
        note.write_text(f"commit\n{digest}\n1700000000.0\n")
    found, diagnosis = look(sick, checksum=True)
    assert found["checksums"].state is (OK if right else PROBLEM)
    assert diagnosis.exit_code == (0 if right else 3)
    assert ("1 known" in found["checksums"].text) is right


GARBAGE = st.dictionaries(
    st.sampled_from(["config.json", INDEX, "model.safetensors", "a.safetensors", "tokenizer.json", "notes.txt"]),
    st.one_of(
        st.binary(max_size=64),
        st.sampled_from([b"{}", b"[]", b"null", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"\xff\xfe", None]),
        st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x) | st.dictionaries(
            st.sampled_from(["model_type", "weight_map", "num_experts"]), x), max_leaves=6,
        ).map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=40).map(lambda data: len(data).to_bytes(8, "little") + data),
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(files=GARBAGE)
def test_a_directory_of_garbage(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("garbage")
    for name, data in files.items():
        if data is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(data)
    found, diagnosis = look(path, checksum=True, values=True)
    assert diagnosis.exit_code in (3, 4)
    assert {"config", "disk"} <= set(found)


def test_what_two_checks_meet_is_told_once(sick):
    config(sick).write_text("{")
    texts = [finding.text for finding in doctor(sick).findings if finding.state is PROBLEM]
    assert len(texts) == len(set(texts)) == 1


def test_a_model_that_is_nowhere(tmp_path):
    found = doctor(tmp_path / "nowhere").findings[-1]
    assert (found.check, found.state, found.exit_code) == ("model", PROBLEM, 3)


def test_a_file_in_place_of_a_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    assert doctor(tmp_path / "file").exit_code == 3


def test_a_loop_of_links(tmp_path):
    os.symlink(tmp_path / "model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert look(tmp_path)[1].exit_code in (3, 4)


# ---- the disk


@pytest.mark.parametrize(
    ("place", "state"), [(Place("ext4", 1, 2), OK), (Place("nfs4", 1, 2), WARNING), (Place("tmpfs", 1, 2), WARNING)]
)
def test_where_it_lies(place, state, whole, monkeypatch):
    monkeypatch.setattr(checkup_checkpoint, "place_of", lambda path: place)
    found = look(whole)[0]["disk"]
    assert found.state is state
    assert bool(found.remedy) == (state is WARNING)


@pytest.mark.parametrize(("bandwidth", "state"), [(1e9, OK), (5e7, WARNING)])
def test_a_slow_disk(bandwidth, state, whole, monkeypatch):
    monkeypatch.setattr(checkup_checkpoint, "disk_speed", lambda blobs: Speed(bandwidth, "made up"))
    assert look(whole)[0]["disk speed"].state is state


@pytest.mark.parametrize(
    ("machine", "free", "state"), [(2**20, 2**20, PROBLEM), (2**40, 2**20, WARNING), (2**40, 2**40, OK)]
)
def test_a_model_too_large(machine, free, state, whole, monkeypatch):
    monkeypatch.setattr(checkup_checkpoint, "machine_memory", lambda: machine)
    monkeypatch.setattr(budget, "default_memory", lambda: free)
    found = look(whole)[0]["fits"]
    assert found.state is state
    assert "floor" in found.text


# ---- the machine


def machine():
    """Findings by check."""
    found = [one for name, check in checkup_machine.machine_checks().items() for one in carefully(name, check)]
    return {finding.check: finding for finding in found}


def test_this_machine_can_be_looked_at():
    found = machine()
    assert set(found) == {*checkup_machine.machine_checks(), "torch.compile"}
    assert found["libraries"].state is OK
    assert found["python"].state is OK
    assert not any("could not be checked" in finding.text for finding in found.values())


def test_libraries_that_are_old_or_absent(monkeypatch):
    versions = {"torch": "1.0", "numpy": None}
    monkeypatch.setattr(checkup_machine, "_version", lambda name: versions.get(name, "9999"))
    found = machine()["libraries"]
    assert found.state is PROBLEM
    assert found.exit_code == 4
    assert "torch 1.0" in found.text
    assert "numpy is not installed" in found.text
    assert found.remedy.startswith("pip install")
    assert "'torch>=" in found.remedy


def test_an_old_python(monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.8.1")
    assert machine()["python"].state is PROBLEM


@pytest.mark.parametrize(
    ("affinity", "quota", "threads", "environment", "state"),
    [
        (4, None, 4, {}, OK),
        (4, 2.0, 4, {}, WARNING),
        (2, None, 8, {"OMP_NUM_THREADS": "8"}, WARNING),
        (4, None, 1, {"OMP_NUM_THREADS": "1"}, WARNING),
        (4, None, 4, {"MKL_NUM_THREADS": "many"}, WARNING),
    ],
)
def test_threads(affinity, quota, threads, environment, state, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(checkup_machine, "processor", lambda: Processor("x", ("AVX2",), 8, affinity, quota))
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    found = machine()["threads"]
    assert found.state is state, found
    assert bool(found.remedy) == (state is WARNING)


def test_a_processor_without_vectors(monkeypatch):
    monkeypatch.setattr(checkup_machine, "processor", lambda: Processor("old", (), 1, 1, None))
    assert machine()["processor"].state is WARNING


def test_no_kernel(monkeypatch):
    monkeypatch.setattr(checkup_machine, "kernel_problem", lambda: "There is no C compiler.")
    found = machine()["compiler"]
    assert found.state is WARNING
    assert "no C compiler" in found.text
    assert found.remedy


@pytest.mark.parametrize(("compiler", "words"), [("/nowhere/c++", "would lack"), ("true", "would find")])
def test_torch_compile_is_told_and_not_needed(compiler, words, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    found = machine()["torch.compile"]
    assert found.state is OK
    assert words in found.text


def test_little_memory_and_much_swap(monkeypatch):
    monkeypatch.setattr(checkup_machine, "available_memory", lambda: 2**20)
    monkeypatch.setattr(checkup_machine, "swap_memory", lambda: (2**30, 2**29))
    monkeypatch.setattr(checkup_machine, "memory_limit", lambda: 2**31)
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    found = machine()
    assert found["memory"].state is WARNING
    assert "2.00 GiB" in found["memory"].text
    assert found["swap"].state is WARNING
    assert found["load"].state is WARNING


def test_tight_limits(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (64, 64))
    found = machine()["limits"]
    assert found.state is WARNING
    assert "ulimit -n allows 64" in found.text


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert machine()["hub"].state is WARNING


# ---- the list


def test_the_first_problem_gives_the_code():
    found = Diagnosis(
        (ok("a", "fine"), warning("b", "slow", "hurry"), problem("c", "bad", exit_code=4), problem("d", "x"))
    )
    assert found.exit_code == 4
    assert found.as_record()["problems"] == 2
    text = found.describe().splitlines()
    assert text[1].startswith("warning  b")
    assert text[2].split() == ["->", "hurry"]
    assert text[-1] == "1 ok, 1 warning, 2 problems"
    assert Diagnosis(()).exit_code == 0


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (CheckpointError("gone"), PROBLEM, 3),
        (OptionError("no"), PROBLEM, 2),
        (MemoryError(), PROBLEM, 5),
        (ZeroDivisionError("by\nzero"), WARNING, 0),
        (RecursionError(), WARNING, 0),
    ],
)
def test_an_error_is_a_finding(error, state, code):
    def faint():
        raise error

    (found,) = carefully("it", faint)
    assert (found.state, found.exit_code) == (state, code)
    assert "\n" not in found.text
