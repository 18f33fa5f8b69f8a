"""Routed models saved and loaded: the same bits, in this process, another one, and for Trainer; and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MixtralForCausalLM

from coterie import __version__
from coterie.errors import CheckpointError
from coterie.models import RouterSpec, calibrate, config_of, find_sites, open_checkpoint, route, set_curves
from coterie.models.compat import quiet
from coterie.models.convert import experts_from
from coterie.models.curves import cost_of, cost_text
from coterie.models.requests import RouteOptions
from coterie.models.stored import FORMAT
from coterie.routers import PRESETS
from coterie.testing.checkpoints import save_tiny, tiny_model
from coterie.testing.families import tiny_family

OPTIONS = {"group_limited": {"num_groups": 4, "keep_groups": 2}}
SPECS = [
    *(RouterSpec(name, OPTIONS.get(name, {})) for name in PRESETS), RouterSpec("adamoe", {"null": "identity"}),
    RouterSpec("rmoe", {"cell": "lstm", "projector": "shared", "residual": 0.5}),
    RouterSpec("top_k", {"capacity": 1.5}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_bars():
    with quiet():
        yield


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids, use_cache=False).logits


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A directory of a family's own, by dtype: models cast in memory have their rotary tables cast too."""
    made = {}

    def make(dtype):
        if dtype not in made:
            made[dtype] = save_tiny(
                tmp_path_factory.mktemp("stock"), "mixtral", dtype=dtype, layers=3, k=3, tokenizer=False
            )
        return made[dtype]

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_is_saved_loads_with_the_same_bits(spec, dtype, stock, tmp_path, prompt):
    model = AutoModelForCausalLM.from_pretrained(stock(dtype))
    route(model, spec)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.dtype == dtype
    assert torch.equal(logits(loaded, prompt), logits(model, prompt))
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert config_of(loaded) == config_of(model)


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoe", "qwen3_vl_moe"])
def test_families(family, tmp_path):
    from coterie.models.compat import auto_class

    model, ids = tiny_family(family), torch.randint(2, 60, (2, 9))
    route(model, RouterSpec("adamoe"))
    model.save_pretrained(tmp_path)
    loaded = auto_class(model.config).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert {site.name for site in open_checkpoint(tmp_path).sites} == {site.name for site in find_sites(model)}


def test_the_files_say_what_is_needed_and_no_more(tmp_path):
    model = tiny_model("mixtral")
    route(model, RouterSpec("rmoe", {"state": 16}))
    set_curves(model, {"k": [[1, 2.31], [2, 2.11]], "measure": "bits per byte"})
    model.save_pretrained(tmp_path)
    config, stored = (json.loads((tmp_path / name).read_text()) for name in ("config.json", "coterie.json"))
    assert (config["model_type"], config["base_model_type"]) == ("coterie", "mixtral")
    assert config["num_local_experts"] == 8
    assert "coterie" not in config
    assert (stored["format"], stored["coterie"]) == (1, __version__)
    assert (stored["router"]["name"], stored["router"]["options"]["state"]) == ("rmoe", 16)
    assert stored["curves"]["measure"] == "bits per byte"
    assert stored["base"]["score"] == "softmax"
    names = open_checkpoint(tmp_path).ranges
    assert sum("recurrence" in name for name in names) == 4  # the cell that all layers share, once
    assert any(name.endswith("block_sparse_moe.experts.0.w1.weight") for name in names)  # as the family has them
    assert not any("inner" in name for name in names)


def test_plain_transformers_refuses_it(tmp_path):
    model = tiny_model("mixtral")
    route(model, RouterSpec("top_k"))
    model.save_pretrained(tmp_path)
    code = (
        "import sys, transformers\n"
        "try:\n    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "except ValueError as error:\n    print('coterie' in str(error))"
    )
    assert run(code, tmp_path) == "True"


