"""Checkpoints and the exported model: whole, or noticed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_run import error_of, flip_bit, full_disk, truncate

from bilstm_attn.config import Config, ModelConfig
from bilstm_attn.data.vocabulary import Vocabulary
from bilstm_attn.errors import UserError
from bilstm_attn.inference import exported
from bilstm_attn.inference.exported import export_model, load_model
from bilstm_attn.runtime.files import tree_sha256
from bilstm_attn.training import checkpoint
from bilstm_attn.training.checkpoint import Checkpoints


class State(NamedTuple):
    step: jax.Array
    params: dict
    optimizer: tuple


def state(seed: int) -> State:
    """A tree with what a train state has: numbers, nested dictionaries, tuples, empty nodes."""
    normal = np.random.default_rng(seed).normal
    return State(
        jnp.int32(seed),
        {"layers": {0: {"bias": jnp.asarray(normal(size=3), jnp.float32)}}},
        (jnp.asarray(normal(size=(5, 4)), jnp.float32), ()),
    )


def same(one, two) -> bool:
    return tree_sha256(one) == tree_sha256(two) and jax.tree.structure(one) == jax.tree.structure(
        two
    )


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """A folder with checkpoints 4 and 7; copy before changing it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder) as checkpoints:
        for step in (4, 7):
            checkpoints.save(step, state(step), {"epochs": [step]})
    return folder


@pytest.fixture
def saved_copy(two_steps, tmp_path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def restore(folder: Path):
    """Returns what comes back, and the lines said."""
    said = []
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(state(0), said.append), said


# Checkpoints


def test_newest_checkpoint_comes_back_bit_for_bit(two_steps):
    (restored, record), said = restore(two_steps)
    assert same(restored, state(7))
    assert record == {"epochs": [7]}
    assert said == []


def test_state_on_several_devices_is_the_one_that_a_single_device_saves(tmp_path):
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    everywhere = jax.device_put(state(7), jax.NamedSharding(mesh, jax.P()))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, everywhere, {})
    (restored, _), _ = restore(tmp_path / "checkpoints")
    assert same(restored, state(7))
    assert {type(leaf) for leaf in jax.tree.leaves(restored)} <= {np.ndarray, np.int32}


def test_record_that_is_not_accepted_is_an_error_before_its_state_is_read(two_steps):
    def accept(record):
        raise UserError(f"not of epoch {record['epochs'][0]}")

    other_shapes = State(jnp.int32(0), {}, ())
    with Checkpoints(two_steps) as checkpoints, pytest.raises(UserError, match="not of epoch 7"):
        checkpoints.restore(other_shapes, pytest.fail, accept)


def test_newest_checkpoint_up_to_a_step_comes_back(two_steps):
    with Checkpoints(two_steps) as checkpoints:
        restored, _ = checkpoints.restore(state(0), pytest.fail, at_most=6)
        assert checkpoints.restore(state(0), pytest.fail, at_most=3) is None
        assert checkpoints.steps() == [4, 7]
    assert same(restored, state(4))


def test_rewound_checkpoints_can_be_saved_again(saved_copy):
    with Checkpoints(saved_copy) as checkpoints:
        checkpoints.rewind(4)
        assert checkpoints.steps() == [4]
        checkpoints.save(5, state(5), {})  # before 7, which was there
    assert same(restore(saved_copy)[0][0], state(5))


def test_only_the_newest_two_are_kept(saved_copy):
    with Checkpoints(saved_copy) as checkpoints:
        checkpoints.save(9, state(9), {})
    assert sorted(path.name for path in saved_copy.iterdir()) == ["7", "9"]


def test_saving_a_step_again_keeps_the_first(saved_copy):
    with Checkpoints(saved_copy) as checkpoints:
        checkpoints.save(7, state(8), {"epochs": [8]})
    assert same(restore(saved_copy)[0][0], state(7))


def test_nothing_saved_is_nothing_restored(tmp_path):
    assert restore(tmp_path / "checkpoints") == (None, [])


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def damage_file(path: Path, damage: str) -> None:
    if damage == "flipped":
        flip_bit(path, path.stat().st_size // 2)
    elif damage == "missing":
        path.unlink()
    else:
        truncate(path, path.stat().st_size // 2 if damage == "cut" else 0)


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "missing"])
def test_damage_to_any_file_of_a_checkpoint_falls_back_to_the_one_before(
    two_steps, tmp_path, damage, capfd
):
    names = set(files_of(two_steps / "7")) - {checkpoint.DIGESTS}
    assert {name.split("/")[0] for name in names} >= {"state", "record"}
    for number, name in enumerate(sorted(names)):
        own = Path(shutil.copytree(two_steps, tmp_path / str(number)))
        damage_file(own / "7" / name, damage)
        (restored, record), said = restore(own)
        assert same(restored, state(4))
        assert record == {"epochs": [4]}
        assert said == [
            f"checkpoint 7 is damaged (its file {name} differs from the saved one); "
            "trying the one before"
        ]
    assert capfd.readouterr().err == ""  # where orbax would print tracebacks


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_damage_to_the_digests_falls_back_too(saved_copy, damage):
    damage_file(saved_copy / "7" / checkpoint.DIGESTS, damage)
    (restored, _), said = restore(saved_copy)
    assert same(restored, state(4))
    assert len(said) == 1


def test_checkpoint_killed_before_its_digests_were_written_serves(saved_copy):
    (saved_copy / "7" / checkpoint.DIGESTS).unlink()
    assert same(restore(saved_copy)[0][0], state(7))


def test_without_digests_the_state_has_one_of_its_own(saved_copy):
    (saved_copy / "7" / checkpoint.DIGESTS).unlink()
    path = saved_copy / "7" / "record" / "metadata"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"state_sha256": tree_sha256(state(8))}))
    (restored, _), said = restore(saved_copy)
    assert same(restored, state(4))
    assert said == ["checkpoint 7 is damaged (its digest differs); trying the one before"]


