"""Specs, what they stand for, and a run as one file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import guidekit as gk
from guidekit.jobs import execute as running, folder, job, names as sources
from guidekit.jobs.config import Config
from guidekit.jobs.specs import ConfigError, find, literal, parse, parse_options, rooted
from guidekit.jobs.watched import Watched
from guidekit.report import table as comparison
from rewards import dna, molecules, transforms

MODEL = """
import torch
import guidekit as gk

def load(shift=0.0):
    return gk.analytic.GaussianMixture([0.7, 0.3], [[-1.0 + shift, 0.0], [2.0, 1.0]], [0.5, 0.4])

def score(samples):
    return samples[:, 0]

class Above:
    def __init__(self, edge):
        self.edge = edge
    def __call__(self, samples):
        return (samples[:, 0] > self.edge).double()

def labelled():
    return gk.analytic.GaussianMixture([0.7, 0.3], [[-1.0, 0.0], [2.0, 1.0]], [0.5, 0.4], labels=[0, 1])

def chains():
    letters = lambda x: ["".join("CNOF"[v] for v in row) for row in x.tolist()]
    return gk.MaskedModel(lambda x, t, c: torch.zeros(*x.shape, 4), vocab_size=4, length=4, decode=letters)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A file of the user's, in the working directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(MODEL)
    return file


# specs ---------------------------------------------------------------------------------------------------------------


def test_a_number_behind_a_reward_is_its_weight_and_behind_a_guide_an_option():
    assert parse("sa:0.5", ["SA"], weights=True).weight == 0.5
    assert parse("sa:0.5", ["SA"], weights=True).args == ()
    assert parse("cfg:3", ["CFG"]).args == (3,)
    assert parse("cfg:3", ["CFG"]).weight is None


def test_options_stand_behind_a_colon_or_in_brackets():
    for text in ("cell_type(HepG2, oracle=dna-judge):-2", "cell_type:HepG2,oracle=dna-judge:-2"):
        spec = parse(text, ["CellType"], weights=True)
        assert (spec.args, spec.options, spec.weight) == (("HepG2",), {"oracle": "dna-judge"}, -2.0)


def test_smiles_are_texts_also_with_brackets_and_quotes():
    aspirin = "CC(=O)Oc1ccccc1C(=O)O"
    assert parse(f"similarity:{aspirin}:0.5", ["Similarity"], weights=True).args == (aspirin,)
    assert parse("substructure('C=C,N')", ["Substructure"], weights=True).args == ("C=C,N",)
    assert parse("substructure([OH:1])", ["Substructure"], weights=True).args == ("[OH:1]",)


def test_values_are_literals_and_nothing_is_evaluated(tmp_path):
    assert [literal(v) for v in ("1", "1e-3", "true", "none", "[1, 2]", "HepG2", "'1'")] == [
        1, 0.001, True, None, [1, 2], "HepG2", "1",
    ]  # fmt: skip
    file = tmp_path / "made"
    hostile = f"__import__('pathlib').Path({str(file)!r}).touch()"
    assert literal(hostile) == hostile
    assert literal("(" * 5000) == "(" * 5000
    with pytest.raises(ConfigError):
        sources.make_guide(f"cfg:scale={hostile}", None)
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a name is needed"),
        ("svdd:candidates=(1", "not closed"),
        ("svdd:alpha='x", "not closed"),
        ("svdd:alpha=1,alpha=2", "given twice"),
        ("svdd:alpha=1,2", "follows a named option"),
        ("svdd:,", "empty"),
        ("svdd!", "cannot read '!'"),
        ("svdd(alpha=1):beta=2", "not a weight"),
        ("9", "a name must come first"),
        ("x" * 20_000, "a name is needed"),
    ],
)
def test_a_spec_that_cannot_be_read_says_where(text, said):
    with pytest.raises(ConfigError, match=said):
        parse(text, ["SVDD"])


def test_names_do_not_mind_case_and_underscores_and_the_nearest_is_told():
    known = list(sources.guides())
    assert find("fk_steering", known, "guide") == find("FKSTEERING", known, "guide") == "FKSteering"
    with pytest.raises(ConfigError, match="no guide 'fk'; did you mean 'FKSteering'"):
        find("fk", known, "guide")
    with pytest.raises(ConfigError, match="no guide 'sdvd'; did you mean 'SVDD'"):
        find("sdvd", known, "guide")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("svdd:candidates=2.5", "must be a whole number"),
        ("svdd:candidates=true", "must be a whole number"),
        ("svdd:candidtes=3", "did you mean 'candidates'"),
        ("svdd:candidates=0", "at least one child"),
        ("fk_steering", "needs alpha"),
        ("cfg:a", "must be a number or Callable"),
        ("apg:a", "must be a number or Callable"),
        ("cfg:1,0,3,4", r"takes at most 2 positional values \(scale, rescale\), and 4 were given"),
        ("tds:alpha=-1", "must be positive"),
        ("autoguidance:weak=dnaa,scale=2", "no model 'dnaa'; did you mean 'dna'"),
        ("dsearch:width=4", r"must be a tuple like \(4, 2\)"),
        ("start_from:x=none.py:x", "no such file"),
        ("svdd:value=there.is.none:x", "cannot be imported"),
    ],
)
def test_parse_options_a_guide_are_checked_against_its_signature(text, said):
    with pytest.raises(ConfigError, match=said):
        sources.make_guide(text, sources.total(sources.make_components(["gc"])))