def test_a_fresh_process_loads_it(tmp_path, prompt):
    model = tiny_model("olmoe", layers=3)
    route(model, RouterSpec("rmoe"))
    model.save_pretrained(tmp_path)
    torch.save({"ids": prompt, "logits": logits(model, prompt)}, tmp_path / "seen.pt")
    code = (
        "import sys, torch, transformers, coterie.models\n"
        "transformers.utils.logging.disable_progress_bar()\n"
        "seen = torch.load(sys.argv[1] + '/seen.pt')\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad():\n    found = model(seen['ids'], use_cache=False).logits\n"
        "print(torch.equal(found, seen['logits']))"
    )
    assert run(code, tmp_path) == "True"


def run(code, path):
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_what_was_trained_is_saved_and_the_class_loads_it(tmp_path, prompt):
    """As Trainer does: a state dict is handed to save_pretrained, and the class of the model reads it back."""
    model = tiny_model("mixtral")
    route(model, RouterSpec("adamoe", {"null": "identity"}))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()(prompt, labels=prompt).loss.backward()
    optimiser.step()
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    fresh = tiny_model("mixtral")
    route(fresh, RouterSpec("adamoe", {"null": "identity"}))
    assert not torch.equal(logits(fresh, prompt), logits(model, prompt))
    fresh.load_state_dict(type(fresh).from_pretrained(tmp_path, dtype=fresh.dtype).state_dict())
    assert torch.equal(logits(fresh, prompt), logits(model, prompt))


def test_a_calibrated_threshold_and_its_curve_survive(tmp_path):
    model, ids = tiny_model("olmoe"), torch.randint(2, 300, (4, 32))
    route(model, RouterSpec("top_p"))
    value = calibrate(model, ids, 1.5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for site in find_sites(loaded):
        assert site.gate.inner.select.value == value
        assert site.gate.inner.select.stored_curve() is not None


def test_a_second_save_leaves_nothing_of_the_first(tmp_path, prompt):
    model = tiny_model("mixtral")
    route(model, RouterSpec("top_k"))
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path, max_shard_size=50_000)
    assert (tmp_path / "model.safetensors.index.json").exists()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json", "coterie.json", "generation_config.json", "model.safetensors", "notes.txt",
    ]  # fmt: skip
    assert logits(AutoModelForCausalLM.from_pretrained(tmp_path), prompt).abs().max() == 0


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    model = tiny_model("mixtral")
    route(model, RouterSpec("top_k"))
    model.save_pretrained(tmp_path / "model")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("coterie.models.routed_class.write_stored", full)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(tmp_path / "model")
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_config_alone_makes_a_routed_model(prompt):
    model = tiny_model("mixtral")
    route(model, RouterSpec("adamoe", {"null": "identity"}))
    fresh = AutoModelForCausalLM.from_config(model.config)
    assert type(fresh) is type(model)
    assert logits(fresh, prompt).isfinite().all()
    assert fresh.config.to_dict() == model.config.to_dict()
    assert type(model.config).from_dict(model.config.to_dict()).model_type == "mixtral"


def test_the_plain_class_warns_that_gates_are_missing(tmp_path, caplog):
    """Nothing can keep a class named by hand from opening any directory, but it does not do so silently."""
    model = tiny_model("mixtral")
    route(model, RouterSpec("top_k"))
    model.save_pretrained(tmp_path)
    _, found = MixtralForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert any(name.endswith("gate.weight") for name in found["missing_keys"])


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """``broken(file, change)``: a routed checkpoint, one of its JSON tables changed."""
    model = tiny_model("mixtral")
    route(model, RouterSpec("rmoe"))
    model.save_pretrained(tmp_path)

    def change(file, how):
        table = json.loads((tmp_path / file).read_text())
        how(table)
        (tmp_path / file).write_text(json.dumps(table))
        return tmp_path

    return change


