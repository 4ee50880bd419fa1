"""The command line parses, refuses and dispatches its arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

import torch_ire
from torch_ire import cli


def test_the_parser_has_the_documented_defaults():
    parse = cli.build_parser().parse_args
    plain = parse(["demo"])
    assert (plain.quick, plain.seeds, plain.out) == (False, None, Path("torch-ire-demo.png"))
    full = parse(["demo", "--quick", "--seeds", "5", "--out", "a.png"])
    assert (full.quick, full.seeds, full.out) == (True, 5, Path("a.png"))


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["demo", "--seeds", "0"], ["demo", "--seeds", "1.5"]])
def test_wrong_arguments_exit_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: torch-ire" in capsys.readouterr().err


def test_seeds_error_says_what_came(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--seeds", "0"])
    assert "expected a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_config_shows_the_configuration(monkeypatch):
    called = []
    monkeypatch.setattr(torch_ire, "show_config", lambda: called.append("shown"))
    assert cli.main(["config"]) == 0
    assert called == ["shown"]


def test_missing_extra_names_the_way_out(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda module: None if module in ("matplotlib", "sklearn") else object())
    assert cli.main(["demo"]) == 1
    message = capsys.readouterr().err
    assert (
        message
        == "torch-ire demo: missing matplotlib, scikit-learn; install them with: pip install 'torch-ire[demo]'\n"
    )


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("picture.jpg", "must name a .png file"), ("absent/picture.png", "a folder that can be written to")],
)
def test_picture_that_cannot_be_written_is_refused_before_the_work(name, complaint, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / name)]) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "seeds", "quick"), [([], 3, False), (["--quick"], 2, True), (["--quick", "--seeds", "4"], 4, True)]
)
def test_demo_gets_the_plan_and_the_seeds(arguments, seeds, quick, monkeypatch, tmp_path):
    session = pytest.importorskip("torch_ire.demo.session")
    config = pytest.importorskip("torch_ire.demo.config")
    calls = []
    monkeypatch.setattr(session, "run", lambda plan, seeds, **rest: calls.append((plan, seeds, rest["picture_path"])))
    assert cli.main(["demo", "--out", str(tmp_path / "a.png"), *arguments]) == 0
    assert calls == [(config.QUICK if quick else config.FULL, seeds, tmp_path / "a.png")]


def test_interrupt_ends_quietly(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_ire, "show_config", interrupted)
    assert cli.main(["config"]) == 130
    assert capsys.readouterr().err == "torch-ire: interrupted\n"


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 1)])
def test_theory_draws_and_says_whether_it_holds(holds, status, monkeypatch, tmp_path):
    import torch_ire.theory

    calls = []

    def reproduce(picture, *, quick, seed):
        calls.append((picture, quick, seed))
        outcome = torch_ire.theory.Outcome()
        outcome.compare("A", "u", 1.0 if holds else 2.0, 1.0, 0.1)
        return outcome

    monkeypatch.setattr(torch_ire.theory, "reproduce", reproduce)
    assert cli.main(["theory", "--quick", "--seed", "3", "--out", str(tmp_path / "t.png")]) == status
    assert cli.main(["theory"]) == status
    assert calls == [(tmp_path / "t.png", True, 3), (Path("torch-ire-theory.png"), False, 0)]