def test_a_guide_gets_the_reward_of_the_run_or_its_own():
    reward = sources.total(sources.make_components(["gc"]))
    guide = sources.make_guide("svdd:0.5,4", reward)
    assert guide.reward is reward  # type: ignore[attr-defined]
    assert (guide.alpha, guide.candidates) == (0.5, 4)  # type: ignore[attr-defined]
    own = sources.make_guide("fk_steering:alpha=1,reward=homopolymer", reward)
    assert own.reward(["AAAT"]).tolist() == [-3.0]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="SVDD needs a reward"):
        sources.make_guide("svdd", None)


def test_every_guide_solver_and_search_of_the_library_has_a_name():
    from guidekit.guides.catalog import GUIDES

    named = {name.split(".")[0] for name in sources.guides()}
    assert named == set(GUIDES)
    assert isinstance(sources.make_guide("fkc.anneal:beta=1.5", None), gk.Guide)
    assert sources.make_solver("ddim:eta=0.5") == gk.solvers.DDIM(eta=0.5)
    assert {"random", "zero_order", "evolution", "cma", "paths", "gradient"} <= set(sources.strategies())
    assert not {"run", "bank", "gradients"} & set(sources.strategies())


# rewards -------------------------------------------------------------------------------------------------------------


def test_a_reward_counts_in_its_good_direction_with_its_weight():
    smiles = ["CCO", "CC(=O)Oc1ccccc1C(=O)O"]
    total = sources.total(sources.make_components(["qed", "sa:0.5", "alerts:2", "logp:-0.1"]))
    assert total is not None
    sa, alerts = molecules.SA()(smiles), molecules.Alerts()(smiles)
    expected = molecules.QED()(smiles) + 0.5 * (10 - sa) / 9 - 2 * alerts - 0.1 * molecules.LogP()(smiles)
    torch.testing.assert_close(total(smiles), expected)
    assert total.name == "QED + 0.5 (10 - SA)/9 - 2 BRENK alerts - 0.1 logP"


def test_weight_0_is_for_the_record_only():
    parts = sources.make_components(["gc", "homopolymer:0"])
    total = sources.total(parts)
    assert total is not None
    assert total(["AACC"]).tolist() == [0.5]
    assert [p.name for p in parts] == ["GC", "homopolymer"]
    assert sources.total(sources.make_components(["gc:0"])) is None


def test_transforms_come_behind_a_dot_and_say_themselves_what_is_good():
    (part,) = sources.make_components(["sa.reverse_sigmoid(2,5):3"])
    expected = molecules.SA().transformed(transforms.ReverseSigmoid(2, 5))
    torch.testing.assert_close(sources.good(part)(["CCO"]), expected(["CCO"]))
    assert part.weight == 3
    with pytest.raises(ConfigError, match="did you mean 'Sigmoid'"):
        sources.make_components(["sa.sigmod(2,5)"])


def test_a_file_without_a_name_is_told_what_is_in_it(mine):
    for text in ("mine.py", "mine.py:0.5", "mine.py(3)"):
        with pytest.raises(ConfigError, match=r"as mine\.py:NAME \(it defines load, score, Above, labelled, chains\)"):
            sources.make_components([text])
    with pytest.raises(ConfigError, match=r"as none\.py:NAME$"):
        sources.make_model("none.py")
    with pytest.raises(ConfigError, match=r"there is no 'scor' in mine\.py; did you mean 'score'"):
        sources.make_components(["mine.py:scor"])


