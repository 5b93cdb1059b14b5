"""Recipes of several documents that use each other's outputs: planned in order, from headers."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from weightshare.checkpoint import Checkpoint, TensorInfo
from weightshare.merging.plan import FileCopy, MergePlan, PlannedModel
from weightshare.recipes.load import Document
from weightshare.recipes.members import Opener
from weightshare.recipes.planner import Options, Planner
from weightshare.recipes.reference import Reference
from weightshare.recipes.sources import SourceModel, SourceOpener


def plan_documents(
    documents: Sequence[Document], opener: SourceOpener, options: Options, opened: ExitStack
) -> tuple[MergePlan | None, list[str]]:
    """Plan every document that the final one needs.

    Parameters
    ----------
    documents : sequence of Document
        Of one recipe. The final one has no name, or is the last that no other uses.
    opener : SourceOpener
        Finds and opens the models that are no documents; it downloads none when the recipe is
        refused anyway.
    options : Options
        The caller's choices.
    opened : ExitStack
        Takes what lasts as long as the planning.

    Returns
    -------
    MergePlan or None, list of str
        The final document's plan with its stages, and every problem.
    """
    planners = [Planner(document, options) for document in documents]
    opener.download = not any(planner.problems for planner in planners)
    if len(planners) == 1:
        plan = planners[0].plan(opener)
        return plan, planners[0].problems
    graph = _Graph(planners)
    if graph.problems:
        return None, graph.problems + _told(graph, range(len(planners)))
    stages: dict[str, StageModel | None] = {}
    plans: list[tuple[str, MergePlan]] = []
    final: MergePlan | None = None
    for index in graph.order:
        planner, last = planners[index], index == graph.final
        own = _DocumentOpener(opener, graph.titles[index], stages, planner.problems)
        # Of those that come first only the weights and their companions are needed.
        planner.options = options if last else replace(options, card=False)
        plan = planner.plan(own)
        name = planner.recipe.name
        if last:
            final = None if plan is None else _settled(plan, stages)
        elif name is not None:
            stages[name] = None if plan is None else _stage(name, plan, stages, opened)
            plans += [] if plan is None else [(name, stages[name].plan)]  # type: ignore[union-attr]
    problems = _told(graph, graph.order)
    if final is None or problems:
        return None, problems
    warnings = (*graph.warnings, *final.warnings)
    return replace(
        final, recipe=documents[0].whole, stages=tuple(plans), warnings=warnings
    ), problems


class _Graph:
    """Which document uses which: their order, the final one, and what is wrong with them."""

    def __init__(self, planners: Sequence[Planner]) -> None:
        names = [planner.recipe.name for planner in planners]
        self.titles = [name or f"document {i + 1}" for i, name in enumerate(names)]
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.planners = planners
        self._places = {name: i for i, name in enumerate(names) if name is not None}
        self._check_names(names)
        self._uses = [self._used_by(planner) for planner in planners]
        self.final = self._find_final(names)
        self.order: list[int] = []
        if not self.problems:
            self._visit(self.final, [])
            unused = [self.titles[i] for i in range(len(names)) if i not in self.order]
            if unused:
                self.warnings.append(
                    f"documents that {self.titles[self.final]} does not need are not merged:"
                    f" {', '.join(unused)}"
                )

    def _check_names(self, names: Sequence[str | None]) -> None:
        for name in self._places:
            if names.count(name) > 1:
                self.problems.append(f"name: {name!r} is that of {names.count(name)} documents")
        if names.count(None) > 1:
            self.problems.append(
                f"name: {names.count(None)} documents have none, and only the final one may"
            )

    def _used_by(self, planner: Planner) -> list[int]:
        used = [self._places.get(reference.path) for reference, _ in planner.references()]
        return list(dict.fromkeys(place for place in used if place is not None))

    def _find_final(self, names: Sequence[str | None]) -> int:
        if None in names:
            return list(names).index(None)
        used = {place for uses in self._uses for place in uses}
        free = [place for place in range(len(names)) if place not in used]
        if not free:
            self.problems.append(
                "name: every document is used by another, so none is the final one"
            )
        return free[-1] if free else len(names) - 1

    def _visit(self, place: int, path: list[int]) -> None:
        if place in path:
            loop = [self.titles[i] for i in [*path[path.index(place) :], place]]
            self.problems.append(
                f"name: documents need each other in a circle: {' -> '.join(loop)}"
            )
        elif place not in self.order:
            for used in self._uses[place]:
                if not self.problems:
                    self._visit(used, [*path, place])
            self.order.append(place)


def _told(graph: _Graph, order: Sequence[int] | range) -> list[str]:
    return [
        f"{graph.titles[index]}: {problem}"
        for index in order
        for problem in graph.planners[index].problems
    ]


class _PlannedCheckpoint(Checkpoint):
    """The headers of a checkpoint that a plan will write."""

    def __init__(self, name: str, plan: MergePlan) -> None:
        super().__init__(name, [])
        infos = (
            TensorInfo(tensor.name, tensor.dtype, tensor.shape, name, place, tensor.nbytes)
            for place, tensor in enumerate(plan.tensors)
        )
        self._tensors = {info.name: (info, None) for info in infos}  # type: ignore[misc]


class StageModel(SourceModel):
    """The output of another document, known from its plan.

    Attributes
    ----------
    plan : MergePlan
        What will make it.
    """

    plan: MergePlan

    def planned(self) -> PlannedModel:
        """Return what the plan keeps of it: its name, which stands for its path until it is made."""
        return PlannedModel(self.label, self.label, ())


def _stage(
    name: str, plan: MergePlan, stages: Mapping[str, StageModel | None], opened: ExitStack
) -> StageModel:
    """Return the output of a plan as a model, its small files in a folder that lasts as long."""
    settled = _settled(plan, stages)
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="weightshare-")))
    for copy in settled.copies:
        os.symlink(os.path.abspath(copy.source), folder / copy.name)
    for file, content in settled.texts:
        (folder / file).write_bytes(content)
    config = None if plan.config is None else json.loads(plan.config)
    model = StageModel(name, folder, _PlannedCheckpoint(name, settled), config)
    model.plan = settled
    return model


def _settled(plan: MergePlan, stages: Mapping[str, StageModel | None]) -> MergePlan:
    """Return a plan whose small files do not come from the folders of the planning."""
    folders = {model.path for model in stages.values() if model is not None}
    copies: list[FileCopy] = []
    texts = list(plan.texts)
    for copy in plan.copies:
        if Path(copy.source).parent not in folders:
            copies.append(copy)
        elif os.path.islink(copy.source):
            copies.append(replace(copy, source=os.readlink(copy.source)))
        else:
            texts.append((copy.name, Path(copy.source).read_bytes()))
    return replace(plan, copies=tuple(copies), texts=tuple(texts))


class _DocumentOpener:
    """Opens the models of one document, among them the outputs of others."""

    def __init__(
        self,
        opener: Opener,
        title: str,
        stages: Mapping[str, StageModel | None],
        problems: list[str],
    ) -> None:
        self._opener = opener
        self._title = title
        self._stages = stages
        self._problems = problems

    def open(self, reference: Reference, where: str) -> SourceModel | None:
        """Return the model of that name; None when it cannot be opened, or has no plan."""
        if reference.path not in self._stages or reference.revision is not None:
            return self._opener.open(reference, f"{self._title}: {where}")
        if reference.lora is not None:
            self._problems.append(
                f"{where}: an adapter cannot be added to the output of another document,"
                f" {reference.path}; add it to one of that document's models"
            )
        return self._stages[reference.path]

    def tell_unreadable(self, where: str, path: str, error: OSError) -> None:
        """Note a file that is there and cannot be read."""
        self._opener.tell_unreadable(f"{self._title}: {where}", path, error)