def refused(path, match):
    for load in (AutoModelForCausalLM.from_pretrained, open_checkpoint):
        with pytest.raises(CheckpointError, match=match):
            load(path)


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(table):
        for name in path:
            table = table[name]
        table[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: table.pop("format"), r"coterie.json does not say its format. Copy it again"),
        (put("format", FORMAT + 1), rf"has format {FORMAT + 1}, written by .*reads up to {FORMAT}\. Type: pip"),
        (lambda table: table.pop("router"), r"the field 'router' is missing. Copy the file again"),
        (lambda table: table.pop("curves"), r"the field 'curves' is missing"),
        (lambda table: table["router"].pop("options"), r"the field 'options' is missing"),
        (put("router", "name", 3), r"the field 'name' is 3"),
        (put("router", "name", "warp"), r"routes by 'warp', which Coterie .* does not know; it has: .*top_k"),
        (put("router", "options", "cel", "gru"), r"cannot be built: .*no option 'cel'. Did you mean 'cell'"),
        (put("router", "options", "k", 99), r"cannot be built: .*"),
        (put("curves", "k", [1]), r"the curve 'k' must be pairs of numbers.*Measure them again"),
        (put("router", "options", "state", 64), r"score.projector. is \[128, 32\], config.json makes it \[64, 32\]"),
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit(change, match, broken):
    refused(broken("coterie.json", change), match)


def test_a_missing_description(broken):
    path = broken("config.json", lambda table: None)
    (path / "coterie.json").unlink()
    refused(path, "lacks coterie.json, which says how its model routes. Copy it")


def test_a_damaged_description(broken):
    path = broken("config.json", lambda table: None)
    (path / "coterie.json").write_text('{"format": 1, "rou')
    refused(path, r"coterie.json cannot be read: .* Copy or download it again")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: table.pop("base_model_type"), "has no base_model_type: it names the family"),
        (put("base_model_type", "mixtrl"), "'mixtrl', which is not known here"),
    ],
)
def test_a_config_that_does_not_say_its_family(change, match, broken):
    refused(broken("config.json", change), match)
    with pytest.raises(CheckpointError, match=match):
        AutoConfig.from_pretrained(broken("config.json", lambda table: None))


@pytest.mark.parametrize("how", ["missing", "shape"])
def test_a_router_tensor_that_is_not_there_or_unlike(how, tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny_model("mixtral")
    route(model, RouterSpec("rmoe"))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("score.readout.weight"))
    tensor = tensors.pop(name)
    if how == "shape":
        tensors[name] = tensor[:5].contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, r"readout\.weight")


# -- curves --------------------------------------------------------------------------------------------------------


def test_costs_are_read_off_the_curve():
    curves = {"k": [[8, 1.81], [4, 1.93]], "p": [[0.2, 2.0], [0.4, 1.8]], "measure": "bits per byte"}
    assert cost_of(curves["k"], 4) == (1.93, True)
    assert cost_of(curves["k"], 6) == (pytest.approx(1.87), False)
    assert cost_of(curves["k"], 9) is None
    assert cost_text(curves, RouteOptions(k=4), {"k": 8}) == "--k 4: 1.93 bits per byte against 1.81 with 8"
    assert cost_text(curves, RouteOptions(p=0.3), {}) == "--p 0.3: about 1.90 bits per byte"
    assert cost_text(curves, RouteOptions(k=8), {"k": 8}) == "--k 8: 1.81 bits per byte"
    assert cost_text(curves, RouteOptions(k=16), {"k": 8}) == ""
    assert cost_text({}, RouteOptions(k=4), {}) == ""


def test_bridges_show_their_weights_by_the_familys_names():
    model = tiny_model("mixtral")
    experts = find_sites(model)[0].experts
    expected = experts.gate_up_proj
    route(model, RouterSpec("adamoe", {"null": "identity"}))
    bridge = find_sites(model)[0].experts
    assert bridge.gate_up_proj is expected
    assert model.get_parameter("model.layers.0.mlp.experts.down_proj") is experts_from(experts).down_proj
    with pytest.raises(AttributeError):
        bridge.up_proj  # noqa: B018 (asking is the test)