def test_every_checkpoint_damaged_is_one_error(saved_copy):
    for step in ("4", "7"):
        damage_file(saved_copy / step / "state" / "manifest.ocdbt", "flipped")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged; start again"):
        restore(saved_copy)


def test_unfinished_save_is_passed_over(saved_copy):
    (saved_copy / "9.orbax-checkpoint-tmp").mkdir()
    shutil.copytree(saved_copy / "7" / "state", saved_copy / "9.orbax-checkpoint-tmp" / "state")
    (restored, _), _ = restore(saved_copy)
    assert same(restored, state(7))


def test_full_disk_is_one_error_without_tracebacks_of_orbax(saved_copy, capfd):
    before = files_of(saved_copy)
    with (
        Checkpoints(saved_copy) as checkpoints,
        full_disk(1000),
        pytest.raises(UserError) as caught,
    ):
        checkpoints.save(9, state(9), {"epochs": [9]})
    assert str(caught.value).startswith(f"cannot save {saved_copy / '9'}: File too large; ")
    assert capfd.readouterr().err == ""
    assert files_of(saved_copy) == before


def test_disk_that_fills_up_within_a_save_keeps_the_earlier_checkpoints(saved_copy, monkeypatch):
    monkeypatch.setattr(checkpoint, "_require_space", lambda folder, state: None)
    with Checkpoints(saved_copy) as checkpoints:
        with full_disk(64), pytest.raises(UserError) as caught:
            checkpoints.save(9, state(9), {"epochs": [9]})
        message = str(caught.value)
        assert message.startswith(f"cannot save {saved_copy / '9'}: ")
        assert message.endswith("free some space, then run again (a training with --resume)")
        assert "everything saved earlier is intact" in message
        assert "\n" not in message
    (restored, _), said = restore(saved_copy)
    assert same(restored, state(7))
    assert said == []
    with Checkpoints(saved_copy) as checkpoints:  # there is space again
        checkpoints.save(9, state(9), {"epochs": [9]})
    assert same(restore(saved_copy)[0][0], state(9))


# The exported model

CONFIG = Config(name="tiny", seed=3, model=ModelConfig(hidden_size=3))
PARAMS = {
    "encoder": {"layers": {0: {"bias": np.float32([1, 2, 3])}, 10: {"bias": np.float32([4])}}},
    "embedding": np.arange(20, dtype=np.float32).reshape(5, 4),
}
WORDS = ["it's", "été", "a\u2028b", "a\rb", "\x00"]


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    export_model(path, PARAMS, CONFIG, Vocabulary(WORDS))
    return path


def error_loading(path: Path) -> str:
    message = error_of(load_model, path)
    assert str(path) in message
    return message


def test_exported_model_is_one_file_that_comes_back(model):
    loaded = load_model(model)
    assert list(model.parent.iterdir()) == [model]
    assert same(loaded.params, PARAMS)
    assert loaded.config == CONFIG
    assert loaded.vocabulary.words == tuple(WORDS)


def test_vocabulary_without_words_comes_back(tmp_path):
    export_model(tmp_path / "model", PARAMS, CONFIG, Vocabulary([]))
    assert load_model(tmp_path / "model").vocabulary.words == ()


def test_export_is_a_function_of_what_is_exported(model, tmp_path):
    export_model(tmp_path / "again", PARAMS, CONFIG, Vocabulary(WORDS))
    assert (tmp_path / "again").read_bytes() == model.read_bytes()


def test_flipped_byte_anywhere_in_the_model_is_noticed(model):
    whole = model.read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1
        model.write_bytes(data)
        with pytest.raises(UserError):
            load_model(model)


def test_model_cut_short_anywhere_is_noticed(model):
    whole = model.read_bytes()
    for size in [*range(0, len(whole), 31), len(whole) - 1]:
        model.write_bytes(whole[:size])
        assert "is not a model this program exported" in error_loading(model)


def test_flipped_parameter_names_the_file_and_what_to_do(model):
    flip_bit(model, model.stat().st_size - 1)
    assert error_loading(model) == (
        f"{model} is damaged: its digest differs; copy it again from its source"
    )


def test_model_of_another_version_says_so(model, monkeypatch):
    monkeypatch.setattr(exported, "FORMAT", "bilstm_attn 2")
    says = "must have the format 'bilstm_attn 2', but has 'bilstm_attn 1'; use the version"
    assert says in error_loading(model)


def test_model_with_a_field_this_version_does_not_know_says_so(model, monkeypatch):
    values = dataclasses.asdict(CONFIG) | {"later": 1}
    monkeypatch.setattr(Config, "to_json", lambda self: json.dumps(values))
    export_model(model, PARAMS, CONFIG, Vocabulary(WORDS))
    assert "does not fit this version of bilstm_attn: unknown field 'later'" in error_loading(model)


def test_safetensors_file_of_another_program_is_an_error(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "other.safetensors")
    assert "but has None" in error_loading(tmp_path / "other.safetensors")


@pytest.mark.parametrize("what", ["missing", "folder", "text"])
def test_what_is_no_safetensors_file_is_an_error(tmp_path, what):
    path = tmp_path / "model.safetensors"
    if what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("a film to see twice\n" * 10)
    assert "give a run's folder or its model.safetensors" in error_loading(path)


def test_full_disk_keeps_the_model_before(model):
    whole = model.read_bytes()
    with full_disk(len(whole) // 2), pytest.raises(UserError, match="free some space"):
        export_model(model, PARAMS, CONFIG, Vocabulary(WORDS))
    assert model.read_bytes() == whole
