import pytest
import torch

from coterie.errors import OptionError
from coterie.routing import RoutePlan, Routing
from coterie.store import PREDICTORS, Key, Noisy, Oracle, Predictor
from coterie.store.predict import NextLayerGate, PreviousStep

SITES = ("a", "b", "c")


class Always(Predictor):
    """Foresees the same keys after every layer."""

    def __init__(self, keys):
        self.keys = keys

    def after(self, site, needed, x=None):
        return self.keys


def test_registry_makes_each():
    gates = {site: lambda x: torch.zeros(1, 1, dtype=torch.int64) for site in SITES}
    for name in PREDICTORS:
        predictor = PREDICTORS.get(name)(SITES, gates)
        assert all(isinstance(key, Key) for key in predictor.after("a", [1], torch.zeros(1, 2)))
    assert PREDICTORS.get("none")(SITES, {}).after("a", [1]) == []
    with pytest.raises(OptionError, match="previous-step"):
        PREDICTORS.get("previous_step")


def test_previous_step_repeats_the_next_layers():
    predictor = PreviousStep(SITES, ahead=1)
    assert predictor.after("a", [1]) == predictor.after("b", [2, 3]) == predictor.after("c", [4])[1:] == []
    assert predictor.after("a", [5]) == [Key("b", 2), Key("b", 3)]
    assert predictor.after("b", [6]) == [Key("c", 4)]
    assert predictor.after("c", []) == [Key("a", 5)]
    assert predictor.after("a", [7]) == [Key("b", 6)]


def test_looking_far_ahead_never_reaches_oneself():
    predictor = PreviousStep(SITES, ahead=9)
    for site in SITES:
        predictor.after(site, [0])
    assert [key.site for key in predictor.after("b", [1])] == ["c", "a"]


def test_next_gate_orders_by_votes():
    gates = {"b": lambda x: x.long(), "a": lambda x: x.long() + 1}
    predictor = NextLayerGate(SITES, gates)
    x = torch.tensor([[3.0, 1.0], [1.0, 2.0], [1.0, 3.0]], requires_grad=True)
    assert predictor.after("a", [0], x) == [Key("b", 1), Key("b", 3), Key("b", 2)]
    assert predictor.after("b", [0], x) == []  # c has no gate
    assert predictor.after("c", [0], x)[0] == Key("a", 2)
    assert predictor.after("a", [0]) == []


def test_next_gate_of_a_single_site_looks_at_nothing():
    assert NextLayerGate(("a",), {}).after("a", [0], torch.zeros(1, 1)) == []


STEPS = [{"a": [1], "b": [2]}, {"a": [3], "b": [4, 5]}]


def test_oracle_tells_what_comes():
    oracle = Oracle(STEPS, ("a", "b"), ahead=1)
    said = [oracle.after(site, []) for _ in STEPS for site in ("a", "b")]
    assert said == [[Key("b", 2)], [Key("a", 3)], [Key("b", 4), Key("b", 5)], []]


def test_oracle_of_whole_steps_speaks_at_their_ends():
    oracle = Oracle(STEPS, ("a", "b"), ahead=None)
    said = [oracle.after(site, []) for _ in STEPS for site in ("a", "b")]
    assert said == [[], [Key("a", 3), Key("b", 4), Key("b", 5)], [], []]


def test_oracle_reads_a_plan():
    def routing(experts):
        indices = torch.tensor(experts)
        return Routing.from_padded(torch.ones(indices.shape), indices, 8)

    plan = RoutePlan({"a": routing([[1, 2], [2, 3], [4, 5]]), "b": routing([[0, 1], [0, 2], [6, 7]])})
    oracle = Oracle.from_plan(plan, lengths=[2, 1])
    assert oracle.after("a", []) == [Key("b", 0), Key("b", 1), Key("b", 2)]
    assert oracle.after("b", []) == [Key("a", 4), Key("a", 5)]
    assert [key.expert for key in Oracle.from_plan(plan).after("a", [])] == [0, 1]
    with pytest.raises(OptionError, match="one per forward"):
        Oracle.from_plan(plan, lengths=[1])


@pytest.mark.parametrize(("recall", "precision"), [(1.0, 1.0), (0.9, 0.5), (0.5, 0.8), (0.0, 1.0)])
def test_noise_has_the_recall_and_precision_asked_for(recall, precision):
    right = {Key("a", expert) for expert in range(1000, 1400)}
    said = Noisy(Always(sorted(right)), 1000, recall=recall, precision=precision, seed=1).after("a", [])
    hits = len(right & set(said))
    assert hits / 400 == pytest.approx(recall, abs=0.05)
    assert len(said) == 0 if recall == 0 else hits / len(said) == pytest.approx(precision, abs=0.1)
    assert len(said) == len(set(said))


@pytest.mark.parametrize("options", [{"recall": 1.5, "precision": 1}, {"recall": 1, "precision": 0}])
def test_impossible_noise_is_refused(options):
    with pytest.raises(OptionError, match="recall must be"):
        Noisy(Always([]), 4, **options)
