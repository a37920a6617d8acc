"""The command line: help and examples, completion, old names, output and log; the doctor; DVC as a subprocess."""

from __future__ import annotations

import io
import logging
import re
import shlex
import sys

import pytest
import typer.main

from persres import doctor
from persres import logging as persres_logging
from persres.cli.main import COMMANDS, RENAMED, app, main
from persres.experiments import cli as dev
from persres.logging import relay, show_logs
from persres.versions import git_dvc
from persres.versions.git_dvc import CommandError, dvc

GROUP = typer.main.get_command(app)
EXAMPLES = [call for command in [*COMMANDS.values(), *dev.COMMANDS.values()] for call in command.examples]


@pytest.mark.parametrize("call", EXAMPLES)
def test_every_example_is_a_valid_call(call):
    line = re.sub(r"   \(.*\)$", "", call).partition(" | ")[0]
    calls = re.findall(r"persres ((?:dev )?)([a-z-]+)((?: (?:'[^']*'|[^\s&;()']+))*)", line)
    assert calls, call
    for under_dev, name, rest in calls:
        commands = GROUP.commands["dev"].commands if under_dev else GROUP.commands
        commands[name].make_context(name, shlex.split(rest))  # raises where an option or an argument does not fit


def test_the_help_of_a_command_ends_with_its_examples(capsys):
    for name, command in COMMANDS.items():
        assert main([name, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert text.endswith(" ".join(" ".join(["Examples:", *command.examples]).split())) or not command.examples


@pytest.mark.parametrize("name", RENAMED)
def test_an_old_command_is_refused_with_the_new_name(name, capsys):
    assert main([name, "--help"]) == 2
    assert f"persres {name} is now persres {RENAMED[name]} " in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("name", ["nonsense", "dev nonsense"])
def test_an_unknown_command_is_one_error(name, capsys):
    assert main(name.split()) == 2
    assert "No such command 'nonsense'" in capsys.readouterr().err


def test_a_shell_completes_commands_and_options(monkeypatch, capsys):
    """As docs/versions.md sets it up; the shell requests completions with these variables."""
    monkeypatch.setenv("_PERSRES_COMPLETE", "complete_bash")
    for words, completions in (("persres pu", "pull\npublish"), ("persres pull --re", "--rev\n--repo\n--remote")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        with pytest.raises(SystemExit) as ended:
            main([])
        assert ended.value.code == 0 and capsys.readouterr().out.strip() == completions


def test_log_lines_go_to_stderr(capsys):
    show_logs()
    logging.getLogger("persres.test").warning("pull: v1 has no model card of dog7")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "pull: v1 has no model card of dog7\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


OUTPUT = b"\r 10%|#   |Pushing 1/9\x1b[A\r 90%|### |Pushing 8/9\r\x1b[31mERROR\x1b[39m: failed to push\nwarning: slow\n\x1b[A"


def test_progress_bars_of_a_command_reach_a_terminal_and_its_errors_do_not(monkeypatch):
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    assert relay(io.BufferedReader(io.BytesIO(OUTPUT)), "push").encode() == OUTPUT, "the caller has all of it"
    assert "10%|" in seen.getvalue() and "90%|" in seen.getvalue() and "warning: slow" in seen.getvalue()
    assert "failed to push" not in seen.getvalue() and seen.getvalue().endswith("\n\x1b[A"), (
        "the cursor is where it was"
    )
    seen.truncate(0)
    relay(io.BufferedReader(io.BytesIO(OUTPUT)))
    assert "%" not in seen.getvalue(), "short work shows no bar"


def test_in_a_log_file_a_bar_is_an_occasional_line(monkeypatch, logged):
    monkeypatch.setattr(persres_logging, "EVERY", -1.0)
    relay(io.BufferedReader(io.BytesIO(OUTPUT)), "publish: data to store")
    assert [record.getMessage() for record in logged.records] == [
        "publish: data to store",
        "publish: data to store: 90%|### |Pushing 8/9",
    ]


@pytest.fixture
def nothing_set(monkeypatch, tmp_path):
    """No key, no profile, no instance, no checkout."""
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def test_doctor_outside_of_a_checkout_fails_nothing(nothing_set, monkeypatch):
    monkeypatch.chdir(nothing_set)
    checked = {finding.what: finding for finding in doctor.examine()}
    assert not [finding for finding in checked.values() if finding.state == "fails" and finding.what != "disk"]
    assert checked["remote"].state == "note" and checked["remote"].fix
    assert checked["S3 keys"].state == "note" and "AWS_ACCESS_KEY_ID" in checked["S3 keys"].fix


def test_doctor_without_torch_and_without_dvc_notes_it(nothing_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    checked = doctor._gpu(nothing_set)
    assert checked.state == "note" and "without torch" in checked.says and checked.fix
    monkeypatch.setattr(git_dvc, "find_spec", lambda name: None)
    checked = doctor._remote(nothing_set)
    assert checked.state == "note" and "dvc is not installed" in checked.says and "persres[pipeline]" in checked.fix
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    checked = doctor._credentials(nothing_set)
    assert checked.state == "note" and "persres[pipeline]" in checked.fix


@pytest.mark.parametrize(
    ("set_to", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
    ],
)
def test_doctor_names_the_missing_half_of_the_credentials(nothing_set, monkeypatch, set_to, says):
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    checked = doctor._credentials(nothing_set)
    assert checked.state == "fails" and says in checked.says and "AWS_PROFILE" in checked.fix


def test_doctor_prints_nothing_of_a_secret(nothing_set, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE1234")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    checked = doctor._credentials(nothing_set)
    assert checked == doctor.Finding("S3 keys", "ok", "…1234, from the environment")


def test_each_call_of_dvc_has_its_folder_and_environment(nothing_set, monkeypatch):
    (nothing_set / "a").mkdir()
    git_dvc.git(nothing_set / "a", "init", "-q")
    dvc(nothing_set / "a", "init", "-q")
    dvc(nothing_set / "a", "config", "core.analytics", "false")
    with pytest.raises(CommandError, match="dvc status failed: you are not inside of a DVC repository"):
        dvc(nothing_set, "status")
    with pytest.raises(CommandError, match="which is no folder"):
        dvc(nothing_set / "b", "status")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(nothing_set / "home"))
    dvc(nothing_set, "config", "--global", "core.autostage", "true")
    assert git_dvc.configuration(nothing_set / "a") == {"core.analytics": "false", "core.autostage": "true"}