def test_a_neighbour_that_our_packages_hide_is_named(mine):
    mine.with_name("rewards.py").write_text("def mine(samples):\n    return samples\n")
    mine.with_name("uses.py").write_text("from rewards import mine\n")
    with pytest.raises(ConfigError, match=r"rewards\.py has the name of a package of guidekit, so rename it"):
        sources.make_components(["uses.py:mine"])


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        (
            "fk",
            ["SVDD", "FKSteering", "FKC.cfg", "FKC.tilt", "FKC.anneal"],
            "did you mean 'FKSteering', 'FKC.cfg' or 'FKC.tilt'?",
        ),
        ("steering", ["SVDD", "FKSteering"], "did you mean 'FKSteering'?"),
        ("x", ["SVDD", "CFG"], "choose from SVDD, CFG"),
        ("x", ["low, low", "high"], "choose from 'low, low', 'high'"),
        ("zzzz", [f"n{i}" for i in range(20)], "`guidekit list` shows all"),
    ],
)
def test_what_may_be_meant_is_suggested(name, known, said):
    with pytest.raises(ConfigError) as caught:
        find(name, known, "thing")
    assert str(caught.value) == f"there is no thing {name!r}; {said}"


def test_names_of_conditions_are_quoted_for_they_hold_commas():
    with pytest.raises(ConfigError, match="none of 'low QED, low logP', 'low QED, middle logP', "):
        job.prepare(Config("molecules", cond=("drug",)))


def test_equal_names_of_columns_are_made_to_differ():
    names = [c.name for c in sources.make_components(["similarity(CCO)", "similarity(CCC):2", "qed"])]
    assert names == ["similarity(CCO)", "similarity(CCC)", "QED"]
    with pytest.raises(ConfigError, match="given twice"):
        sources.make_components(["qed", "qed:2"])


def test_bundled_classifiers_are_rewards_by_their_names():
    (cell,) = sources.make_components(["DNA_Judge:HepG2:2"])
    sequence = ["ACGTTGCA" * 25]
    torch.testing.assert_close(cell.raw(sequence), dna.CellType("HepG2", "dna-judge")(sequence))
    assert cell.weight == 2
    (bag,) = sources.make_components(["fashion-judge:bag"])
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = gk.zoo.network("fashion-judge")(x)
        torch.testing.assert_close(bag.raw(x).double(), logits.log_softmax(-1)[:, 8].double())
    with pytest.raises(ConfigError, match="did you mean 'HepG2'"):
        sources.make_components(["dna-judge:HepG"])
    with pytest.raises(ConfigError, match="needs a class"):
        sources.make_components(["dna-judge"])


@pytest.mark.skipif(not sources.clips(), reason="no CLIP is bundled")
def test_a_bundled_clip_is_a_reward_of_its_text():
    from rewards.images import ClipScore

    name = sources.clips()[0]
    (bag,) = sources.make_components([f"{name}:'a bag'"])
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, other = (ClipScore(f"a {v}", model=gk.zoo.clip(name))(x) for v in ("bag", "coat"))
        torch.testing.assert_close(bag.raw(x), expected)
    assert not torch.allclose(expected, other)


def test_a_reward_of_the_users_own_file(mine):
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    plain, above = sources.make_components(["mine.py:score:2", "mine.py:Above(edge=2)"])
    assert (plain.raw(x).tolist(), plain.weight) == ([1.0, 3.0], 2.0)
    assert above.raw(x).tolist() == [0.0, 1.0]
    for text, said in [("mine.py:nope", "no 'nope'"), ("none.py:x", "no such file"), ("mine.py:MODEL", "no 'MODEL'")]:
        with pytest.raises(ConfigError, match=said):
            sources.make_components([text])
    mine.with_name("beside_mine.py").write_text("def one(samples):\n    return [1.0] * len(samples)\n")
    mine.with_name("other.py").write_text("from beside_mine import one\n")
    assert sources.make_components(["other.py:one"])[0].raw(x).tolist() == [1.0, 1.0]
    mine.with_name("bad.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        sources.make_components(["bad.py:x"])


def test_a_reward_is_the_same_with_a_bar_and_without(monkeypatch, capsys):
    (part,) = sources.make_components(["qed"])
    before = part.raw(["CCO", "C"]).tolist()
    from guidekit.engine.describe import describe
    from guidekit.jobs import watched

    described = describe(part.raw)
    monkeypatch.setattr(Watched, "shown", True)
    monkeypatch.setattr(watched, "_DELAY", 0.0)
    assert part.raw(["CCO", "C"]).tolist() == before == molecules.QED()(["CCO", "C"]).tolist()
    assert describe(part.raw) == described != describe(sources.make_components(["logp"])[0].raw)
    assert "QED" in capsys.readouterr().err


# the file ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(tmp_path):
    odd = 'a "quote" \\ and é\n\t\x7f\x00'
    config = Config(
        odd, ("qed", odd), ("svdd:candidates=4",), 3, 7, -5, ("HepG2", 2), "ddim", "sa", "random", "rows=5", True, 4,
        "cpu", "dna",
    )  # fmt: skip
    assert Config.load(config.save(tmp_path / "run.toml")) == config
    assert Config.load(Config("dna").save(tmp_path / "short.toml")) == Config("dna")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'model' is missing"),
        ("modle = 'dna'", "no key 'modle'; did you mean 'model'"),
        ("model = 'dna'\nstep = 5", "did you mean 'steps'"),
        ("model = 'dna'\nsteps = 'a'", "steps must be a whole number of at least 1, not 'a'"),
        ("model = 'dna'\nn = 0", "n must be .* not 0"),
        ("model = 'dna'\nn = true", "n must be .* not True"),
        ("model = 'dna'\nguides = [1]", "guides must be a list of texts"),
        ("model = 'dna'\ncompare = 1", "compare must be true or false, not 1"),
        ("model = 'dna'\ncompare = true", "give a guide"),
        ("model = 'dna'\nbudget = 'rows=3'", "budget limits a search"),
        ("model = 'dna'\ndomain = 'cats'", "domain must be one of molecules"),
        ("model = 'dna'\nislands = 0", "islands must be a whole number of at least 1, not 0"),
        ("model = 'dna'\nexchange_every = 3", "exchange_every says how often islands meet: give islands"),
        ("model = 'dna'\nsearch = 'random'\nislands = 2", "a search has none"),
        ("model = ", "not a valid TOML file"),
        ("model = 3", "model must be a text, not 3"),
    ],
)
def test_a_file_that_is_wrong_says_which_key(tmp_path, text, said):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Config.load(file)


