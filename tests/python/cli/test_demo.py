"""The demo: its numbers are computed, its files are real, and its output folder is its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import weightshare as ws
from weightshare.cli import demo as demo_module
from weightshare.cli import main
from weightshare.cli.demo_files import merge_weights, recipe_text
from weightshare.cli.demo_sites import UNRELATED, draw_sites, shifted, turned
from weightshare.cli.demo_training import ACTIVATION, WAYS
from weightshare.cli.demo_verdict import Gain, exceptions, gain_of, judge, last_word
from weightshare.training.network import accuracy

COMMAND = [sys.executable, "-c", "from weightshare.cli import main; main()", "demo"]
TABLE_WIDTH = 79


def run(folder, *arguments, home=None):
    done = subprocess.run(
        [*COMMAND, "--out", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=home,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Run the whole demo once, as a user does; return its folder, what it said, its numbers."""
    home = tmp_path_factory.mktemp("demo")
    code, out, err = run("made", home=home)
    assert code == 0, err
    return home / "made", out, err, json.loads((home / "made" / "result.json").read_text())


def read(path):
    with ws.open_checkpoint(path) as checkpoint:
        return {name: np.array(checkpoint[name]) for name in checkpoint}


def test_no_line_is_wider_than_a_terminal(told):
    _, out, _, _ = told
    assert max(len(line) for line in out.splitlines()) <= TABLE_WIDTH


def test_progress_is_on_stderr_and_only_there(told):
    _, out, err, _ = told
    assert re.search(r"merge and update, mlp: \d+step", err)
    assert "step/s" not in out


def test_every_site_and_the_next_commands_are_told(told):
    _, out, _, result = told
    for site in result["sites"]:
        assert re.search(rf"^  {site['name']} .* {site['training']} +1,557$", out, re.MULTILINE)
    assert [command.split()[:2] for command in result["next"]] == [
        ["weightshare", "inspect"],
        ["weightshare", "plan"],
        ["weightshare", "merge"],
    ]
    assert all(command in out for command in result["next"])


def test_the_accuracies_told_are_those_of_the_result(told):
    _, out, _, result = told
    for family in result["families"].values():
        for site in result["sites"]:
            values = [
                f"{100 * sum(draws) / len(draws):.1f}"
                for draws in (family["accuracy"][way][site["name"]] for way in WAYS)
            ]
            assert re.search(rf"{site['name']} +{' +'.join(values)} ", out)


def test_the_saved_models_have_the_accuracy_that_was_told(told):
    folder, _, _, result = told
    sites = draw_sites(np.random.default_rng([0, 0]))
    for family, numbers in result["families"].items():
        for site in sites:
            found = accuracy(
                read(folder / family / site.name), site.X_held, site.y_held, ACTIVATION
            )
            assert found == numbers["accuracy"]["similarity"][site.name][0]


def test_the_merged_model_is_the_recipe_computed_in_memory_and_scores_as_told(told):
    folder, _, _, result = told
    merged, start = read(folder / "merged"), read(folder / "mlp" / "start")
    weights = result["merged"]["weights"]
    models = [read(folder / "mlp" / name) for name in weights]
    for name, array in merged.items():
        change = sum(
            w * (m[name] - start[name]) for w, m in zip(weights.values(), models, strict=True)
        )
        np.testing.assert_allclose(array, start[name] + change / sum(weights.values()), atol=1e-5)
    for site in draw_sites(np.random.default_rng([0, 0])):
        found = accuracy(merged, site.X_held, site.y_held, ACTIVATION)
        assert found == result["merged"]["accuracy"]["merged"][site.name]


def test_the_similarity_told_is_that_of_models_and_start_and_sets_the_unrelated_apart(told):
    _, _, _, result = told
    related = np.array([site["related"] for site in result["sites"]])
    for family in result["families"].values():
        S = np.array(family["similarity"]["task_vectors"])
        assert S.shape == (6, 6)
        inside = S[np.ix_(related, related)][np.triu_indices(5, 1)]
        assert S[~related][:, related].max() < inside.min()


