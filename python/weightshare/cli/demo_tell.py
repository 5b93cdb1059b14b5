"""The words of the demo: what each step does, and what its numbers mean."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from weightshare.cli.demo_sites import UNRELATED, Site
from weightshare.cli.demo_text import Story, accuracy_table, matrix_rows, site_rows
from weightshare.cli.demo_training import FAMILIES, TOLERANCE, Outcome
from weightshare.cli.demo_verdict import FamilyVerdict, exceptions, last_word, verdict_rows


def setting(story: Story, sites: Sequence[Site]) -> None:
    """Say who the sites are."""
    story.title("1. Six sites, few images")
    story.paragraph(
        "Six sites learn to read handwritten digits (real ones, 8 x 8 pixels). Five see the same "
        "digits, each in its own way. The sixth has its pixels in another order, so what it "
        "learns should be of no use to the others. No image is given to two sites, and each site "
        "is tested on images that none has trained on."
    )
    story.table(["site", "what it sees", "trains on", "tested on"], site_rows(sites))


def sharing(story: Story, sites: Sequence[Site], found: Mapping[str, Outcome], shown: str) -> None:
    """Tell the first draw: how alike the models are, who takes from whom, when it stopped."""
    outcome = found[shown]
    names = [site.name for site in sites]
    _alone(story, found)
    story.title(f"3. How alike have the models become? ({shown})")
    story.paragraph(
        "A model is a set of weights. Take the start away, and what a site has learned is left. "
        "The cosine of what two sites have learned is 1 for the same, 0 for nothing in common:"
    )
    story.table(["", *names], matrix_rows(sites, outcome.task_cosine, "{:.2f}"))
    story.paragraph(_likeness(sites, outcome))
    story.table(["", *names], matrix_rows(sites, outcome.cosine, "{:.2f}"))
    story.title(f"4. Who takes how much from whom? ({shown})")
    story.paragraph(
        "From the first table, its entries squared and negative ones left out, comes a mixing "
        "matrix: the percentage that each row's model takes from each column's model at one step."
    )
    story.table(["", *names], matrix_rows(sites, 100.0 * outcome.A, "{:.1f}"))
    story.paragraph(
        "It is ws.mixing.laplacian. Its stop balances every site's own loss against its distance "
        "to similar sites, by a strength that we set. With ws.mixing.sinkhorn, the other usual "
        "choice, the size of the step would silently set that strength."
    )
    story.title("5. Merge and update, to a stop")
    story.paragraph(
        "Now, again and again: each site makes a step on its own images, then all models are "
        "mixed by that matrix."
    )
    story.lines([_stop(name, outcome) for name, outcome in found.items()])


def _alone(story: Story, found: Mapping[str, Outcome]) -> None:
    story.title("2. Every site trains alone")
    kinds = [
        f"{family.name} ({family.words}, "
        f"{sum(array.size for array in found[family.name].start.values()):,} weights)"
        for family in FAMILIES
    ]
    story.paragraph(
        f"Two kinds of model: {' and '.join(kinds)}. All sites begin with the same random "
        "weights, and train on their own images, by SGD with warm restarts."
    )


def _likeness(sites: Sequence[Site], outcome: Outcome) -> str:
    related = np.array([site.related for site in sites])
    pairs = np.triu(np.outer(related, related), 1)
    strangers = np.outer(related, ~related)
    inside = outcome.task_cosine[pairs]
    outside = outcome.task_cosine[strangers]
    start = outcome.cosine[strangers]
    seen = (
        f"so similarity finds {UNRELATED} without being told"
        if outside.max() < inside.min()
        else f"so similarity does not tell {UNRELATED} from all the others"
    )
    return (
        f"Two related sites: {inside.min():.2f} to {inside.max():.2f}. {UNRELATED.capitalize()} "
        f"and a related one: {outside.min():.2f} to {outside.max():.2f}; {seen}. With the start "
        f"left in, the latter cosines are {start.min():.2f} to {start.max():.2f}, because all "
        "models began as one:"
    )


def _stop(name: str, outcome: Outcome) -> str:
    fit = outcome.fit
    if fit.converged:
        why = f"stopped: a step changes about {100 * TOLERANCE:g} % of the weights"
    else:
        why = f"not settled ({fit.reason})"
    return f"{name:<8} {fit.iterations:>4} steps, {why}"


def gains(
    story: Story,
    sites: Sequence[Site],
    outcomes: Mapping[str, Sequence[Outcome]],
    verdicts: Mapping[str, FamilyVerdict],
) -> None:
    """Tell what sharing did to every site, over all draws, and what follows."""
    draws = len(next(iter(outcomes.values())))
    story.title("6. Did it help?")
    story.paragraph(
        f"Held-out images read right, in per cent: the mean of {draws} draws, each with other "
        f"training images and another start, on {len(sites[0].y_held):,} images a site."
    )
    story.lines(
        [
            "alone          before: trained on its own images",
            "longer         the same, and as many steps more as sharing took",
            "equally        shared with all sites alike, the unrelated one too",
            "by similarity  after: shared as above",
            "gain           by similarity - longer, in points, ± standard error",
        ]
    )
    for name, found in outcomes.items():
        story.title(name)
        head, rows = accuracy_table(found, sites, verdicts[name])
        story.table(head, rows)
        story.table(["", "gain", "sharing"], verdict_rows(verdicts[name], UNRELATED))
        story.paragraph(exceptions(verdicts[name], sites))
    story.paragraph(last_word(list(verdicts.values()), UNRELATED))
    story.paragraph(
        f"(Helps or hurts: zero is outside the 95 % interval of {draws} draws. They share most "
        "held-out images, so the true intervals are somewhat wider.)"
    )


def saved(story: Story, recipe: Path, target: Path) -> None:
    """Say what is saved, and show the command that merges it."""
    story.title("7. From models to one checkpoint")
    story.paragraph(
        "The shared models of the first draw are saved, a folder for each site, with a recipe "
        "that merges them into one: the start plus the weighted mean of what they learned, "
        "similar sites weighing more. This is the command, and what it prints:"
    )
    paths = f"{shlex.quote(str(recipe))} {shlex.quote(str(target))}"
    story.lines(["$ weightshare merge --overwrite \\", f"    {paths}"])


def merged(
    story: Story, sites: Sequence[Site], accuracy: Mapping[str, Mapping[str, float]]
) -> None:
    """Tell how the merged model does on every site."""
    story.blank()
    story.paragraph(
        "One model for everyone, on the held-out images of every site, in per cent. The last "
        "column merges, by the same weights, the models from before the sharing."
    )
    rows = [
        [site.name, *(f"{100 * values[site.name]:.1f}" for values in accuracy.values())]
        for site in sites
    ]
    story.table(["site", "its own", "merged", "merged before sharing"], rows)
    story.paragraph(_merged_sentence(sites, accuracy))


def _merged_sentence(sites: Sequence[Site], accuracy: Mapping[str, Mapping[str, float]]) -> str:
    related = [site.name for site in sites if site.related]
    own, one, before = (
        100 * float(np.mean([values[name] for name in related])) for values in accuracy.values()
    )
    better = [name for name in related if accuracy["merged"][name] > accuracy["own"][name]]
    gained = f", and more than the site's own at {', '.join(better)}" if better else ""
    alone, together = (100 * accuracy[way][UNRELATED] for way in ("own", "merged"))
    advice = ": that site needs a model of its own" if together < alone - 5.0 else ""
    return (
        f"Related sites, on average: {own:.1f} by their own models, {one:.1f} by the one merged "
        f"model{gained}; {before:.1f} by the merge before sharing. At {UNRELATED}, where guessing "
        f"gives 10: {alone:.1f} by its own, {together:.1f} by the merged model{advice}."
    )


def end(story: Story, out: Path, commands: Sequence[str], seconds: float) -> None:
    """Say where everything is, and what to try next."""
    story.title(f"8. Where it is, and what to try next ({seconds:.1f} s)")
    rows = [
        ("recipe.yml", "the recipe: change a weight, merge again"),
        ("mlp/, softmax/", "start, and a shared model for each site"),
        ("merged/", "the merged model"),
        ("result.json", "every number above"),
    ]
    story.lines([f"{out}", *(f"  {name:<16}{what}" for name, what in rows)])
    story.lines(commands)