def test_python_files_are_looked_for_beside_the_config(tmp_path):
    (tmp_path / "run.toml").write_text("model = 'my model.py:load'\nguides = ['svdd:value=v.py:make,alpha=1']")
    found = Config.load(tmp_path / "run.toml")
    assert found.model == f"{tmp_path}/my model.py:load"
    assert found.guides == (f"svdd:value={tmp_path}/v.py:make,alpha=1",)
    assert found.rooted(Path("/elsewhere")) == found
    assert rooted("gc:0.5", tmp_path) == "gc:0.5"


def test_a_budget_is_checked_as_options_are():
    config = Config("dna", ("gc",), search="random", budget="rowz=5")
    with pytest.raises(ConfigError, match="did you mean 'rows'"):
        job.prepare(config)
    with pytest.raises(ConfigError, match="as name=value"):
        parse_options("5")


# running -------------------------------------------------------------------------------------------------------------


def test_a_run_of_a_config_is_the_same_call_in_python(mine):
    config = Config("mine.py:load", ("mine.py:score",), ("fk_steering:alpha=0.5",), n=8, steps=6, seed=3)
    found = config.run().result
    model = sources.make_model("mine.py:load")[0]
    expected = gk.sample(model, 8, steps=6, guides=[gk.FKSteering(lambda x: x[:, 0], 0.5)], seed=3)
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.log_weights, expected.log_weights)
    assert found.rewards is not None
    assert torch.equal(found.rewards, expected.x[:, 0].double())


def test_islands_of_a_config_are_those_of_python(mine):
    config = _config(n=8, guides=("fk_steering:alpha=2,ess=1",), islands=4)
    often, seldom = (replace(config, exchange_every=k).run().result for k in (2, None))
    given = {"steps": 5, "guides": [gk.FKSteering(lambda x: x[:, 0], 2.0, ess=1.0)]}
    for found, islands in ((often, gk.Islands(4, every=2)), (seldom, gk.Islands(4))):
        assert torch.equal(found.x, gk.sample(sources.make_model("mine.py:load")[0], 8, **given, islands=islands).x)
    assert not torch.equal(often.x, seldom.x)


def test_parse_options_a_model_reach_its_function(mine):
    near, far = (Config(f"mine.py:load(shift={s})", n=32, steps=8).run().result.x[:, 0].mean() for s in (0.0, 10.0))
    assert far - near > 5


def test_best_of_n_costs_about_what_the_run_costs(mine):
    config = Config("mine.py:load", ("mine.py:score",), ("svdd:candidates=3",), n=8, steps=10, compare=True)
    outcome = config.run()
    assert outcome.base is not None
    assert outcome.best_of_n is not None
    rows = [r.cost.network_rows for r in (outcome.result, outcome.base, outcome.best_of_n)]
    assert outcome.summary["best_of"] == round(rows[0] / rows[1]) == 3
    assert rows[2] == 3 * rows[1] == 240
    names = [row["name"] for row in outcome.summary["rows"]]
    assert names == ["unguided", "best of N", "steered"]
    assert "best of 3" in outcome.table
    means = [row["mean"] for row in outcome.summary["rows"]]
    assert means[0] < means[1]
    assert means[0] < means[2]
    assert means[1] == pytest.approx(float(outcome.best_of_n.x[:, 0].mean()))


