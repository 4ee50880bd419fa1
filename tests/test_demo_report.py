"""The verdicts of the demo on made-up numbers, its table and its picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from rich.console import Console

from torch_ire.demo import picture
from torch_ire.demo.config import FULL, QUICK, TEXT, Method
from torch_ire.demo.report import build_table, format_estimate, print_report, sentences
from torch_ire.demo.results import (
    Estimate,
    Outcome,
    PartResults,
    Verdict,
    best_lrs,
    collect,
    compare,
    judge,
    mean_curve,
    traced,
)
from torch_ire.demo.training import Job, Run

ADAMW, FISHER, SECOND_MOMENT, RANDOM = TEXT.methods
MADE_UP = replace(TEXT, lrs=(0.01, 0.02))
Scores = Mapping[tuple[Method, float], Sequence[float]]


def made_up_run(method: Method, lr: float, seed: int, score: float) -> Run:
    """A run whose validation metric equals its test metric."""
    return Run(Job(MADE_UP, method, lr, seed), (10, 20), (score + 1, score), score, 0.01 + lr, 8.0 + seed, {})


def made_up_results(scores: Scores, traces: Mapping[Method, Sequence[float]] | None = None) -> PartResults:
    """Results in which each method has the same scores at 0.01 and is worse by 1 at 0.02, where not said otherwise."""
    every = {
        (method, lr): scores.get((method, lr), [score + (lr > 0.01) for score in scores[method, 0.01]])
        for method in MADE_UP.methods
        for lr in MADE_UP.lrs
    }
    runs = [
        made_up_run(method, lr, seed, score)
        for (method, lr), at_setting in every.items()
        for seed, score in enumerate(at_setting)
    ]
    seeds = len(scores[ADAMW, 0.01])
    at_any_rate = traces or {method: [100.0] * seeds for method in MADE_UP.methods}
    by_setting = {(method, lr): values for method, values in at_any_rate.items() for lr in MADE_UP.lrs}
    return collect(MADE_UP, runs, by_setting, resolution=0.0)


def verdict_on(
    fisher: Sequence[float],
    adamw: Sequence[float],
    random: Sequence[float],
    fisher_traces: Sequence[float] = (100.0,) * 3,
    adamw_traces: Sequence[float] = (100.0,) * 3,
    random_traces: Sequence[float] = (100.0,) * 3,
) -> Verdict:
    scores = {(FISHER, 0.01): fisher, (SECOND_MOMENT, 0.01): adamw, (ADAMW, 0.01): adamw, (RANDOM, 0.01): random}
    traces = {FISHER: fisher_traces, ADAMW: adamw_traces, SECOND_MOMENT: [1.0], RANDOM: random_traces}
    verdict, _ = judge(made_up_results(scores, traces))
    assert verdict.row.method == FISHER
    return verdict


def test_gain_needs_both_controls():
    verdict = verdict_on(fisher=[1.70, 1.71, 1.72], adamw=[1.80, 1.81, 1.82], random=[1.79, 1.80, 1.81])
    assert verdict.outcome is Outcome.HELPED
    assert "Ahead of both controls" in sentences(verdict, MADE_UP)


def test_a_winning_random_mask_is_called_a_larger_step():
    verdict = verdict_on(fisher=[1.70, 1.71, 1.72], adamw=[1.80, 1.81, 1.82], random=[1.60, 1.61, 1.62])
    assert verdict.outcome is Outcome.LARGER_STEP
    assert "not of a random mask: larger steps helped, not the curvature" in sentences(verdict, MADE_UP)


def test_a_random_mask_within_the_seeds_is_no_gain_either():
    verdict = verdict_on(fisher=[1.70, 1.71, 1.72], adamw=[1.80, 1.81, 1.82], random=[1.705, 1.715, 1.725])
    assert verdict.outcome is Outcome.LARGER_STEP


def test_a_difference_inside_the_spread_is_no_gain():
    verdict = verdict_on(fisher=[1.70, 1.80, 1.90], adamw=[1.74, 1.84, 1.94], random=[2.00, 2.01, 2.02])
    assert verdict.outcome is Outcome.NO_GAIN
    assert "Within the spread of the seeds of a tuned AdamW" in sentences(verdict, MADE_UP)


def test_worse_than_the_base_is_harm_whatever_the_random_mask():
    verdict = verdict_on(fisher=[1.90, 1.91, 1.92], adamw=[1.80, 1.81, 1.82], random=[2.00, 2.01, 2.02])
    assert verdict.outcome is Outcome.HARMED
    assert "Behind a tuned AdamW" in sentences(verdict, MADE_UP)


def test_one_seed_gives_no_verdict():
    verdict = verdict_on(fisher=[1.0], adamw=[2.0], random=[2.0])
    assert verdict.outcome is Outcome.UNKNOWN
    assert "--seeds 3" in sentences(verdict, MADE_UP)


def test_equal_learning_rates_are_compared_one_by_one():
    flat = [1.80, 1.81, 1.82]
    results = made_up_results(
        {
            (ADAMW, 0.01): flat,
            (FISHER, 0.01): [1.70, 1.71, 1.72],
            (SECOND_MOMENT, 0.01): flat,
            (RANDOM, 0.01): [1.70, 1.71, 1.72],
            (ADAMW, 0.02): [1.60, 1.61, 1.62],
            (FISHER, 0.02): [1.75, 1.76, 1.77],
            (RANDOM, 0.02): [1.85, 1.86, 1.87],
        }
    )
    verdict, _ = judge(results)
    assert verdict.ahead_of_base_at == (0.01,)
    assert verdict.behind_base_at == (0.02,)
    assert verdict.ahead_of_random_at == (0.02,)
    assert verdict.outcome is Outcome.HARMED
    words = sentences(verdict, MADE_UP)
    assert "ahead of AdamW at 0.01, behind it at 0.02, ahead of the random mask at 0.02" in words


@pytest.mark.parametrize(
    ("fisher_traces", "random_traces", "expected", "words"),
    [
        ([10, 11, 12], [20, 21, 22], (1, 1), "11 ± 1; flatter than AdamW (60 ± 10), flatter than the random mask"),
        ([10, 11, 12], [10, 11, 12], (1, 0), "flatter than AdamW (60 ± 10), as flat as the random mask (11 ± 1)"),
        ([90, 91, 92], [80, 81, 82], (-1, -1), "sharper than AdamW (60 ± 10), sharper than the random mask (81 ± 1)"),
        ([52, 60, 68], [80, 90, 99], (0, 1), "as flat as AdamW (60 ± 10), flatter than the random mask"),
    ],
)
def test_flatness_is_judged_beyond_the_seeds_too(fisher_traces, random_traces, expected, words):
    same = [1.80, 1.81, 1.82]
    verdict = verdict_on(same, same, same, fisher_traces, [50, 60, 70], random_traces)
    assert (verdict.flatter_than_base, verdict.flatter_than_random) == expected
    assert verdict.flattest == (expected == (1, 1))
    assert words in sentences(verdict, MADE_UP)


def test_flatness_is_judged_at_the_best_rate_of_the_base():
    scores = {
        (ADAMW, 0.01): [1.9] * 3,
        (ADAMW, 0.02): [1.7] * 3,
        **{(method, 0.01): [1.8] * 3 for method in (FISHER, SECOND_MOMENT, RANDOM)},
    }
    results = made_up_results(scores)
    settings = traced(MADE_UP, [run for runs in results.runs.values() for run in runs])
    assert set(settings) == {(ADAMW, 0.02)} | {(m, lr) for m in (FISHER, SECOND_MOMENT, RANDOM) for lr in MADE_UP.lrs}
    # Sharp at its own best rate, flat at that of the base: the second is what counts.
    traces = {setting: [100.0] * 3 for setting in settings} | {(FISHER, 0.01): [900.0] * 3, (FISHER, 0.02): [10.0] * 3}
    verdict, _ = judge(replace(results, traces=traces))
    assert verdict.flattest
    assert "Hessian trace at 0.02: 10 ± 0" in sentences(verdict, MADE_UP)


def test_gain_over_a_control_at_the_end_of_the_grid_is_said_with_care():
    wide = replace(MADE_UP, lrs=(0.005, 0.01, 0.02))
    verdict = verdict_on(fisher=[1.70, 1.71, 1.72], adamw=[1.80, 1.81, 1.82], random=[1.79, 1.80, 1.81])
    assert "could catch up" in sentences(verdict, MADE_UP)
    assert "could catch up" not in sentences(verdict, wide)


@pytest.mark.parametrize(
    ("first", "second", "resolution", "expected"),
    [
        ((98.0, 0.1), (97.0, 0.5), 0.0, 1),
        ((97.0, 0.1), (98.0, 0.5), 0.0, -1),
        ((97.6, 0.1), (97.0, 0.7), 0.0, 0),
        ((97.1, 0.0), (97.0, 0.0), 0.125, 0),
        ((97.1, 0.0), (97.0, 0.0), 0.05, 1),
        ((98.0, None), (97.0, 0.1), 0.0, 0),
        ((float("nan"), 0.1), (97.0, 0.1), 0.0, -1),
        ((97.0, 0.1), (float("inf"), 0.1), 0.0, 1),
        ((float("nan"), None), (float("nan"), None), 0.0, 0),
    ],
)
def test_a_difference_counts_beyond_the_larger_spread(first, second, resolution, expected):
    assert compare(Estimate(*first), Estimate(*second), True, resolution) == expected
    if np.isfinite([first[0], second[0]]).all():
        assert compare(Estimate(*first), Estimate(*second), False, resolution) == -expected


def test_best_learning_rate_is_chosen_on_validation_and_never_a_diverged_one():
    runs = []
    for method in MADE_UP.methods:
        for seed in range(2):
            # Better on test, worse on validation: must lose.
            runs.append(replace(made_up_run(method, 0.01, seed, 2.0), test=0.5))
            runs.append(made_up_run(method, 0.02, seed, 1.9))
    assert set(best_lrs(MADE_UP, runs).values()) == {0.02}
    diverged = [replace(run, curve=(1.0, float("nan"))) if run.job.lr == 0.02 and run.job.seed else run for run in runs]
    assert set(best_lrs(MADE_UP, diverged).values()) == {0.01}
    accuracy = replace(MADE_UP, higher_is_better=True)
    assert set(best_lrs(accuracy, runs).values()) == {0.01}


def test_collect_keeps_score_time_and_bytes_apart():
    results = made_up_results({(method, 0.01): [1.0, 2.0, 3.0] for method in MADE_UP.methods})
    row = results.row(FISHER)
    assert (row.score.mean, row.score.std) == (2.0, 1.0)
    assert row.lr == 0.01
    assert row.seconds_per_step == pytest.approx(np.median([0.02, 0.03]))
    assert row.optimizer_bytes == 10.0
    steps, mean, deviation = mean_curve(row.runs)
    assert (steps.tolist(), mean.tolist(), deviation.tolist()) == ([10, 20], [3, 2], [1, 1])


def test_every_enhanced_method_has_its_two_controls():
    for part in (*FULL.parts, *QUICK.parts):
        assert len({method.name for method in part.methods}) == len(part.methods)
        for method in part.methods:
            assert part.control(method, "base").curvature is None
            assert part.control(method, "random").curvature == "random"
            picture.ink_of(method)


def test_base_also_runs_at_the_rate_of_flat_coordinates():
    for part in (*FULL.parts, *QUICK.parts):
        assert [later / earlier for earlier, later in pairwise(part.lrs)] == pytest.approx(
            [1 + part.kappa] * (len(part.lrs) - 1)
        )


# --- table, picture, the whole ----------------------------------------------------------------------------------------


def plain_console(width: int = 80) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=width, color_system=None, force_terminal=False), stream


def test_table_fits_eighty_columns_and_marks_one_best_a_part():
    results = made_up_results(
        {(method, 0.01): [1.801, 1.812, 1.833] for method in MADE_UP.methods},
        {method: [1000.0, 2000.0, 3000.0] for method in MADE_UP.methods},
    )
    accuracy = replace(results, part=replace(MADE_UP, higher_is_better=True, title=FULL.parts[0].title))
    console, stream = plain_console()
    console.print(build_table([accuracy, results]))
    lines = stream.getvalue().splitlines()
    assert "…" not in stream.getvalue()
    _, row = (line.split() for line in lines if line.strip().startswith("AdmIRE, second moment"))
    assert row == ["AdmIRE,", "second", "moment", "0.01", "1.815", "±", "0.016", "2000", "±", "1000", "0.0250", "10.00"]


def test_report_names_where_ire_helped_and_where_not():
    good, bad = [1.70, 1.71, 1.72], [1.80, 1.81, 1.82]
    scores = {(FISHER, 0.01): good, (SECOND_MOMENT, 0.01): bad, (ADAMW, 0.01): bad, (RANDOM, 0.01): bad}
    sharp, flat = [100.0, 101.0, 102.0], [10.0, 11.0, 12.0]

    def summary(second_moment: Sequence[float], random: Sequence[float]) -> list[str]:
        traces = {FISHER: sharp, SECOND_MOMENT: second_moment, ADAMW: sharp, RANDOM: random}
        console, stream = plain_console(width=400)
        print_report(console, [made_up_results(scores, traces)])
        assert "AdmIRE, Fisher: helped" in stream.getvalue()
        return [line.rpartition(": ")[2].rstrip(" .") for line in stream.getvalue().splitlines()[-4:]]

    assert summary(second_moment=flat, random=sharp) == ["AdmIRE, Fisher", "AdmIRE, second moment", "none", "none"]
    assert summary(second_moment=flat, random=flat) == ["AdmIRE, Fisher", "none", "AdmIRE, second moment", "none"]
    assert summary(second_moment=sharp, random=sharp) == ["AdmIRE, Fisher", "none", "none", "AdmIRE, second moment"]


def test_estimates_are_printed_with_their_deviation():
    assert format_estimate(Estimate(1.23456, 0.01234), 3) == "1.235 ± 0.012"
    assert format_estimate(Estimate(1.23456, None), 2) == "1.23"


def test_picture_survives_a_diverged_run_and_a_negative_trace(tmp_path):
    scores = {(method, 0.01): [1.8, 1.9] for method in MADE_UP.methods}
    text = made_up_results({**scores, (FISHER, 0.02): [float("nan"), 1.0]}, {m: [-1.0, 2.0] for m in MADE_UP.methods})
    digits = replace(text, part=replace(MADE_UP, higher_is_better=True))
    figure = picture.draw(digits, text, "made up")
    assert [axes.get_legend() is not None for axes in figure.axes] == [True, False, True, False]
    picture.save(figure, tmp_path / "made-up.png")
    assert (tmp_path / "made-up.png").read_bytes().startswith(b"\x89PNG")
