"""Laws of what is searched: spaces by name and of one's own. Not here: which points are tried (test_points.py)."""

from __future__ import annotations

import json
import sys
import textwrap

import optuna
import pytest
from optuna.trial import FixedTrial

import tune_spaces
from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import differences, with_overrides
from pipeline.study.spaces import papers_values
from tests.own_spaces import WEIGHTS, fixed, refusal, space_named

SPACES = ("crf", "crf_bandwidths", "crf_weights", "depth_or_not")
BANDWIDTHS = {
    "crf.theta_alpha": 160.0,
    "crf.theta_beta": 3.0,
    "crf.theta_gamma": 50.0,
    "crf.theta_zeta": 0.2,
    "crf.theta_tau": 3.0,
}
HOW = {"crf.num_iterations": 10, "crf.pairwise": "crfrnn"}


@pytest.fixture
def own_space(tmp_path, monkeypatch):
    """Puts a file of the user's among tune_spaces/."""

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(tune_spaces, "__path__", [*tune_spaces.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, f"tune_spaces.{name}", raising=False)
        monkeypatch.delattr(tune_spaces, name, raising=False)
        return name

    return write


def drawn(space, number, seed=0):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.draw(study.ask(dict(space.distributions or {}))) for _ in range(number)]


# Spaces that are shipped


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("crf", WEIGHTS | BANDWIDTHS | HOW),
        ("crf_weights", WEIGHTS),
        ("crf_bandwidths", BANDWIDTHS),
        ("depth_or_not", WEIGHTS | BANDWIDTHS),
    ],
)
def test_a_space_searches_what_it_is_named_for_and_has_the_papers_point_inside(name, point):
    found, _, inside = space_named(name).at(papers_values())
    assert found == point
    assert inside


@pytest.mark.parametrize("name", ["crf", "crf_bandwidths", "crf_weights"])
def test_the_papers_numbers_lie_off_the_edges_of_every_range(name):
    for path, own in space_named(name).distributions.items():
        if not isinstance(own, optuna.distributions.CategoricalDistribution):
            assert own.low < papers_values()[path.replace("/", ".")] < own.high, path


@pytest.mark.parametrize("name", SPACES)
def test_every_point_of_a_space_is_a_config(name):
    for point in drawn(space_named(name), 30):
        assert set(differences(demo(), with_overrides(demo(), point))) <= set(point)


def distributions_of(name):
    space = space_named(name)
    if space.distributions is not None:
        return dict(space.distributions)
    trial = optuna.trial.FixedTrial(space.at(papers_values())[1])
    space.draw(trial)
    return trial.distributions


@pytest.mark.parametrize("name", SPACES)
def test_weights_and_bandwidths_are_drawn_on_log_scales_as_far_as_their_files_say(name):
    """Weights from a tenth to three times the paper's, bandwidths from at least a half to at least twice, at most by 8."""
    found = {path.replace("/", "."): own for path, own in distributions_of(name).items()}
    for path in (WEIGHTS | BANDWIDTHS).keys() & found.keys():
        assert found[path].log, path
        low, high = found[path].low / papers_values()[path], found[path].high / papers_values()[path]
        if path in WEIGHTS:
            assert (low, high) == (pytest.approx(0.1), pytest.approx(3)), path
        else:
            assert 1 / 8 <= low <= 1 / 2 < 2 <= high <= 8, path


def test_a_crf_without_an_iteration_is_in_no_space():
    iterations = distributions_of("crf")["crf/num_iterations"]
    assert (iterations.low, iterations.high) == (1, 15)


def test_without_the_depth_kernel_nothing_else_of_it_is_drawn():
    points = drawn(space_named("depth_or_not"), 40)
    off = [point for point in points if point["crf.w_depth"] == 0]
    assert 0 < len(off) < 40
    assert {tuple(sorted(set(WEIGHTS | BANDWIDTHS) - set(point))) for point in off} == {("crf.theta_gamma", "crf.theta_zeta")}
    assert all(point.keys() == (WEIGHTS | BANDWIDTHS).keys() for point in points if point not in off)