def test_a_best_of_one_is_the_unguided_run_and_left_out(mine):
    """Feynman-Kac steering has as many network rows as the unguided model."""
    outcome = Config("mine.py:load", ("mine.py:score",), ("fk_steering:alpha=1",), n=4, steps=4, compare=True).run()
    assert [row["name"] for row in outcome.summary["rows"]] == ["unguided", "steered"]
    assert outcome.best_of_n is None and outcome.summary["best_of"] is None


def test_comparisons_keep_the_guides_that_only_bend_the_prediction(mine):
    config = Config(
        "mine.py:labelled", ("mine.py:score",), ("cfg:2", "svdd:candidates=3"), n=6, steps=5, cond=(1,), compare=True
    )
    outcome = config.run()
    model = sources.make_model("mine.py:labelled")[0]
    options = {"steps": 5, "cond": 1, "reward": lambda x: x[:, 0]}
    base = gk.sample(model, 6, guides=[gk.CFG(2)], **options)
    assert outcome.base is not None and outcome.best_of_n is not None
    assert torch.equal(outcome.base.x, base.x)
    assert not torch.equal(base.x, gk.sample(model, 6, **options).x)
    best = gk.sample(model, 6, guides=[gk.CFG(2), gk.BestOfN(options["reward"], 3)], **options)
    assert torch.equal(outcome.best_of_n.x, best.x)
    assert [row["name"] for row in outcome.summary["rows"]] == ["CFG only", "best of N", "steered"]


def test_a_run_of_bending_guides_alone_is_compared_with_the_model(mine):
    outcome = Config("mine.py:labelled", (), ("cfg:2", "apg:2"), n=4, steps=4, cond=(1,), compare=True).run()
    assert [row["name"] for row in outcome.summary["rows"]] == ["unguided", "steered"]
    assert outcome.base is not None and outcome.base.cost.network_rows == 4 * 4


@pytest.mark.parametrize(
    ("guides", "kept"),
    [
        (("cfg:2", "cads", "svdd"), ["CFG", "CADS"]),
        (("cfg:2", "pag:3", "svdd"), ["CFG", "PAG"]),
        (("cfg:scale=2,steer=true", "svdd"), []),
        (("start_from:x=mine.py:x", "svdd"), ["StartFrom"]),
        (("apg:2", "hallucination:alpha=1", "svdd"), ["APG"]),
        (("resample", "fkc.anneal:beta=1.5", "dps", "best_of_n:n=2"), []),
    ],
)
def test_what_comparisons_keep(mine, guides, kept):
    mine.write_text(MODEL + "\nx = torch.zeros(2)\n")
    reward = sources.total(sources.make_components(["mine.py:score"]))
    made = [sources.make_guide(text, reward) for text in guides]
    found = job.Job(Config("x"), None, None, [], reward, None, made, None, None)  # type: ignore[arg-type]
    assert [type(guide).__name__ for guide in found.kept] == kept


def test_guidance_without_a_condition_is_told_before_the_run(mine):
    told = []
    outcome = Config("mine.py:labelled", (), ("cfg:2",), n=4, steps=4).run(tell=told.append)
    assert len(told) == 1 and "CFG compares the model at its condition with the model without one" in told[0]
    assert outcome.summary["warnings"] == told
    plain = Config("mine.py:labelled", (), (), n=4, steps=4).run()
    assert torch.equal(outcome.result.x, plain.result.x)  # it says that nothing is changed
    assert outcome.result.cost.network_rows == 2 * plain.result.cost.network_rows
    for more in ({"cond": (1,)}, {"guides": ("cfg:1",)}, {"guides": ("compose:experts=1",)}):
        told.clear()
        Config("mine.py:labelled", **({"guides": ("cfg:2",), "n": 2, "steps": 3} | more)).run(tell=told.append)
        assert told == []


def test_a_search_of_a_config_is_that_of_python(mine):
    config = Config("mine.py:load", ("mine.py:score",), n=3, steps=5, search="random:candidates=4", budget="rounds=2")
    found = config.run().result
    expected = gk.search.random(
        sources.make_model("mine.py:load")[0], 3, lambda x: x[:, 0], rounds=2, candidates=4, steps=5
    )
    assert torch.equal(found.x, expected.x)
    assert found.cost.reward_calls == expected.cost.reward_calls


