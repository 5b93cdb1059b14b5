"""``weightshare demo``: the whole story on real data, from training to a merged checkpoint."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import weightshare
from weightshare.cli import demo_files as files
from weightshare.cli import demo_tell as tell
from weightshare.cli.demo_sites import UNRELATED, Site, draw_sites
from weightshare.cli.demo_text import Story
from weightshare.cli.demo_training import FAMILIES, WAYS, Outcome, held_out, run_family
from weightshare.cli.demo_verdict import FamilyVerdict, judge, last_word
from weightshare.cli.output import print_json
from weightshare.sharing import fuse

if TYPE_CHECKING:
    from tqdm import tqdm

DRAWS = 5
SHOWN = "mlp"  # the family whose similarity is shown, and whose models are merged


@click.command()
@click.option(
    "--out",
    default="weightshare-demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for models, recipe and results.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Key of all random numbers.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads; OMP_NUM_THREADS or all cores when not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo(out: Path, seed: int, threads: int | None, as_json: bool) -> None:
    """Train models on real digits, share their weights, merge them.

    Takes some seconds and downloads nothing. Running it again replaces the
    files that it wrote, and no others.

    \b
    Example:
      weightshare demo --out weightshare-demo
    """
    began = time.monotonic()
    files.claim_folder(out)
    story = Story(silent=as_json)
    sites, first = _first_draw(story, seed, threads)
    outcomes = {name: [outcome] for name, outcome in first.items()}
    _more_draws(outcomes, seed, threads)
    verdicts = {name: judge(found, sites) for name, found in outcomes.items()}
    tell.gains(story, sites, outcomes, verdicts)
    merged = _save_and_merge(story, out, sites, first, threads)
    result = {
        "schema": 1,
        "weightshare": weightshare.__version__,
        "seed": seed,
        "draws": DRAWS,
        "sites": [_site_json(site) for site in sites],
        "families": {
            name: _family_json(sites, found, verdicts[name]) for name, found in outcomes.items()
        },
        "verdict": last_word(list(verdicts.values()), UNRELATED),
        "merged": merged,
        "out": str(out),
        "next": _next_commands(out),
        "seconds": round(time.monotonic() - began, 2),
    }
    files.write_result(out, result)
    tell.end(story, out, _next_commands(out), time.monotonic() - began)
    if as_json:
        print_json(result)


def _random(seed: int, draw: int) -> np.random.Generator:
    return np.random.default_rng([seed, draw])


def _first_draw(
    story: Story, seed: int, threads: int | None
) -> tuple[list[Site], dict[str, Outcome]]:
    """Run the draw whose models are shown and saved, telling it step by step."""
    random = _random(seed, 0)
    sites = draw_sites(random)
    tell.setting(story, sites)
    found: dict[str, Outcome] = {}
    for family in FAMILIES:
        with _bar(f"merge and update, {family.name}", "step") as bar:

            def show(state: Any, bar: tqdm[Any] = bar) -> None:
                bar.set_postfix_str(f"change {state.change:.1e}", refresh=False)
                bar.update()

            found[family.name] = run_family(family, sites, random, threads=threads, callback=show)
    tell.sharing(story, sites, found, SHOWN)
    return sites, found


def _more_draws(outcomes: dict[str, list[Outcome]], seed: int, threads: int | None) -> None:
    with _bar("the same on other draws", "draw", DRAWS - 1) as bar:
        for draw in range(1, DRAWS):
            random = _random(seed, draw)
            sites = draw_sites(random)
            for family in FAMILIES:
                outcomes[family.name].append(run_family(family, sites, random, threads=threads))
            bar.update()


@contextmanager
def _bar(what: str, unit: str, total: int | None = None) -> Iterator[tqdm[Any]]:
    # imported here, so that --help does not wait for it
    from tqdm import tqdm

    on_terminal = sys.stderr.isatty()
    with tqdm(
        desc=what,
        total=total,
        unit=unit,
        file=sys.stderr,
        leave=not on_terminal,
        mininterval=0.1 if on_terminal else 5.0,
        dynamic_ncols=True,
    ) as bar:
        yield bar


def _save_and_merge(
    story: Story, out: Path, sites: list[Site], first: dict[str, Outcome], threads: int | None
) -> dict[str, Any]:
    """Save the first draw's models, merge them by a recipe, and evaluate the merged model."""
    for name, outcome in first.items():
        files.save_models(out / name, outcome, sites)
    shown = first[SHOWN]
    weights = files.merge_weights(shown.task_cosine)
    recipe, target = out / files.RECIPE, out / files.MERGED
    files.write_text(recipe, files.recipe_text(SHOWN, sites, weights))
    tell.saved(story, recipe, target)
    files.merge_by_recipe(recipe, target, threads=threads, quiet=story.silent)
    model = files.load_model(target)
    n = len(sites)
    # shares that sum to one cancel the start: this is the recipe on the models from before
    untrained = fuse(shown.alone, weights, threads=threads)
    merged: dict[str, Any] = {
        "recipe": str(recipe),
        "model": str(target),
        "weights": dict(zip([site.name for site in sites], weights, strict=True)),
        "accuracy": {
            "own": _by_site(sites, shown.accuracies["similarity"]),
            "merged": _by_site(sites, held_out([model] * n, sites)),
            "merged_before_sharing": _by_site(sites, held_out([untrained] * n, sites)),
        },
    }
    tell.merged(story, sites, merged["accuracy"])
    return merged


def _by_site(sites: Sequence[Site], values: Sequence[float]) -> dict[str, float]:
    return {site.name: float(value) for site, value in zip(sites, values, strict=True)}


def _site_json(site: Site) -> dict[str, object]:
    return {
        "name": site.name,
        "sees": site.sees,
        "related": site.related,
        "training": len(site.y),
        "held_out": len(site.y_held),
    }


def _family_json(
    sites: Sequence[Site], outcomes: Sequence[Outcome], verdict: FamilyVerdict
) -> dict[str, object]:
    first = outcomes[0]
    return {
        "parameters": sum(array.size for array in first.start.values()),
        "similarity": {
            "task_vectors": first.task_cosine.tolist(),
            "weights": first.cosine.tolist(),
        },
        "mixing": first.A.tolist(),
        "merge_and_update": {
            "converged": first.fit.converged,
            "reason": first.fit.reason,
            "steps": first.fit.iterations,
            "loss": first.fit.history["loss"][-1],
            "consensus": first.fit.history["consensus"][-1],
        },
        # by way of training, then by site: one number for each draw
        "accuracy": {
            way: {
                site.name: [outcome.accuracies[way][k] for outcome in outcomes]
                for k, site in enumerate(sites)
            }
            for way in WAYS
        },
        "gain": verdict.to_json(),
    }


def _next_commands(out: Path) -> list[str]:
    recipe, target, own = (
        shlex.quote(str(out / name)) for name in (files.RECIPE, files.MERGED, "my-merge")
    )
    return [
        f"weightshare inspect {target}",
        f"weightshare plan {recipe}",
        f"weightshare merge {recipe} {own}",
    ]
