"""A trial with other fields than its recipe's gets a folder of its own."""

import pytest
from tiny_run import FIELDS, load_script

from bilstm_attn.command_line.run_names import MAX_LENGTH, name_of_trial
from bilstm_attn.config import Config

RECIPE = Config(name="quickstart")


def test_changed_fields_are_part_of_the_name():
    assert name_of_trial(RECIPE, RECIPE) == "quickstart"
    changed = RECIPE.replace({"model.cell": "gru", "data.bucket_edges": (7, 9, 11)})
    assert name_of_trial(RECIPE, changed) == "quickstart+bucket_edges=7-9-11+cell=gru"


def test_another_seed_is_no_trial():
    assert name_of_trial(RECIPE, RECIPE.replace({"seed": 3})) == "quickstart"


def test_long_names_end_in_a_digest_that_tells_them_apart():
    fields = {"model.hidden_size": 7, "model.embedding_size": 5, "optim.learning_rate": 0.5}
    fields |= {"data.dataset": "a" * 60}
    first, second = (
        name_of_trial(RECIPE, RECIPE.replace(fields | {"train.epochs": epochs}))
        for epochs in (1, 2)
    )
    assert first != second
    assert len(first) <= MAX_LENGTH + 9


@pytest.mark.slow
def test_a_trial_leaves_the_folder_of_the_recipe_to_the_recipe(untrained):
    words = [word for name, value in FIELDS.items() for word in (f"--{name}", str(value))]
    folders = ["--runs", str(untrained / "runs"), "--cache", str(untrained / "cache")]
    recipe = untrained / "mini.py"
    recipe.write_text("from bilstm_attn.config import Config\nconfig = Config()\n")
    train = load_script("train")
    assert train(str(recipe), *folders, *words, "--train.epochs", "1") == 0
    (trial,) = (untrained / "runs").iterdir()
    assert trial.name.startswith("mini+dataset=movie_reviews+")
    assert train(str(recipe), *folders, *words, "--name", "mini", "--train.epochs", "1") == 0
    assert (untrained / "runs" / "mini" / "seed0").is_dir()
