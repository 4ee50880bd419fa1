"""The command ``torch-ire``."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

# Distribution and module names of the extra torch-ire[demo].
_DEMO_MODULES = {"matplotlib": "matplotlib", "rich": "rich", "scikit-learn": "sklearn"}


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``torch-ire``; each subcommand sets ``command``, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(prog="torch-ire", description="Flat minima for PyTorch.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train IRE beside its base optimizers on real data (3 minutes, two cores)")
    demo.add_argument("--quick", action="store_true", help="fewer steps, seeds and learning rates: 40 seconds")
    demo.add_argument("--seeds", type=_positive, metavar="N", help="runs of each setting (default 3, quick 2)")
    demo.add_argument(
        "--out", type=Path, default=Path("torch-ire-demo.png"), metavar="FILE.png", help="picture (default %(default)s)"
    )
    demo.set_defaults(command=_demo)

    theory = commands.add_parser("theory", help="measure the paper's theory against its closed forms (2 minutes)")
    theory.add_argument("--quick", action="store_true", help="fewer samples, no end-to-end runs")
    theory.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all random numbers (default %(default)s)"
    )
    theory.add_argument("--out", type=Path, metavar="FILE.png", help="picture; none without matplotlib")
    theory.set_defaults(command=_theory)

    config = commands.add_parser("config", help="print the build and the implementation in use")
    config.set_defaults(command=_config)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0, 1 if the command failed or cannot run here, 130 after Ctrl-C. Wrong arguments exit with 2.
    """
    arguments = build_parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
    except KeyboardInterrupt:
        print("torch-ire: interrupted", file=sys.stderr)
        return 130
    return status


def _demo(arguments: argparse.Namespace) -> int:
    missing = [name for name, module in _DEMO_MODULES.items() if find_spec(module) is None]
    if missing:
        print(
            f"torch-ire demo: missing {', '.join(missing)}; install them with: pip install 'torch-ire[demo]'",
            file=sys.stderr,
        )
        return 1
    if arguments.out.suffix.lower() != ".png":
        print(f"torch-ire demo: --out must name a .png file, got {arguments.out}", file=sys.stderr)
        return 1
    if not os.access(arguments.out.resolve().parent, os.W_OK):
        print(f"torch-ire demo: --out must be in a folder that can be written to, got {arguments.out}", file=sys.stderr)
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without Unicode prints a question mark for the plus-minus sign instead of raising an error.
        sys.stdout.reconfigure(errors="replace")
    # Imported here, so that the other commands do not need the extra.
    from rich.console import Console

    from torch_ire.demo.config import FULL, QUICK
    from torch_ire.demo.session import run
    from torch_ire.demo.workers import worker_count

    plan = QUICK if arguments.quick else FULL
    seeds = arguments.seeds or plan.seeds
    run(plan, seeds, picture_path=arguments.out, console=Console(), workers=worker_count())
    return 0


def _theory(arguments: argparse.Namespace) -> int:
    from torch_ire.theory import reproduce

    picture = arguments.out
    if picture is None and find_spec("matplotlib") is not None:
        picture = Path("torch-ire-theory.png")
    outcome = reproduce(picture, quick=arguments.quick, seed=arguments.seed)
    return 0 if all(line.holds for line in outcome.comparisons) else 1


def _config(_: argparse.Namespace) -> int:
    import torch_ire

    torch_ire.show_config()
    return 0


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
