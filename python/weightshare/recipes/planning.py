"""Planning a merge, and merging: the public functions of recipes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from weightshare.checkpoint.locate import path_text
from weightshare.errors import ArgumentTypeError, RecipeError
from weightshare.merging.method import Method
from weightshare.merging.pipeline import Progress
from weightshare.merging.plan import FileCopy, MergePlan, PlannedTensor
from weightshare.merging.report import MergeReport
from weightshare.merging.run import run_plan
from weightshare.merging.sizes import parse_bytes
from weightshare.recipes.companions import files_to_copy, output_config, too_large_to_copy
from weightshare.recipes.load import Recipe, load_document
from weightshare.recipes.resolve import Roles, TensorResolver
from weightshare.recipes.schema import MergeRecipe, ModelEntry, RecipeReader
from weightshare.recipes.sources import SourceModel, SourceOpener


def plan_merge(
    recipe: Recipe,
    *,
    max_shard_size: int | str = "5GB",
    copy_tokenizer: bool = True,
    write_model_card: bool = True,
    seed: int = 0,
) -> MergePlan:
    """Plan a merge from the headers of its files; no weight is read.

    Parameters
    ----------
    recipe : path, str or mapping
        A recipe in mergekit's schema: a path, the YAML text itself, or its contents. Relative
        paths of models are looked for in the current folder, then in the recipe's.
    max_shard_size : int or str
        Largest data of one output file: bytes, ``"5GB"`` (decimal) or ``"5GiB"``.
    copy_tokenizer : bool
        Whether the tokenizer's files are copied from the base, else from the first model.
    write_model_card : bool
        Whether ``README.md`` and a copy of the recipe are written.
    seed : int
        Key of random numbers, for methods that draw some.

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
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentTypeError(f"seed: expected an integer, got {seed!r}")
    shard_bytes = parse_bytes(max_shard_size, "max_shard_size")
    document = load_document(recipe)
    reader = RecipeReader(document)
    asked = reader.read()
    with ExitStack() as opened:
        opener = SourceOpener(document.folder, opened)
        roles = _open_models(asked, opener, reader)
        tensors: tuple[PlannedTensor, ...] = ()
        copies: tuple[FileCopy, ...] = ()
        if roles is not None and asked.method is not None:
            resolver = TensorResolver(asked, asked.method, roles)
            tensors = resolver.tensors()
            reader.problems += resolver.problems
            reader.warnings += resolver.warnings
            donor = roles.all[roles.donor]
            copies = files_to_copy(donor.path, tokenizer=copy_tokenizer, told=opener)
            reader.warnings += too_large_to_copy(donor.path, tokenizer=copy_tokenizer)
        problems = reader.problems + opener.problems
        if problems or roles is None or asked.method is None:
            raise RecipeError(problems) from opener.damage
        donor = roles.all[roles.donor]
        return MergePlan(
            method=asked.method.name,
            models=tuple(model.planned() for model in roles.all),
            tensors=tensors,
            max_shard_bytes=shard_bytes,
            config=output_config(donor.config, tensors),
            copies=copies,
            recipe=document.text,
            card=write_model_card,
            seed=seed,
            warnings=tuple(reader.warnings),
        )


def merge_checkpoints(
    recipe: Recipe,
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
) -> MergeReport:
    """Merge checkpoints by a recipe, from file to file in bounded memory.

    The output appears complete or not at all, and its bytes do not depend on `memory` or
    `threads`.

    Parameters
    ----------
    recipe : path, str or mapping
        As for `plan_merge`.
    out : path
        A folder; or, when it ends in ``.safetensors``, one file that holds only the weights.
    resume : bool
        Whether an interrupted merge may go on where it stopped. This version keeps no journal:
        a merge starts anew.
    overwrite : bool
        Whether an output that exists is replaced, once the new one is complete.
    memory : int or str
        Budget of the whole process, in bytes or as text; arrays that the caller holds are not
        counted.
    threads : int, optional
        Threads of the core; None means ``OMP_NUM_THREADS``, else the cores of this process.
    progress : callable or True, optional
        ``progress(done, total)`` in bytes of output; True is a bar on stderr.
    nan : {"error", "warn", "allow"}
        What to do when finite weights give NaN or infinity.
    max_shard_size, copy_tokenizer, write_model_card, seed
        As for `plan_merge`.

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
    plan = plan_merge(
        recipe,
        max_shard_size=max_shard_size,
        copy_tokenizer=copy_tokenizer,
        write_model_card=write_model_card,
        seed=seed,
    )
    return run_plan(
        plan,
        out,
        overwrite=overwrite,
        memory=memory,
        threads=threads,
        progress=progress,
        nan=nan,
    )


def _open_models(asked: MergeRecipe, opener: SourceOpener, reader: RecipeReader) -> Roles | None:
    """Open the recipe's models; what can be opened is checked, even where some cannot."""
    opened: dict[int, tuple[ModelEntry, SourceModel]] = {}
    for index, entry in enumerate(asked.models):
        model = opener.open(entry.model, f"models[{index}].model")
        if model is None:
            continue
        twin = next((i for i, (_, known) in opened.items() if known is model), None)
        if twin is None:
            opened[index] = (entry, model)
        else:
            reader.problems.append(
                f"models[{index}].model: {entry.model!r} is models[{twin}] again"
            )
    base = None if asked.base_model is None else opener.open(asked.base_model, "base_model")
    if asked.method is None or not opened:
        return None
    _check_base(asked, asked.method, reader)
    lost = asked.base_model is not None and base is None
    if lost or (asked.method.needs_base and base is None):
        return None
    entries, models = zip(*opened.values(), strict=True)
    roles = Roles(asked.method, entries, models, base)
    if len(opened) == len(asked.models):
        _check_count(asked.method, roles, reader)
    _remark_base(asked.method, roles, entries, reader)
    return roles if roles.merged else None


def _check_base(asked: MergeRecipe, method: Method, reader: RecipeReader) -> None:
    if method.needs_base and "base_model" not in reader.given:
        reader.problems.append(f"base_model: is missing, and {method.name} needs it")


def _check_count(method: Method, roles: Roles, reader: RecipeReader) -> None:
    count, most = len(roles.merged), method.max_models
    if count < method.min_models or (most is not None and count > most):
        beside = " beside the base" if method.needs_base else ""
        reader.problems.append(
            f"models: {method.name} merges {method.allowed_models}{beside}, got {count}"
        )


def _remark_base(
    method: Method, roles: Roles, entries: Sequence[ModelEntry], reader: RecipeReader
) -> None:
    label = roles.all[roles.donor].label
    if roles.base is None and roles.donor == len(entries):
        reader.warnings.append(
            f"base_model: {method.name} does not average {label} in; its configuration, tokenizer"
            " and integer tensors are copied"
        )
    if roles.base is not None and roles.base < len(entries) and entries[roles.base].parameters:
        reader.warnings.append(
            f"models[{roles.base}].parameters: not used, {label} is the base of {method.name}"
        )