# Spaces of one's own


def test_a_file_among_the_shipped_ones_is_found_and_may_be_of_any_kind(own_space):
    text = fixed("{'crf/num_iterations': IntDistribution(0, 20), 'crf/pairwise': CategoricalDistribution(['crfrnn'])}")
    assert space_named(own_space("own", text)).at(papers_values())[0] == HOW


@pytest.mark.parametrize("function", ["space", "other"])
def test_a_function_works_from_a_path(own_file, function):
    space = space_named(own_file(fixed("{'crf/w_depth': FloatDistribution(1, 9)}", function), function))
    assert space.name == f"mine.py:{function}"
    assert space.at(papers_values()) == ({"crf.w_depth": 4.0}, {"crf/w_depth": 4.0}, True)


def test_a_function_works_from_a_module():
    assert space_named("tune_spaces.crf_weights:space").digest == space_named("crf_weights").digest


def test_a_space_is_what_it_draws_from(own_file):
    one = space_named(own_file(fixed("{'crf/w_depth': FloatDistribution(1, 9)}"))).digest
    again = space_named(own_file("# a remark\n" + fixed("{'crf/w_depth': FloatDistribution(1, 9)}"))).digest
    other = space_named(own_file(fixed("{'crf/w_depth': FloatDistribution(1, 8)}"))).digest
    assert one == again != other


def test_an_unknown_space_lists_the_known_ones():
    assert refusal(space_named, "nope") == (
        "search.space: 'nope' is not in tune_spaces/; allowed: crf, crf_bandwidths, crf_weights, depth_or_not, "
        "path/to/file.py:function, module:function"
    )


@pytest.mark.parametrize("path", ["crf/theta_omega", "crf.theta_beta", "stage1/lr", "theta_beta"])
def test_a_space_may_only_name_settings_of_the_crf(own_space, path):
    message = refusal(space_named, own_space("wrong", fixed(f"{{{path!r}: FloatDistribution(0.1, 1)}}")))
    assert message.startswith(f"tune_spaces/wrong.py: {path!r} is not a setting of the CRF; allowed: crf/theta_alpha,")


