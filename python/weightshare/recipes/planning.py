"""Planning a merge, and merging: the public functions of recipes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace

from weightshare.checkpoint.locate import path_text
from weightshare.errors import ArgumentTypeError, RecipeError
from weightshare.merging.pipeline import Progress
from weightshare.merging.plan import MergePlan
from weightshare.merging.report import MergeReport
from weightshare.merging.sizes import parse_bytes
from weightshare.recipes.documents import plan_documents
from weightshare.recipes.load import Recipe, load_documents
from weightshare.recipes.planner import Options
from weightshare.recipes.sources import SourceOpener
from weightshare.recipes.stages import Run, run_stages


def plan_merge(
    recipe: Recipe,
    *,
    max_shard_size: int | str = "5GB",
    copy_tokenizer: bool = True,
    write_model_card: bool = True,
    seed: int = 0,
    lenient: bool = False,
) -> MergePlan:
    """Plan a merge from the headers of its files; no weight is read.

    Parameters
    ----------
    recipe : path, str or mapping
        A recipe in mergekit's schema: a path, the YAML text itself, or its contents. Relative
        paths of models are looked for in the current folder, then in the recipe's. A file may
        hold several documents that use each other by their names; the plan is that of the last,
        and its ``stages`` are those of the others.
    max_shard_size : int or str
        Largest data of one output file: bytes, ``"5GB"`` (decimal) or ``"5GiB"``.
    copy_tokenizer : bool
        Whether the tokenizer's files are copied from the base, else from the first model.
    write_model_card : bool
        Whether ``README.md`` and a copy of the recipe are written.
    seed : int
        Key of random numbers, for methods that draw some.
    lenient : bool
        Whether unknown keys and parameters are warnings, and tensors that only some models have
        are copied, with a warning.

    Returns
    -------
    MergePlan
        Every output tensor with its inputs and parameters, sizes, files and warnings.

    Raises
    ------
    RecipeError
        The recipe or its files cannot be merged; all problems are in the one report.
    ArgumentError, ArgumentTypeError
        Another argument cannot be used.

    Examples
    --------
    >>> import os, tempfile, numpy as np
    >>> import weightshare as ws
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a", "b"):
    ...         ws.save_checkpoint(os.path.join(folder, name), {"w": np.ones(4, np.float32)})
    ...     models = [{"model": os.path.join(folder, name)} for name in ("a", "b")]
    ...     recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    ...     plan = ws.plan_merge(recipe)
    >>> plan.counts, plan.nbytes, plan.read_bytes
    ({'merge': 1, 'copy': 0}, 16, 32)
    """
    options = _options(max_shard_size, copy_tokenizer, write_model_card, seed, lenient)
    return _planned(recipe, options)


def _options(
    max_shard_size: int | str, copy_tokenizer: bool, card: bool, seed: int, lenient: bool
) -> Options:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentTypeError(f"seed: expected an integer, got {seed!r}")
    shard = parse_bytes(max_shard_size, "max_shard_size")
    return Options(shard, copy_tokenizer, card, seed, lenient)


def _planned(recipe: Recipe, options: Options, *, bars: bool = False) -> MergePlan:
    """Plan a merge; with bars for what has to be downloaded."""
    documents = load_documents(recipe)
    with ExitStack() as opened:
        opener = SourceOpener(documents[0].folder, opened, progress=bars)
        plan, problems = plan_documents(documents, opener, options, opened)
        problems += opener.problems
        if problems or plan is None:
            raise RecipeError(problems) from opener.damage
        return replace(plan, warnings=(*plan.warnings, *opener.warnings))


def merge_checkpoints(
    recipe: Recipe | MergePlan,
    out: str | os.PathLike[str],
    *,
    resume: bool = True,
    overwrite: bool = False,
    memory: int | str = "512MB",
    threads: int | None = None,
    progress: Progress | bool | None = None,
    nan: str = "error",
    max_shard_size: int | str = "5GB",
    copy_tokenizer: bool = True,
    write_model_card: bool = True,
    seed: int = 0,
    lenient: bool = False,
    intermediates: str | os.PathLike[str] | None = None,
    keep_intermediates: bool = False,
) -> MergeReport:
    """Merge checkpoints by a recipe, from file to file in bounded memory.

    The output appears complete or not at all, and its bytes do not depend on `memory` or
    `threads`.

    Parameters
    ----------
    recipe : path, str, mapping or MergePlan
        As for `plan_merge`, or what that returned.
    out : path
        A folder; or, when it ends in ``.safetensors``, one file that holds only the weights.
    resume : bool
        Whether an interrupted merge goes on where it stopped.
    overwrite : bool
        Whether an output that exists is replaced, once the new one is complete.
    memory : int or str
        Budget of the whole process, in bytes or as text; arrays that the caller holds are not
        counted.
    threads : int, optional
        Threads of the core; None means ``OMP_NUM_THREADS``, else the cores of this process.
    progress : callable or True, optional
        ``progress(done, total)`` in bytes of output; True is a bar on stderr.
    nan : {"error", "warn", "ignore"}
        What to do when finite weights give NaN or infinity.
    max_shard_size, copy_tokenizer, write_model_card, seed, lenient
        As for `plan_merge`; a plan has its own.
    intermediates : path, optional
        Folder of the merges that come first, where the recipe has several documents; None is
        `out` with ``.intermediates`` behind it.
    keep_intermediates : bool
        Whether they stay when all is done.

    Returns
    -------
    MergeReport
        What was read, computed and written.

    Raises
    ------
    RecipeError
        The recipe or its files cannot be merged; nothing is written.
    OutputExistsError, OutputLockedError, OutputSpaceError
        The output exists, is being written, or has no room on the disk or in memory.
    CheckpointError
        An input is damaged, or changed meanwhile.
    NonFiniteError
        Finite weights gave NaN or infinity and `nan` is ``"error"``.
    ArgumentError, ArgumentTypeError
        Another argument cannot be used.

    Examples
    --------
    >>> import os, tempfile, numpy as np
    >>> import weightshare as ws
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, value in (("a", 1.0), ("b", 3.0)):
    ...         ws.save_checkpoint(os.path.join(folder, name), {"w": np.float32([value, 0])})
    ...     models = [{"model": os.path.join(folder, name)} for name in ("a", "b")]
    ...     recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    ...     report = ws.merge_checkpoints(recipe, os.path.join(folder, "out"))
    ...     with ws.open_checkpoint(report.out) as merged:
    ...         print(merged["w"])
    [2. 0.]
    """
    path_text(out, "out")
    if isinstance(recipe, MergePlan):
        plan = recipe
    else:
        options = _options(max_shard_size, copy_tokenizer, write_model_card, seed, lenient)
        plan = _planned(recipe, options, bars=progress is True)
    run = Run(resume, memory, threads, nan)
    if plan.stages:
        where = None if intermediates is None else path_text(intermediates, "intermediates")
        return run_stages(
            plan,
            out,
            run,
            intermediates=where,
            keep=keep_intermediates,
            overwrite=overwrite,
            progress=progress,
        )
    return run(plan, out, overwrite=overwrite, progress=progress)
