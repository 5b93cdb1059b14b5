"""What the numbers of the demo say: gains over several draws, and a word for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightshare.cli.demo_sites import Site
from weightshare.cli.demo_training import Outcome

_WORDS = {"helps": "helps", "hurts": "hurts", "unclear": "no clear difference"}

# Student's t, two-sided 95 %, by the number of draws.
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


@dataclass(frozen=True)
class Gain:
    """A mean gain in accuracy over draws, its standard error, and what they say together."""

    mean: float
    error: float
    draws: int

    @property
    def word(self) -> str:
        """``"helps"`` or ``"hurts"`` when zero lies outside the 95 % interval, else ``"unclear"``.

        Examples
        --------
        >>> Gain(0.05, 0.01, 5).word, Gain(-0.05, 0.01, 5).word, Gain(0.02, 0.01, 5).word
        ('helps', 'hurts', 'unclear')
        """
        reach = _STUDENT[self.draws] * self.error
        if self.mean - reach > 0.0:
            return "helps"
        return "hurts" if self.mean + reach < 0.0 else "unclear"

    @property
    def text(self) -> str:
        """The gain in points.

        Examples
        --------
        >>> Gain(0.0512, 0.0104, 5).text
        '+5.1 ± 1.0'
        """
        mean = round(100 * self.mean, 1) + 0.0  # no -0.0
        return f"{mean:+.1f} ± {100 * self.error:.1f}"

    def to_json(self) -> dict[str, object]:
        """Plain numbers and the word; accuracies are shares, not points."""
        return {"mean": self.mean, "standard_error": self.error, "verdict": self.word}


def gain_of(values: Sequence[float]) -> Gain:
    """Return the mean and its standard error over draws.

    Examples
    --------
    >>> gain_of([0.1, 0.2, 0.3]).text
    '+20.0 ± 5.8'
    """
    spread = float(np.std(values, ddof=1))
    return Gain(float(np.mean(values)), spread / math.sqrt(len(values)), len(values))


@dataclass(frozen=True)
class FamilyVerdict:
    """The gains of one family over all draws, against as many steps on alone.

    `sites` has the gain of sharing by similarity at each site; `related` its mean over the
    related sites, and `others` that without `best`, the site that gains most; `unrelated` that
    at the unrelated site; the last two are the same for sharing equally with all.
    """

    sites: dict[str, Gain]
    related: Gain
    best: str
    others: Gain
    unrelated: Gain
    equally_related: Gain
    equally_unrelated: Gain

    def to_json(self) -> dict[str, object]:
        """Every gain as plain numbers."""
        return {
            "baseline": "as many steps alone",
            "sites": {name: gain.to_json() for name, gain in self.sites.items()},
            "related": self.related.to_json(),
            "related_without_best": {"best": self.best, **self.others.to_json()},
            "unrelated": self.unrelated.to_json(),
            "equally_related": self.equally_related.to_json(),
            "equally_unrelated": self.equally_unrelated.to_json(),
        }


def judge(outcomes: Sequence[Outcome], sites: Sequence[Site]) -> FamilyVerdict:
    """Return the verdict on one family.

    Parameters
    ----------
    outcomes : sequence of Outcome
        One for each draw.
    sites : sequence of Site
        Of any draw, for names.
    """
    related = np.array([site.related for site in sites])
    by_way = {
        way: np.array([outcome.accuracies[way] for outcome in outcomes])
        for way in outcomes[0].accuracies
    }
    gains = by_way["similarity"] - by_way["longer"]
    equal = by_way["equally"] - by_way["longer"]
    best = int(np.argmax(np.where(related, gains.mean(axis=0), -np.inf)))
    others = related & (np.arange(len(sites)) != best)
    return FamilyVerdict(
        {site.name: gain_of(gains[:, k]) for k, site in enumerate(sites)},
        related=gain_of(gains[:, related].mean(axis=1)),
        best=sites[best].name,
        others=gain_of(gains[:, others].mean(axis=1)),
        unrelated=gain_of(gains[:, ~related].mean(axis=1)),
        equally_related=gain_of(equal[:, related].mean(axis=1)),
        equally_unrelated=gain_of(equal[:, ~related].mean(axis=1)),
    )


def verdict_rows(verdict: FamilyVerdict, unrelated: str) -> list[tuple[str, str, str]]:
    """Return what the numbers of one family say, a row for each question.

    Parameters
    ----------
    verdict : FamilyVerdict
        Its gains.
    unrelated : str
        The unrelated site's name.
    """
    asked = (
        ("related sites, by similarity", verdict.related),
        (f"the same but for {verdict.best}", verdict.others),
        ("related sites, equally", verdict.equally_related),
        (f"{unrelated}, by similarity", verdict.unrelated),
        (f"{unrelated}, equally", verdict.equally_unrelated),
    )
    return [(question, gain.text, _WORDS[gain.word]) for question, gain in asked]


def exceptions(verdict: FamilyVerdict, sites: Sequence[Site]) -> str:
    """Return a sentence about the related sites that sharing by similarity does not help."""
    parts = []
    for word in ("hurts", "unclear"):
        names = [
            site.name for site in sites if site.related and verdict.sites[site.name].word == word
        ]
        if names:
            parts.append(f"{_WORDS[word]} at {', '.join(names)}")
    if parts:
        return f"Sharing by similarity, site by site: {'; '.join(parts)}; helps at the others."
    return "Sharing by similarity helps at every related site."


def last_word(verdicts: Sequence[FamilyVerdict], unrelated: str) -> str:
    """Return the verdict on all families together."""
    words = {verdict.related.word for verdict in verdicts}
    if words == {"helps"}:
        first = "sharing by similarity helps the related sites here"
    elif "hurts" in words:
        first = "sharing by similarity hurts related sites here; train alone"
    else:
        first = "these draws do not show that sharing by similarity helps the related sites"
    kept = [verdict.unrelated.word for verdict in verdicts]
    equal = [verdict.equally_unrelated.word for verdict in verdicts]
    if "hurts" in kept:
        second = f"it does hurt {unrelated}: leave that site out"
    elif "hurts" in equal:
        second = f"it protects {unrelated}, which sharing equally would hurt"
    else:
        second = f"{unrelated} is not hurt in a way that these draws show"
    return f"Verdict: {first}, and {second}."
