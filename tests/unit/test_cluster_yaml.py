"""Laws of cluster.yaml: Ray's own checks take it, every field is explained, and what it names is there."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from jointseg.presets import PRESETS
from jointseg.settings import flatten

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CLUSTER = yaml.safe_load(TEXT)


def check(cluster):
    """What `ray up` does before it touches a machine."""
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_ray_takes_the_file():
    check(CLUSTER)


@pytest.mark.parametrize("field", [field for field in CLUSTER if field not in {"cluster_name", "provider"}])
def test_ray_finds_a_typo_in_the_name_of(field):
    with pytest.raises(ValidationError, match=rf"'{field}s' was unexpected|'{field}' is a required property"):
        check({f"{field}s" if name == field else name: value for name, value in CLUSTER.items()})


@pytest.mark.parametrize(("field", "value"), [("idle_timeout_minutes", "soon"), ("auth", 3), ("initialization_commands", "ls")])
def test_ray_finds_a_value_of_the_wrong_kind(field, value):
    with pytest.raises(ValidationError, match=f"{value!r} is not of type"):
        check({**CLUSTER, field: value})


def test_every_field_is_explained_above_it():
    paragraphs = [[line for line in part.splitlines() if line.strip()] for part in re.split(r"\n\s*\n", TEXT)]
    explained = set()
    for lines in paragraphs:
        if lines and lines[0].startswith("#"):
            explained |= {match[1] for line in lines if (match := re.match(r"(\w+):", line))}
    assert explained == set(CLUSTER)


def test_the_lines_to_change_are_marked_and_counted():
    assert re.findall(r"# \((\d)\)", TEXT) == ["1", "2", "3", "4"]
    assert "Change what is marked (1) to (4)" in TEXT


def test_all_the_machines_are_wanted_all_the_time():
    machines = len(CLUSTER["provider"]["worker_ips"])
    assert CLUSTER["min_workers"] == CLUSTER["max_workers"] == machines


def test_setup_installs_what_the_repository_has():
    ((there, here),) = CLUSTER["file_mounts"].items()
    command, _ = CLUSTER["setup_commands"]
    assert command.startswith(f"cd {there} && ")
    assert here == "."
    words = shlex.split(command)
    assert (ROOT / words[words.index("--constraint") + 1]).is_file()
    extra = re.fullmatch(r"\.\[(\w+)\]", words[words.index("--editable") + 1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extra is not None
    assert extra[1] in project["optional-dependencies"]
    assert "jointseg" in project["scripts"]


def test_every_program_that_is_run_lies_in_the_environment_that_setup_makes():
    setup, _ = CLUSTER["setup_commands"]
    made = re.search(r"-m venv (\S+)", setup)
    assert made is not None
    programs = re.findall(r"[~\w/.-]*venv/bin/\w+", TEXT)
    assert {Path(program).name for program in programs} == {"pip", "ray", "jointseg"}
    assert all(program.startswith(f"{made[1]}/bin/") for program in programs)


def test_what_ray_down_calls_by_its_bare_name_is_where_a_login_shell_looks():
    _, link = CLUSTER["setup_commands"]
    assert shlex.split(link)[-3:] == ["-sf", "~/jointseg-venv/bin/ray", "~/.local/bin/ray"]


def test_the_head_starts_the_autoscaler_that_starts_all_workers():
    """`ray up` asks for the newer one by an `export` before the command."""
    start = CLUSTER["head_start_ray_commands"][-1].partition("; ")[2]
    assert start.startswith("RAY_enable_autoscaler_v2=0 ~/jointseg-venv/bin/ray start --head ")


def test_results_and_environments_are_not_copied_to_the_machines_and_the_commit_is():
    left_out = {pattern.split("/")[0] for pattern in CLUSTER["rsync_exclude"]}
    assert left_out >= {"runs", ".venv"}
    assert ".git" not in left_out


def test_the_example_job_names_a_preset_options_and_settings_that_exist():
    lines = [line.lstrip("# ") for line in TEXT.replace("\\\n", "\n").splitlines()]
    first = next(number for number, line in enumerate(lines) if re.search(r"bin/jointseg\W+run ", line))
    words = " ".join(lines[first:]).split()
    assert words[words.index("--preset") + 1] in PRESETS
    settings = [words[place + 1].split("=")[0] for place, word in enumerate(words) if word == "--set"]
    assert settings == ["network.weights", "training.num_workers", "training.device"]
    assert set(settings) <= set(flatten(PRESETS["paper"]()))
    assert words[words.index("--out") + 1].startswith("/")


def test_the_example_job_starts_as_ray_hands_it_to_the_heads_shell(tmp_path):
    """Ray quotes each word: a `~` of its own would stay one."""
    lines = [line.removeprefix("#").strip() for line in TEXT.splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith("ray job submit"))
    last = next(number for number in range(first, len(lines)) if not lines[number].endswith("\\"))
    words = shlex.split(" ".join(line.removesuffix("\\") for line in lines[first : last + 1]))
    entrypoint = shlex.join(words[words.index("--") + 1 :])
    program = tmp_path / "jointseg-venv" / "bin" / "jointseg"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho $#: $1 $2 $3\n")
    program.chmod(0o755)
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(entrypoint, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "13: run --preset modern\n"), done.stderr
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert " ".join(entrypoint.split()) in " ".join(shlex.join(shlex.split(part)) for part in examples(readme))


def examples(text):
    """What `ray job submit` is to run on a page."""
    return [" ".join(found.replace("\\\n", " ").split()) for found in re.findall(r"-- \\\n(.*?)\n```", text, re.DOTALL)]