def test_merge_and_update_reached_its_stop(told):
    _, _, _, result = told
    for family in result["families"].values():
        assert family["merge_and_update"]["converged"]
        assert family["merge_and_update"]["reason"] == "tolerance"
        np.testing.assert_allclose(np.sum(family["mixing"], axis=1), 1.0, atol=1e-12)


def test_sharing_by_similarity_helps_and_sharing_equally_hurts_the_unrelated_site(told):
    _, out, _, result = told
    for family in result["families"].values():
        assert family["gain"]["related"]["verdict"] == "helps"
        assert family["gain"]["unrelated"]["verdict"] != "hurts"
        assert family["gain"]["equally_unrelated"]["verdict"] == "hurts"
    assert result["verdict"] in " ".join(out.split())


def test_the_next_commands_work(told, monkeypatch, capsys):
    folder, _, _, result = told
    monkeypatch.chdir(folder.parent)
    for command in result["next"]:
        with pytest.raises(SystemExit) as ended:
            main(command.split()[1:])
        assert ended.value.code == 0, capsys.readouterr().err
    assert read(folder / "my-merge").keys() == read(folder / "merged").keys()


def test_json_is_all_of_stdout_and_a_second_run_gives_the_same_numbers(told):
    folder, _, _, first = told
    code, out, _ = run("made", "--json", "--threads", "1", home=folder.parent)
    again = json.loads(out)
    assert code == 0
    assert again == json.loads((folder / "result.json").read_text())
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


@pytest.mark.parametrize("arguments", [("--seed", "-1"), ("--seed", "x"), ("--threads", "0")])
def test_bad_options_are_usage_errors(tmp_path, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(tmp_path / "new"), *arguments])
    assert ended.value.code == 2
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "did not make" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_as_output_is_refused(tmp_path, capsys):
    target = tmp_path / "file"
    target.write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(target)])
    assert ended.value.code == 2
    assert "got a file" in capsys.readouterr().err
    assert target.read_text() == "mine"


def test_a_folder_that_cannot_be_made_ends_with_the_code_for_disks(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(tmp_path / "file" / "below")])
    assert ended.value.code == 4
    assert "cannot be used" in capsys.readouterr().err


def test_paths_with_spaces_are_quoted_in_the_next_commands(tmp_path):
    commands = demo_module._next_commands(tmp_path / "my demo")
    assert all("'" in command for command in commands)


def test_no_image_is_dealt_twice_and_all_others_are_held_out():
    X, _ = ws.datasets.load_digits()
    sites = draw_sites(np.random.default_rng(5))
    assert sum(len(site.y) for site in sites) + len(sites[0].y_held) == len(X)
    plain = sites[0]
    together = np.concatenate([plain.X, plain.X_held])
    counts = [np.unique(part, axis=0, return_counts=True)[1].sum() for part in (plain.X, together)]
    assert counts == [60, 60 + 1557]
    assert [site.name for site in sites if not site.related] == [UNRELATED]


def test_the_scrambled_site_only_moves_pixels():
    sites = {site.name: site for site in draw_sites(np.random.default_rng(1))}
    scrambled = np.sort(sites[UNRELATED].X_held, axis=1)
    assert np.array_equal(scrambled, np.sort(sites["plain"].X_held, axis=1))
    assert not np.array_equal(sites[UNRELATED].X_held, sites["plain"].X_held)


def test_turning_by_nothing_changes_nothing_and_four_quarters_come_back():
    X = ws.datasets.load_digits()[0][:20]
    np.testing.assert_allclose(turned(X, 0.0), X, atol=1e-5)
    around = X
    for _ in range(4):
        around = turned(around, 90.0)
    np.testing.assert_allclose(around, X, atol=1e-4)


