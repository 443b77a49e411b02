"""``python -m bench``: measure a cloud through its API. Exit code 0 when all was measured, 1 when
a part could not be, 2 when our own cloud did not start. A missed target is a figure, not a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench import footprint, guest, lifecycle, placement, reads
from bench.client import Credentials, Refused
from bench.cloud import NotStarted, Plan, Target, foreign_cloud, own_cloud
from bench.figures import FIGURES
from bench.measure import Results, say
from bench.processes import Others, matching
from bench.report import as_json, save, show

HOSTS = 4
"""Of our own cloud, as many as the Nova that was measured had: each takes 50 servers."""
_RESULTS = Path(__file__).parents[1] / "build" / "bench"
_WIDTH = 140


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    parts: tuple[str, ...]
    rounds: int
    credentials: Credentials | None
    """None measures a cloud of our own."""
    words: dict[str, str]
    processes: str
    microversion: str
    fill: int

    def cloud(self, **env: str) -> AbstractAsyncContextManager[Target]:
        """The cloud for a part; our own is a fresh one, with these changes to its environment."""
        if self.credentials is None:
            words = ("--driver", "fake", "--hosts", str(HOSTS))
            return own_cloud(Plan(words, self.microversion, env))
        find = matching(self.processes)
        return foreign_cloud(self.credentials, self.words, find, self.microversion)


Part = Callable[[Options, Results], Awaitable[None]]


async def _lifecycle(options: Options, results: Results) -> None:
    async with options.cloud() as target:
        await lifecycle.rounds(target, options.rounds, results)


async def _reads(options: Options, results: Results) -> None:
    async with options.cloud(**placement.SILENCE) as target:
        await reads.rounds(target, options.rounds, results, options.fill)


async def _lists(options: Options, results: Results) -> None:
    async with options.cloud(**placement.SILENCE) as target:
        await reads.growth(target, options.rounds, results)


async def _guest(options: Options, results: Results) -> None:
    await guest.rounds(options.microversion, options.rounds, results)


async def _footprint(options: Options, results: Results) -> None:
    await footprint.rounds(options.rounds, results)


async def _placement(options: Options, results: Results) -> None:
    await placement.rounds(options.microversion, options.rounds, results)


PARTS: dict[str, Part] = {
    "lifecycle": _lifecycle,
    "reads": _reads,
    "lists": _lists,
    "placement": _placement,
    "guest": _guest,
    "footprint": _footprint,
}
_FOREIGN = ("lifecycle", "reads")
"""Parts that any cloud can be asked for."""
app = typer.Typer(pretty_exceptions_enable=False)


def _named(variable: str) -> Any:
    """An option that the environment may give, by OpenStack's own name."""
    return typer.Option(envvar=variable, show_default=False)


# Not from the environment: nobody's cloud is to be put under load by mistake.
_AUTH_URL = typer.Option(help="Of Keystone; without it a cloud of its own is measured.")
_PROCESSES = typer.Option(help="Regular expression of the cloud's command lines on this machine.")
_FILL = typer.Option(max=1000, help="Servers to make for the reads of a cloud not its own.")
_OUTPUT = typer.Option(help="JSON report; default: build/bench/<now>.json.")
_BESIDE = typer.Option(help="An earlier report to compare with.")
_NOVA = (
    r"uwsgi-[a-z]+|nova-(?:api|compute|conductor|scheduler)|neutron-(?:server|rpc-server|periodic)"
    r"|keystone-wsgi|glance-api|placement-api|mariadbd|beam\.smp|memcached"
)


@app.command()
def bench(  # noqa: PLR0917  # the contract of the command
    only: Annotated[str, typer.Option(help=f"Some of: {' '.join(FIGURES)}.")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    auth_url: Annotated[str, _AUTH_URL] = "",
    username: Annotated[str, _named("OS_USERNAME")] = "",
    password: Annotated[str, _named("OS_PASSWORD")] = "",
    project: Annotated[str, _named("OS_PROJECT_NAME")] = "",
    user_domain: Annotated[str, _named("OS_USER_DOMAIN_NAME")] = "default",
    project_domain: Annotated[str, _named("OS_PROJECT_DOMAIN_NAME")] = "default",
    region: Annotated[str, _named("OS_REGION_NAME")] = "",
    flavor: Annotated[str, typer.Option(help="Name or id; as image and network.")] = "",
    image: Annotated[str, typer.Option()] = "",
    network: Annotated[str, typer.Option(help="Or none.")] = "none",
    processes: Annotated[str, _PROCESSES] = _NOVA,
    microversion: Annotated[str, typer.Option(help="Of compute.")] = "2.96",
    fill: Annotated[int, _FILL] = 0,
    output: Annotated[Path | None, _OUTPUT] = None,
    beside: Annotated[Path | None, _BESIDE] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw curves beside the report.")] = False,
) -> None:
    """Measure a cloud: a table to standard output, JSON to a file."""
    names = _parts(only.split(), bool(auth_url))
    login = Credentials(
        auth_url, username, password, project, user_domain, project_domain, region or None
    )
    words = {"flavor": flavor, "image": image, "network": network}
    mine = None if not auth_url else login
    options = Options(names, rounds, mine, words, processes, microversion, fill)
    path = output or _RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    code, report = asyncio.run(_run(options, path, beside))
    if plot:
        _draw(report, path)
    raise SystemExit(code)


def _draw(report: Mapping[str, Any], path: Path) -> None:
    from bench.plot import draw  # noqa: PLC0415  # it needs matplotlib, which is large

    for file in draw(report, path.with_suffix("")):
        say(f"drawn: {file}")


def _parts(only: Sequence[str], foreign: bool) -> tuple[str, ...]:
    known = _FOREIGN if foreign else tuple(PARTS)
    if unknown := set(only) - set(known):
        where = "of a cloud that is not our own " if foreign else ""
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} {where}cannot be measured")
    return tuple(name for name in known if not only or name in only)


async def _run(options: Options, path: Path, beside: Path | None) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    results = Results()
    about = {
        "cloud": options.credentials.auth_url if options.credentials else "duranova up",
        "rounds": options.rounds,
        "microversion": options.microversion,
    }
    code = 0
    find = matching(options.processes) if options.credentials else dict
    for name in options.parts:
        others = Others(find)
        try:
            await PARTS[name](options, results)
        except NotStarted as error:
            say(f"could not start: {error}")
            code = 2
            break
        except (Refused, LookupError, OSError) as error:  # the other parts can still be measured
            say(f"{name} could not be measured: {type(error).__name__}: {error}")
            code = 1
        results.others_percent[name] = round(others.percent(), 1)
        save(path, as_json(results, about))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    if results.figures:
        show(console, results, beside)
        console.print(f"\n{path}", soft_wrap=True)
    return code, as_json(results, about)


if __name__ == "__main__":
    app()
