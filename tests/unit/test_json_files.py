"""Laws of JSON files: any parser reads them, and what is none is one line. Not here: what is in them."""

import json
import math

import pytest

from jointseg.errors import InputError
from jointseg.json_files import as_json, read_json, write_json


def refuse_constants(name):
    raise AssertionError(f"{name} is no JSON")


def test_nan_is_null_wherever_it_is_and_all_else_comes_back(tmp_path):
    content = {"θ": 0.1, "gain": {"low": math.nan, "high": 1e-300}, "folds": (math.nan, [1, "✓"]), "none": None}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    there = json.loads(text, parse_constant=refuse_constants)
    assert there == {"θ": 0.1, "gain": {"low": None, "high": 1e-300}, "folds": [None, [1, "✓"]], "none": None}
    assert read_json(tmp_path / "a.json") == there


def test_infinity_is_never_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json({"loss": math.inf})


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": nan}'])
def test_what_is_no_json_is_one_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: no JSON: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.json: cannot be read: No such file or directory$"):
        read_json(tmp_path / "a.json")