def test_turning_a_bar_clockwise_moves_its_top_to_the_right():
    bar = np.zeros((1, 8, 8), np.float32)
    bar[0, :, 3:5] = 1.0
    leaned = turned(bar.reshape(1, 64), 15.0).reshape(8, 8)
    columns = np.arange(8)
    assert leaned[1] @ columns / leaned[1].sum() > 3.5 > leaned[6] @ columns / leaned[6].sum()


def test_shifting_moves_every_column_by_one():
    X = np.arange(64, dtype=np.float32)[None]
    moved = shifted(X).reshape(8, 8)
    assert np.array_equal(moved[:, 1:], X.reshape(8, 8)[:, :-1])
    assert not moved[:, 0].any()


def test_a_gain_is_a_mean_with_the_error_of_the_mean():
    gain = gain_of([0.01, 0.02, 0.03, 0.04, 0.05])
    assert gain.mean == pytest.approx(0.03)
    assert gain.error == pytest.approx(np.std([1, 2, 3, 4, 5], ddof=1) / np.sqrt(5) / 100)


def test_a_gain_near_zero_has_no_negative_sign():
    assert Gain(-0.0001, 0.001, 5).text == "+0.0 ± 0.1"


class _Made:
    """Stands for an outcome: the accuracies only."""

    def __init__(self, longer, equally, similarity):
        self.accuracies = {"longer": longer, "equally": equally, "similarity": similarity}


def made_verdict(similar, equal, draws=5):
    """Return the sites, and the verdict on gains that hardly differ between draws."""
    sites = draw_sites(np.random.default_rng(0))
    base = np.full(6, 0.5)
    jitter = 1e-4 * np.arange(draws)
    outcomes = [_Made(base, base + np.add(equal, j), base + np.add(similar, j)) for j in jitter]
    return sites, judge(outcomes, sites)


def test_the_verdict_follows_the_numbers_when_sharing_hurts():
    sites, verdict = made_verdict([-0.1] * 5 + [0.0], [-0.1] * 6)
    assert "hurts related sites" in last_word([verdict], UNRELATED)
    assert "hurts at plain" in exceptions(verdict, sites)


def test_the_verdict_follows_the_numbers_when_the_unrelated_site_is_hurt():
    _, verdict = made_verdict([0.1] * 5 + [-0.1], [0.1] * 5 + [-0.2])
    assert "leave that site out" in last_word([verdict], UNRELATED)


def test_the_verdict_follows_the_numbers_when_nothing_changes():
    sites = draw_sites(np.random.default_rng(0))
    base = np.full(6, 0.5)
    outcomes = [_Made(base, base + j, base + j) for j in (-0.02, -0.01, 0.0, 0.01, 0.02)]
    words = last_word([judge(outcomes, sites)], UNRELATED)
    assert "do not show" in words
    assert "not hurt in a way" in words


def test_the_site_that_gains_most_is_told_apart_from_the_others():
    _, verdict = made_verdict([0.0, 0.0, 0.0, 0.0, 0.5, 0.9], [0.0] * 6)
    assert verdict.best == "noisy"
    assert verdict.related.mean == pytest.approx(0.1002)
    assert verdict.others.mean == pytest.approx(0.0002)


def test_merge_weights_of_models_with_nothing_in_common_are_equal():
    assert merge_weights(np.eye(4)) == [0.25] * 4


def test_the_recipe_is_read_by_the_recipe_reader_without_a_warning(tmp_path):
    sites = draw_sites(np.random.default_rng(0))
    for name in ("start", *(site.name for site in sites)):
        ws.save_checkpoint(tmp_path / "mlp" / name, {"w": np.ones(3, np.float32)})
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(recipe_text("mlp", sites, [0.2, 0.2, 0.2, 0.2, 0.2, 0.0]))
    plan = ws.plan_merge(recipe)
    assert plan.warnings == ()
    assert plan.method == "task_arithmetic"