DRAWS = "def space(trial): return {{{path!r}: trial.suggest_float({path!r}, {low}, {high})}}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "mine.py:space: has no function space()"),
        ("space = 4", "mine.py:space: has no function space()"),
        ("async def space(): return {}", "mine.py:space: space() is async; allowed: a plain function"),
        (fixed("{}"), "mine.py:space: searches nothing; allowed: some of crf/theta_alpha,"),
        (fixed("{'crf/w_depth': (1, 2)}"), "mine.py:space: 'crf/w_depth' is (1, 2); allowed: an Optuna distribution"),
        (
            fixed("{'crf/w_depth': FloatDistribution(9, 1)}"),
            "mine.py:space, line 2: `low <= high` must hold, but got (low=9, high=1)",
        ),
        (
            DRAWS.format(path="crf/w_depth", low=9, high=1),
            "mine.py:space, line 1: `low <= high` must hold, but got (low=9, high=1)",
        ),
        (
            DRAWS.format(path="crf/w_dept", low=1, high=9),
            "mine.py:space: draws 'crf/w_dept', no setting of the CRF; allowed: one",
        ),
        ("def space(trial): return {'crf/w_dept': 1}", "mine.py:space: 'crf/w_dept' is not a setting of the CRF; allowed: "),
        (
            "def space(trial): return {'crf/w_depth': [1]}",
            "mine.py:space: crf.w_depth is [1]; allowed: a number",
        ),
        ("def space(trial): return {'crf/w_depth': '5'}", "mine.py:space: crf.w_depth is '5'; allowed: a number"),
        ("def space(trial): return {'crf/w_depth': True}", "mine.py:space: crf.w_depth is True; allowed: a number"),
        ("def space(trial): return {'crf/pairwise': 1}", "mine.py:space: crf.pairwise is 1; allowed: text"),
        ("def space(): return nothing", "mine.py:space, line 1: NameError: name 'nothing' is not defined"),
        ("def space(trial): return trial.sugest_float('crf/w_depth', 1, 2)", "mine.py:space, line 1: AttributeError: "),
        ("def switches(settings): return settings['no']\ndef space(trial): return {}", "mine.py:space, line 1: KeyError: 'no'"),
        ("def space(): assert 1 > 2, 'bounds'", "mine.py:space, line 1: AssertionError: bounds"),
        ("def space(trial): raise RuntimeError('mine')", "mine.py:space, line 1: RuntimeError: mine"),
        ("def space(): return [1]", "mine.py:space: gives [1]; allowed: a dict by config path, such as crf/theta_beta"),
        ("space = dict", "mine.py:space: "),
        ("import math\nspace = math.hypot", "mine.py:space: "),
        (
            "import numpy as np\n" + fixed("{'crf/num_iterations': CategoricalDistribution(list(np.arange(5, 15)))}"),
            "mine.py:space: TypeError: Object of type int64 is not JSON serializable",
        ),
        (
            fixed("{'crf/theta_beta': CategoricalDistribution(['2.5', 3.0])}"),
            "mine.py:space: crf.theta_beta is '2.5'; allowed: a number",
        ),
        (
            fixed("{'crf/w_depth': FloatDistribution(float('nan'), 3)}"),
            "mine.py:space: crf.w_depth is drawn up to nan; allowed: finite numbers",
        ),
        (
            fixed("{'crf/w_depth': FloatDistribution(1, float('inf'))}"),
            "mine.py:space: crf.w_depth is drawn up to inf; allowed: finite numbers",
        ),
        (fixed("{'crf/w_depth': FloatDistribution(-5, 5)}"), "mine.py:space: crf.w_depth: -5.0 is not allowed; allowed: "),
        (DRAWS.format(path="crf/w_depth", low=-5, high=5), "mine.py:space: crf.w_depth: -5.0 is not allowed; allowed: "),
        (
            fixed("{'crf/num_iterations': FloatDistribution(1, 10)}"),
            "mine.py:space: crf.num_iterations is a whole number; allowed: an IntDistribution, or suggest_int",
        ),
        ("def space(trial): return {'crf/w_depth': float('nan')}", "mine.py:space: crf.w_depth: nan is not allowed; allowed: "),
        ("def space():\n    import sys\n    sys.exit(3)", "mine.py:space, line 3: SystemExit: 3"),
        ("import sys\nsys.exit(3)", "search.space: /"),
        ("raise RuntimeError('mine')", "search.space: /"),
        ("import nothing_of_the_kind", "search.space: /"),
        ("def space(:", "search.space: /"),
    ],
)
def test_what_is_wrong_with_a_file_of_ones_own_is_one_line(own_file, text, said):
    assert refusal(space_named, own_file(text)).startswith(said)


def test_a_file_may_have_dataclasses_and_the_name_of_another_module(tmp_path):
    text = (
        "from __future__ import annotations\nimport json\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    b: int\n"
    )
    drawn = fixed("{'crf/w_depth': FloatDistribution(1, 9)}")
    (tmp_path / "json.py").write_text(f"{text}json.dumps(A(1).b)\n{drawn}")
    assert space_named(tmp_path / "json.py").at(papers_values())[0].keys() == {"crf.w_depth"}


@pytest.mark.parametrize(
    "text",
    [
        "def space(**options): return {'crf/w_depth': FloatDistribution(1, 9)}",
        "def space(high=9): return {'crf/w_depth': FloatDistribution(1, high)}",
        "def between(low, high): return {'crf/w_depth': FloatDistribution(low, high)}\nspace = partial(between, 1, 9)",
        "def to(trial, high): return {'crf/w_depth': trial.suggest_float('crf/w_depth', 1, high)}\nspace = partial(to, high=9)",
    ],
    ids=["keywords", "a default", "a partial", "a partial that draws"],
)
def test_what_a_function_can_do_without_it_need_not_be_given(own_file, text):
    text = f"from functools import partial\nfrom optuna.distributions import *\n{text}"
    assert space_named(own_file(text)).at(papers_values())[0].keys() == {"crf.w_depth"}


