"""``python -m chaos``: a cloud of its own under load, its processes killed at seeded moments, judged after
each round. Exit code 0 when every promise held, 1 when one was broken, 2 when it could not start."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console

from chaos.hypervisor import remove_host
from chaos.load import Load
from chaos.plan import Pace
from chaos.rounds import Hunt, Outcome, Prey
from chaos.screen import show_failure, show_round, show_summary
from chaos.slow import slow_down
from chaos.split import SplitCloud
from chaos.whole import WholeCloud
from cli.datadir import StartError

_GUEST = Path(__file__).parents[1] / "build" / "guest" / "tiny.qcow2"
_NO_GUEST = b"no bootable image, which the fake driver does not mind"
_LOG_WIDTH = 140


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    seed: int
    rounds: int
    driver: str
    hosts: int
    whole: bool
    pace: Pace
    settle_s: float
    data_dir: Path | None
    report: Path | None
    keep: bool


app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def chaos(  # noqa: PLR0917  # the contract of the command
    seed: Annotated[int, typer.Option(help="Decides everything but timings.")] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    driver: Annotated[str, typer.Option(help="fake, or libvirt (root; real guests).")] = "fake",
    hosts: Annotated[int | None, typer.Option(min=1, help="Default: 3 fake ones, 1 real.")] = None,
    split: Annotated[
        bool, typer.Option("--split/--whole", help="Separate processes, or `duranova up`.")
    ] = True,
    seconds: Annotated[float, typer.Option(min=1, help="Load of a round.")] = 20.0,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a round.")] = 30,
    kills: Annotated[int, typer.Option(min=0, help="Kills of a round.")] = 4,
    failures: Annotated[int, typer.Option(min=0, help="Injected failures of a round; fake.")] = 2,
    settle: Annotated[float, typer.Option(help="Seconds after which a round is stuck.")] = 240.0,
    data_dir: Annotated[
        Path | None, typer.Option(help="New; default: a temporary one, removed when all went well.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where to write the JSON report.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the data directory.")] = False,
) -> None:
    """Create, act and delete while processes are killed; then look whether anything was lost."""
    if driver not in ("fake", "libvirt"):
        raise typer.BadParameter("--driver is fake or libvirt")
    if driver == "libvirt" and hosts not in (None, 1):
        raise typer.BadParameter("--driver libvirt has one host")
    options = Options(
        seed=seed,
        rounds=rounds,
        driver=driver,
        hosts=hosts or (3 if driver == "fake" else 1),
        whole=not split,
        pace=Pace(seconds, requests, kills, failures),
        settle_s=settle,
        data_dir=data_dir,
        report=report,
        keep=keep,
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _LOG_WIDTH)
    raise SystemExit(asyncio.run(_run(options, console)))


async def _run(options: Options, console: Console) -> int:
    place = options.data_dir or Path(tempfile.mkdtemp(prefix="duranova-chaos-")) / "cloud"
    place.mkdir(parents=True, exist_ok=True)
    report = options.report or place.parent / f"{place.name}-report.json"
    with (place.parent / f"{place.name}-runner.log").open("w") as log:
        structlog.configure(logger_factory=structlog.WriteLoggerFactory(log))
        console.print(f"seed {options.seed}, {options.rounds} rounds in {place}", soft_wrap=True)
        try:
            outcomes = await _hunt(options, place, console)
        except StartError as error:
            console.print(f"[red]could not start: {error.message}[/]", soft_wrap=True)
            return 2
    show_summary(console, outcomes)
    found = {"seed": options.seed, "rounds": [o.as_json() for o in outcomes]}
    report.write_text(json.dumps(found, indent=2, default=str))
    if bad := next((o for o in outcomes if o.violations), None):
        show_failure(console, options.seed, bad, place / "log", report)
        return 1
    if options.data_dir is None and not options.keep:
        shutil.rmtree(place.parent if options.report else place)
    return 0


async def _hunt(options: Options, place: Path, console: Console) -> list[Outcome]:
    prey: Prey = (WholeCloud if options.whole else SplitCloud)(place, options.driver, options.hosts)
    outcomes: list[Outcome] = []
    try:
        if options.driver == "fake":
            await asyncio.to_thread(slow_down, prey.data_dir / "hosts", options.hosts)
        await prey.start()
        load = Load(prey.url, prey.data_dir / "clouds.yaml")
        await load.prepare(await asyncio.to_thread(_image, options.driver, place))
        hunt = Hunt(
            prey,
            load,
            options.seed,
            options.pace,
            options.settle_s,
            fake=options.driver == "fake",
            say=lambda text: console.print(f"  [dim]{text}[/]", soft_wrap=True),
            audit=await asyncio.to_thread(_has_audit),
        )
        for number in range(1, options.rounds + 1):
            outcomes.append(await hunt.round(number))
            show_round(console, f"round {number}", outcomes[-1])
            if outcomes[-1].violations:
                return outcomes  # later rounds would only tell of the same
        outcomes.append(await hunt.clean_up(options.rounds + 1))
        show_round(console, "everything deleted", outcomes[-1])
        await load.close()
    finally:
        await prey.close()
        if options.driver == "libvirt" and not options.keep:
            await asyncio.to_thread(remove_host, prey.data_dir)
    return outcomes


def _image(driver: str, place: Path) -> Path:
    if driver == "libvirt":
        return _GUEST
    image = place.parent / f"{place.name}-image"
    image.write_bytes(_NO_GUEST)
    return image


def _has_audit() -> bool:
    """Whether this version has ``duranova audit``."""
    line = [sys.executable, "-m", "cli.main", "audit", "--help"]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    app()
