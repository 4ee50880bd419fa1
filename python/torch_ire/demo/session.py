"""The whole demo: data, runs, traces, table, verdict, picture."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from torch_ire.demo import data, picture
from torch_ire.demo.config import Part, Plan
from torch_ire.demo.report import print_report
from torch_ire.demo.results import Setting, by_settings, collect, traced
from torch_ire.demo.sharpness import TraceJob, trace_of_run
from torch_ire.demo.training import Job, Run, train
from torch_ire.demo.workers import Workers


def jobs_of(part: Part, seeds: int) -> list[Job]:
    """Every method at every learning rate with every seed.

    The methods are innermost, so that a slow phase of the machine affects all of them.
    """
    return [Job(part, method, lr, seed) for seed in range(seeds) for lr in part.lrs for method in part.methods]


def run(plan: Plan, seeds: int, picture_path: Path, console: Console, workers: int) -> None:
    """Trains, prints the table and the verdict, saves the picture.

    Args:
        plan: what to train.
        seeds: runs of each setting, at least 1.
        picture_path: PNG to write.
        console: for the output.
        workers: number of processes, of one thread each; 1 runs everything in this one.
    """
    start = perf_counter()
    console.print("IRE (arXiv 2405.20763) beside its base optimizers, without a download:", style="bold")
    for part in plan.parts:
        console.print(f"- {part.subject}")
    if plan.caution:
        console.print(plan.caution, style="yellow")
    datasets: dict[str, data.Dataset] = {part.name: data.load(part) for part in plan.parts}
    with Workers(datasets, workers) as pool, _progress(console) as progress:
        runs, traces = _measure(plan, seeds, pool, progress)
    results = [
        collect(part, runs[part.name], traces[part.name], _resolution(part, datasets[part.name])) for part in plan.parts
    ]
    print_report(console, results)
    if plan.caution:
        console.print(plan.caution, style="yellow")
    digits, text = results
    picture.save(picture.draw(digits, text, _settings(seeds, plan)), picture_path)
    console.print(f"Picture: {picture_path} ({perf_counter() - start:.0f} s in all)", soft_wrap=True)


def _measure(
    plan: Plan, seeds: int, pool: Workers, progress: Progress
) -> tuple[dict[str, list[Run]], dict[str, dict[Setting, list[float]]]]:
    jobs = [job for part in plan.parts for job in jobs_of(part, seeds)]
    bars: dict[str, TaskID] = {
        part.name: progress.add_task(part.title, total=sum(job.part.steps for job in jobs if job.part == part))
        for part in plan.parts
    }
    outcomes = pool.run(train, jobs, lambda job, steps: progress.advance(bars[job.part.name], steps))
    runs: dict[str, list[Run]] = {part.name: [run for run in outcomes if run.job.part == part] for part in plan.parts}
    trace_jobs = [
        TraceJob(run, plan.probes)
        for part in plan.parts
        for setting in traced(part, runs[part.name])
        for run in by_settings(runs[part.name])[setting]
    ]
    bars["traces"] = progress.add_task("Hessian traces", total=len(trace_jobs))
    values = pool.run(trace_of_run, trace_jobs, lambda job, steps: progress.advance(bars["traces"], steps))
    # The last counts of a worker may arrive after its last result.
    for bar in progress.tasks:
        progress.update(bar.id, completed=bar.total)
    traces: dict[str, dict[Setting, list[float]]] = {part.name: {} for part in plan.parts}
    for trace_job, value in zip(trace_jobs, values, strict=True):
        job = trace_job.run.job
        traces[job.part.name].setdefault((job.method, job.lr), []).append(value)
    return runs, traces


def _resolution(part: Part, dataset: data.Dataset) -> float:
    # One image is the smallest difference of an accuracy; a loss has none.
    return 100.0 / len(dataset.test) if part.higher_is_better else 0.0


def _settings(seeds: int, plan: Plan) -> str:
    part = plan.parts[0]
    words = (
        f"{seeds} seed{'s' * (seeds > 1)}; kappa {part.kappa:g}, gamma {part.gamma:g}, a new mask every "
        f"{part.mask_interval} steps; each method at its best learning rate on validation data"
    )
    return f"{words}\n{plan.caution}" if plan.caution else words


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )
