"""The command line: help and examples, completion, old names, output and log; the doctor; DVC as a subprocess."""

from __future__ import annotations

import io
import logging
import re
import shlex
import socket
import sys

import pytest
import typer.main

from persres import doctor
from persres import logging as persres_logging
from persres.cli import dev
from persres.cli.main import COMMANDS, RENAMED, app, main
from persres.logging import relay, show_logs
from persres.versions import git_dvc
from persres.versions.git_dvc import CommandError, dvc
from persres.versions.process_start import NotStarted, code_of

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


def test_dev_without_experiments_needs_a_checkout(monkeypatch, capsys):
    monkeypatch.setattr(dev, "find_spec", lambda name: None)
    assert main(["dev", "deps"]) == 1
    assert "persres dev needs a checkout: git clone" in capsys.readouterr().err


def test_a_shell_completes_commands_and_options(monkeypatch, capsys):
    """As docs/versions.md says to set it up; the shell asks by these variables."""
    monkeypatch.setenv("_PERSRES_COMPLETE", "complete_bash")
    for words, found in (("persres pu", "pull\npublish"), ("persres pull --re", "--rev\n--repo\n--remote")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        with pytest.raises(SystemExit) as ended:
            main([])
        assert ended.value.code == 0 and capsys.readouterr().out.strip() == found


def test_what_a_command_says_of_itself_is_no_part_of_what_it_gives(capsys):
    show_logs()
    logging.getLogger("persres.test").warning("pull: v1 has no model card of dog7")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "pull: v1 has no model card of dog7\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SAID = b"\r 10%|#   |Pushing 1/9\x1b[A\r 90%|### |Pushing 8/9\r\x1b[31mERROR\x1b[39m: failed to push\nwarning: slow\n\x1b[A"


def test_bars_of_a_program_reach_a_terminal_and_its_errors_do_not(monkeypatch):
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    assert relay(io.BufferedReader(io.BytesIO(SAID)), "push").encode() == SAID, "the caller has all of it"
    assert "10%|" in seen.getvalue() and "90%|" in seen.getvalue() and "warning: slow" in seen.getvalue()
    assert "failed to push" not in seen.getvalue() and seen.getvalue().endswith("\n\x1b[A"), (
        "the cursor is where it was"
    )
    seen.truncate(0)
    relay(io.BufferedReader(io.BytesIO(SAID)))
    assert "%" not in seen.getvalue(), "short work draws nothing"


def test_in_a_log_file_a_bar_is_a_line_now_and_then(monkeypatch, logged):
    monkeypatch.setattr(persres_logging, "EVERY", -1.0)
    relay(io.BufferedReader(io.BytesIO(SAID)), "publish: data to store")
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
    found = {finding.what: finding for finding in doctor.examine()}
    assert not [finding for finding in found.values() if finding.state == "fails" and finding.what != "disk"]
    assert found["remote"].state == "note" and found["remote"].mend
    assert found["S3 keys"].state == "note" and "AWS_ACCESS_KEY_ID" in found["S3 keys"].mend


def test_doctor_without_torch_and_without_dvc_notes_it(nothing_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor._gpu(nothing_set)
    assert found.state == "note" and "without torch" in found.says and found.mend
    monkeypatch.setattr(git_dvc, "find_spec", lambda name: None)
    found = doctor._remote(nothing_set)
    assert found.state == "note" and "dvc is not installed" in found.says and "persres[pipeline]" in found.mend
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    found = doctor._credentials(nothing_set)
    assert found.state == "note" and "persres[pipeline]" in found.mend


@pytest.mark.parametrize(
    ("set_to", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
    ],
)
def test_doctor_says_which_half_of_the_credentials_is_missing(nothing_set, monkeypatch, set_to, says):
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    found = doctor._credentials(nothing_set)
    assert found.state == "fails" and says in found.says and "AWS_PROFILE" in found.mend


def test_doctor_tells_of_a_secret_nothing(nothing_set, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE1234")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    found = doctor._credentials(nothing_set)
    assert found == doctor.Finding("S3 keys", "ok", "…1234, from the environment")


def test_dvc_runs_alone_where_it_cannot_be_forked(nothing_set, monkeypatch):
    """Elsewhere than on Linux, and where that process was killed; it says the same."""
    forked = dvc(nothing_set, "version")

    def none():
        raise NotStarted("a fork is no good start there")

    monkeypatch.setattr(git_dvc, "_starter", none)
    assert dvc(nothing_set, "version").splitlines()[0] == forked.splitlines()[0]
    ours, its = socket.socketpair()
    its.close()
    with pytest.raises(NotStarted):
        code_of(ours)


def test_each_call_of_dvc_has_its_own_folder_environment_and_words(nothing_set, monkeypatch):
    """And leaves nothing for the next: it is a process of its own."""
    (nothing_set / "a").mkdir()
    git_dvc.git(nothing_set / "a", "init", "-q")
    dvc(nothing_set / "a", "init", "-q")
    dvc(nothing_set / "a", "config", "core.analytics", "false")
    assert git_dvc.configuration(nothing_set / "a") == {"core.analytics": "false"}
    with pytest.raises(CommandError, match="dvc status failed: you are not inside of a DVC repository"):
        dvc(nothing_set, "status")
    with pytest.raises(CommandError, match="which is no folder"):
        dvc(nothing_set / "b", "status")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(nothing_set / "home"))
    dvc(nothing_set, "config", "--global", "core.autostage", "true")
    assert git_dvc.configuration(nothing_set / "a") == {"core.analytics": "false", "core.autostage": "true"}