def test_what_a_function_makes_of_a_parameter_is_what_must_be_allowed(own_file):
    text = "def space(trial): return {'crf/w_depth': 4 + abs(trial.suggest_float('crf/w_depth', -5, 5))}"
    assert space_named(own_file(text)).at(papers_values())[0].keys() == {"crf.w_depth"}


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    """As Python itself finds it, and the `jointseg` command would not."""
    (tmp_path / "in_this_folder.py").write_text(fixed("{'crf/w_depth': FloatDistribution(1, 9)}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "in_this_folder", raising=False)
    path = list(sys.path)
    assert space_named("in_this_folder:space").at(papers_values())[0].keys() == {"crf.w_depth"}
    assert sys.path == path


def test_what_a_space_draws_beside_settings_needs_its_switches(own_file):
    text = "def space(trial): return {'crf/w_depth': 1.0 if trial.suggest_categorical('depth', ['on', 'off']) == 'on' else 0.0}"
    said = (
        "mine.py:space: draws 'depth', no setting of the CRF; allowed: one, or a function switches(settings) in the same file"
    )
    assert refusal(space_named, own_file(text)).startswith(said)


def test_what_stands_in_one_branch_alone_is_refused_where_it_is_drawn(own_file):
    """The paper's point does not come by there."""
    text = """
    def space(trial):
        on = trial.suggest_categorical("depth", [True, False])
        return {"crf/w_depth": trial.suggest_float("crf/w_depth", 1, 9) if on else "off"}

    def switches(settings):
        return {"depth": True}
    """
    space = space_named(own_file(textwrap.dedent(text)))
    with pytest.raises(InputError, match=r"mine\.py:space: crf\.w_depth is 'off'; allowed: a number$"):
        space.draw(FixedTrial({"depth": False}))


def test_numbers_of_numpy_are_numbers(own_file):
    text = "import numpy as np\ndef space(trial): return {'crf/w_depth': np.float64(trial.suggest_float('crf/w_depth', 1, 9))}"
    drawn, _, _ = space_named(own_file(text)).at({"crf.w_depth": 4.0})
    assert json.dumps(drawn) == '{"crf.w_depth": 4.0}'
    assert type(drawn["crf.w_depth"]) is float


def test_a_file_or_module_that_is_not_there_is_named(tmp_path):
    assert refusal(space_named, tmp_path / f"{'a' * 300}.py").startswith(f"{tmp_path}/aaa")
    assert refusal(space_named, tmp_path / "no.py") == f"search.space: {tmp_path / 'no.py'} is not a file"
    for module in ("no_such_module", "", ".relative"):
        said = f"search.space: module {module!r} cannot be imported"
        assert refusal(space_named, f"{module}:space").startswith(said)


def test_a_conditional_space_is_another_where_its_own_code_changes(own_file):
    text = "def space(trial): return {'crf/w_depth': trial.suggest_float('crf/w_depth', 1, 9)LATER}"
    one, other = (space_named(own_file(text.replace("LATER", later))).digest for later in ("", " * 2"))
    assert one != other


def test_a_conditional_space_is_another_where_what_it_takes_from_another_file_changes(own_file, tmp_path):
    (tmp_path / "ranges.py").write_text("HIGH = 9.0")
    text = (
        f"import runpy\nHIGH = runpy.run_path({str(tmp_path / 'ranges.py')!r})['HIGH']\n"
        "def space(trial): return {'crf/w_depth': trial.suggest_float('crf/w_depth', 1, HIGH)}"
    )
    one = space_named(own_file(text)).digest
    assert space_named(own_file(text)).digest == one
    (tmp_path / "ranges.py").write_text("HIGH = 12.0")
    assert space_named(own_file(text)).digest != one