def test_molecules_of_the_users_own_model_are_taken_for_what_the_reward_scores(mine, tmp_path):
    config = Config("mine.py:chains", ("qed", "sa:0.5"), ("svdd:candidates=2",), n=6, steps=4)
    out = tmp_path / "out"
    outcome = config.run(out)
    assert outcome.summary["domain"] == "molecules"
    samples = outcome.result.samples
    row = outcome.summary["rows"][-1]
    assert row["validity"] == molecules.metrics.validity(samples)
    assert row["QED"] == pytest.approx(float(molecules.QED()(samples).nanmean()))
    assert row["SA"] == pytest.approx(float(molecules.SA()(samples).nanmean()))
    assert row["mean"] == pytest.approx(row["QED"] + 0.5 * (10 - row["SA"]) / 9)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Config("dna", ("qed",)), "scores molecules, and the model 'dna' makes dna"),
        (Config("dna", holdout="qed"), "scores molecules"),
        (Config("dna", holdout="gc:2"), "so it has no weight"),
        (Config("dna", ("gc",), ("tds:alpha=1",)), "tokens have none"),
        (Config("dna", cond=("Hep",)), "HepG2"),
        (Config("dna", device="cuda:77") if not torch.cuda.is_available() else Config("dna", device="x"), "cuda|cpu"),
        (Config("dna", device="abacus"), "cpu, cuda"),
        (Config("dna", search="random"), "needs a reward"),
        (Config("dna", ("gc",), ("svdd",), search="random"), "weighs, branches or selects"),
        (Config("dna", ("gc",), domain="images"), "scores dna, and the model 'dna' makes images"),
        (Config("dna", domain="images"), "samples of the model are texts"),
        (Config("dna-judge"), "a classifier and not a base model"),
        (Config("dna(3)"), "have no options"),
        (Config("dna", n=16, islands=3), "which 3 islands cannot share evenly"),
    ],
)
def test_what_cannot_run_is_told_before_the_network_is_called(config, said, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *a, **k: pytest.fail("a network was called"))
    with pytest.raises(ConfigError, match=said):
        job.prepare(config)


def test_a_missing_extra_is_told_before_the_run(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("seqfold"):
            raise ImportError("no seqfold")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    import importlib

    inner = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name, *a: without(name) if name.startswith("seqfold") else inner(name, *a)
    )
    with pytest.raises(ConfigError, match=r"guidekit\[dna\]"):
        job.prepare(Config("dna", ("folding_energy",)))


# the folder ----------------------------------------------------------------------------------------------------------


def _config(**more) -> Config:
    return replace(Config("mine.py:load", ("mine.py:score",), ("fk_steering:alpha=1",), n=4, steps=5), **more)


def test_a_finished_run_is_not_done_again_and_another_is_not_written_over(mine, tmp_path):
    out = tmp_path / "out"
    first = _config().run(out)
    assert first.new
    (tmp_path / "kept.txt").write_text("mine")
    again = _config(batch_size=2).run(out)
    assert not again.new
    assert torch.equal(again.result.x, first.result.x)
    with pytest.raises(ConfigError, match="steps was 5 and is now 6"):
        _config(steps=6).run(out)
    (out / "notes.txt").write_text("mine too")
    other = _config(steps=6).run(out, overwrite=True)
    assert other.new
    assert (out / "notes.txt").read_text() == "mine too"
    assert Config.load(out / "run.toml").steps == 6
    assert gk.load_result(out / "result").config["moves"] != first.result.config["moves"]


def _bytes(out: Path, *names: str) -> list[bytes]:
    return [(out / name / "tensors.safetensors").read_bytes() for name in names]


@pytest.mark.parametrize("first, then", [({"search": 1}, {"search": 3}), ({"budget": 40}, {"budget": 120})])
def test_a_search_goes_on_where_it_is_given_more_rounds_or_budget(mine, tmp_path, first, then):
    def config(search=None, budget=None) -> Config:
        strategy = "random:candidates=3" + (f",rounds={search}" if search else "")
        more = {"search": strategy, "budget": f"calls={budget}" if budget else None}
        return Config("mine.py:load", ("mine.py:score",), n=3, steps=4, compare=True, **more)

    out, whole = tmp_path / "out", tmp_path / "whole"
    short = config(**first).run(out)
    lines = (out / "search" / "evaluations.jsonl").read_text()
    long, fresh = config(**then).run(out), config(**then).run(whole)
    assert long.new
    assert (out / "search" / "evaluations.jsonl").read_text().startswith(lines)
    assert len((out / "search" / "evaluations.jsonl").read_text()) > len(lines)
    assert _bytes(out, "result", "base", "best_of_n") == _bytes(whole, "result", "base", "best_of_n")
    assert long.result.cost.network_rows == fresh.result.cost.network_rows > short.result.cost.network_rows
    assert long.summary["best_of"] == fresh.summary["best_of"] > short.summary["best_of"]
    assert (out / "run.toml").read_text() == (whole / "run.toml").read_text()
    assert not config(**then).run(out).new
    with pytest.raises(ConfigError, match="search was 'random"):
        replace(config(**then), search="random:candidates=4,rounds=9").run(out)


def test_the_folder_of_another_process_is_refused_at_once_and_a_dead_one_holds_nothing(mine, tmp_path, monkeypatch):
    import subprocess
    import sys

    monkeypatch.setattr(running, "sample", lambda *a, **k: pytest.fail("sampled"))
    out = tmp_path / "out"
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom guidekit.jobs.folder import owned\n"
        "with owned(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", hold, str(out)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=rf"out is in use by process {holder.pid} on .*another folder"):
            _config().run(out, overwrite=overwrite)
    holder.kill()
    holder.communicate()
    assert (out / ".lock").exists()  # it was left behind
    monkeypatch.undo()
    monkeypatch.chdir(mine.parent)
    assert _config().run(out).new
    assert not (out / ".lock").exists()


def test_two_runs_of_one_process_do_not_share_a_folder_either(tmp_path):
    with folder.owned(tmp_path / "a" / "b"):
        with pytest.raises(ConfigError, match="in use by process"), folder.owned(tmp_path / "a" / "b"):
            pass
        with folder.owned(tmp_path / "other"):
            pass
    assert not (tmp_path / "a").exists()  # made for nothing
    assert tmp_path.exists()


def test_run_toml_names_files_as_seen_from_the_folder_so_that_both_can_be_moved(mine, tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    mine.rename(project / "mine.py")
    monkeypatch.chdir(project)
    first = _config().run(project / "out" / "one")
    text = (project / "out" / "one" / "run.toml").read_text()
    assert 'model = "../../mine.py:load"' in text and 'rewards = ["../../mine.py:score"]' in text
    assert str(tmp_path) not in text
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    again = Config.load(tmp_path / "moved" / "out" / "one" / "run.toml").run(tmp_path / "two")
    assert torch.equal(again.result.x, first.result.x)
    assert not _rerun(tmp_path / "moved").new


def _rerun(project: Path):
    """The same command in the project, from its own folder."""
    import os

    here = Path.cwd()
    os.chdir(project)
    try:
        return _config().run(project / "out" / "one")
    finally:
        os.chdir(here)


def test_all_files_have_the_permissions_that_new_files_have(mine, tmp_path):
    config = Config(
        "mine.py:load", ("mine.py:score",), n=3, steps=4, search="random:candidates=3,rounds=1", compare=True
    )
    config.run(tmp_path / "out")
    new = tmp_path / "new"
    new.touch()
    modes = {f.name: f.stat().st_mode for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert {"best.safetensors", "tensors.safetensors", "summary.json"} <= set(modes)
    assert set(modes.values()) == {new.stat().st_mode}


def test_overwrite_with_a_wrong_config_deletes_nothing(mine, tmp_path):
    out = tmp_path / "out"
    _config().run(out)
    before = sorted(p.name for p in out.iterdir())
    with pytest.raises(ConfigError, match="no guide"):
        _config(guides=("nope_nope",)).run(out, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == before


def test_a_folder_of_something_else_is_left_alone(mine, tmp_path):
    out = tmp_path / "photos"
    out.mkdir()
    (out / "run.log").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"no run\.toml"):
            _config().run(out, overwrite=overwrite)
    folder.clear(out)
    assert (out / "run.log").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a file"):
        _config().run(mine)


def test_a_folder_that_cannot_be_made_is_told_before_the_run(mine, monkeypatch):
    monkeypatch.setattr(running, "sample", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(ConfigError, match="cannot be written"):
        _config().run(Path("/proc/none/out"))


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(mine, tmp_path, monkeypatch):
    config = _config(steps=8, compare=True, guides=("svdd:candidates=2,alpha=1",))
    whole = config.run(tmp_path / "whole")
    out, seen = tmp_path / "out", []

    class Stop:
        def __init__(self, model, every):
            pass

        def __call__(self, population, step):
            seen.append(step.index)
            if len(seen) == 3:
                raise KeyboardInterrupt

        def save(self, folder, result):
            (Path(folder) / "lineage.json").write_text("{}")

    import guidekit.report

    monkeypatch.setattr(guidekit.report, "Recorder", Stop)
    with pytest.raises(KeyboardInterrupt):
        config.run(out)
    assert (out / "checkpoint").exists()
    assert not (out / "summary.json").exists()
    found = config.run(out)
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not (out / "checkpoint").exists()
    for name in ("result", "base", "best_of_n"):
        one, other = (f / name / "tensors.safetensors" for f in (out, tmp_path / "whole"))
        assert one.read_bytes() == other.read_bytes()
    assert (out / "samples.csv").read_text() == (tmp_path / "whole" / "samples.csv").read_text()
    assert found.summary["rows"][2]["network rows"] == whole.summary["rows"][2]["network rows"]


def test_run_toml_does_the_same_run_again_from_anywhere(mine, tmp_path, monkeypatch):
    _config().run(tmp_path / "one")
    monkeypatch.chdir("/")
    Config.load(tmp_path / "one" / "run.toml").run(tmp_path / "two")
    one, two = (tmp_path / d / "result" / "tensors.safetensors" for d in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_summary_has_null_where_there_is_no_number_and_keeps_the_warnings(mine, tmp_path):
    mine.write_text(MODEL + "\ndef few(samples):\n    import warnings\n    warnings.warn('look out')\n"
                    "    return [float('nan') if i % 2 else 1.0 for i in range(len(samples))]\n")  # fmt: skip
    out = tmp_path / "out"
    Config("mine.py:load", ("mine.py:few",), n=1, steps=2).run(out)
    text = (out / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda v: pytest.fail(v))
    assert summary["rows"][0]["name"] == "unguided"
    assert summary["warnings"][0] == "unguided: look out"
    assert "warning: unguided: look out" in (out / "run.log").read_text()
    assert summary["reward"] == "few"
    assert summary["model"] == "mine.py:load"


def test_a_broken_summary_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no summary\.json"):
        folder.load_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(gk.CheckpointError, match=r"summary\.json cannot be read"):
        folder.load_summary(tmp_path)


# the table -----------------------------------------------------------------------------------------------------------


def _result(rewards, log_weights):
    base = gk.sample(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), len(rewards), steps=2)
    return replace(base, rewards=torch.tensor(rewards).double(), log_weights=torch.tensor(log_weights).double())


def test_means_are_under_the_weights_and_the_top_tenth_is_not():
    rewards = torch.tensor([1.0, 3.0, float("nan")])
    result = _result(rewards.tolist(), [0.0, 1.0986122886681098, 0.0])
    assert comparison.mean(result, rewards) == pytest.approx((1 + 3 * 3) / 4)
    assert comparison.top(torch.arange(20.0)) == 18.5
    assert comparison.top(torch.tensor([1.0, float("nan")])) == 1.0
    row = comparison.row("x", _result([float("nan")] * 2, [0.0, 0.0]), "other", {})
    assert row["mean"] is None
    assert row["top 10%"] is None


def test_diversity_of_images_is_the_distance_of_two():
    x = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [(x[i] - x[j]).square().mean() for i in range(5) for j in range(5) if i != j]
    assert comparison.distance(x) == pytest.approx(float(torch.stack(pairs).mean().sqrt()))


def test_the_table_lies_down_where_it_is_too_wide():
    rows = [{"name": "a", "mean": 0.5, "network rows": 12345}, {"name": "b", "mean": None, "network rows": 1}]
    assert comparison.text(rows, ["mean", "network rows"]).split("\n")[2].split() == ["b", "-", "1"]
    down = comparison.text(rows, ["mean", "network rows"], width=10).split("\n")
    assert [line.split() for line in down] == [["a", "b"], ["mean", "0.500", "-"], ["network", "rows", "12,345", "1"]]


def test_tensors_of_a_guide_come_from_a_file(mine):
    mine.write_text(MODEL + "\nx = torch.full((4, 2), 7.0)\n")
    config = Config("mine.py:load", guides=("start_from:x=mine.py:x",), n=4, steps=4)
    model = sources.make_model("mine.py:load")[0]
    expected = gk.sample(model, 4, steps=4, guides=[gk.StartFrom(torch.full((4, 2), 7.0))])
    found = config.run().result
    assert torch.equal(found.x, expected.x)
    assert found.memos[0].tolist() == [0, 1, 2, 3]
    assert found.cost.network_rows == 4 * 2  # it begins half of the way, where the start still counts
    near = replace(config, guides=("start_from:x=mine.py:x,level=0.25",)).run().result
    assert not torch.equal(near.x, gk.sample(model, 4, steps=[0.25, 0.0]).x)
    assert near.x.mean() > gk.sample(model, 4, steps=4).x.mean() + 1


def test_pictures_and_arrays_are_described_by_all_their_values():
    import numpy as np
    from PIL import Image

    from guidekit.engine.describe import describe

    array = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)
    other = array.copy()
    other[-1, -1] ^= 1
    for make in (np.asarray, Image.fromarray):
        assert describe({"a": make(array)}) == describe({"a": make(array.copy())}) != describe({"a": make(other)})
    assert describe(np.array([1.5, 2.0])) == [1.5, 2.0] and describe(np.float64(0.5)) == 0.5
    assert describe(np.array([["a", "b"]])) == [["a", "b"]]
