"""`locate`: every kind of checkpoint is found with its parts; what is none is one clear error. Nothing is loaded."""

import json
import shutil
from pathlib import Path

import pytest

from attnlens.checkpoints import source as module
from attnlens.checkpoints.source import Source, locate, names_of, settle
from attnlens.core.errors import CheckpointError


def write(folder: Path, *names: str, content: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(content)
    return folder


def adapter(folder: Path, base: object, *names: str, weights: str = "adapter") -> Path:
    write(folder, "adapter_model.safetensors", content=weights)
    write(folder, *names)
    settings = {"peft_type": "LORA", "base_model_name_or_path": None if base is None else str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "models" / "base", "config.json", "model.safetensors", "tokenizer.json")


def test_a_directory(base: Path):
    found = locate(base)
    assert (found.kind, found.path, found.config, found.tokenizer, found.base) == ("directory", base, base, base, None)
    assert found.files == (base / "model.safetensors",) and found.name == "base"


def test_safetensors_go_before_bin_and_a_whole_file_before_an_index(base: Path):
    write(base, "pytorch_model.bin", "extra.safetensors", "training_args.bin")
    assert [path.name for path in locate(base).files] == ["model.safetensors"]
    (base / "model.safetensors").unlink()
    assert [path.name for path in locate(base).files] == ["pytorch_model.bin"]


def index(folder: Path, *shards: str) -> Path:
    (folder / "model.safetensors").unlink(missing_ok=True)
    weight_map = {f"weight{number}": shard for number, shard in enumerate(shards)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_come_in_order_and_once(base: Path):
    write(base, "a.safetensors", "b.safetensors")
    assert [path.name for path in locate(index(base, "b.safetensors", "a.safetensors", "b.safetensors")).files] == [
        "a.safetensors",
        "b.safetensors",
    ]


@pytest.mark.parametrize("outside", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..\\a", ".."])
def test_a_shard_outside_the_folder_is_refused(base: Path, outside: str):
    write(base / "sub", "a.safetensors")
    write(base.parent, "a.safetensors")
    with pytest.raises(CheckpointError, match=r"lies outside its folder|which is not there"):
        locate(index(base, outside))


def test_an_index_that_names_nothing_usable(base: Path):
    with pytest.raises(CheckpointError, match=r"index.json names model-2.safetensors, which is not there: download"):
        locate(index(base, "model-2.safetensors"))
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        (base / "model.safetensors.index.json").write_text(content)
        with pytest.raises(CheckpointError, match="has no weight_map from weights to files"):
            locate(base)
    for content in ("[", "[]", "[" * 100_000):
        (base / "model.safetensors.index.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"no JSON from line 1 on; copy|is not a JSON object"):
            locate(base)


def test_two_files_of_one_folder_share_config_and_tokenizer(tmp_path: Path):
    folder = write(tmp_path / "two", "config.json", "vocab.txt", "model-a.safetensors", "model-b.safetensors")
    first, second = (locate(folder / f"model-{name}.safetensors") for name in "ab")
    assert (first.kind, first.config, first.tokenizer) == ("file", folder, folder)
    assert second.files == (folder / "model-b.safetensors",) and names_of([first, second]) == ["model-a", "model-b"]


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".pt", ".pth", ".bin"])
def test_a_lone_file_takes_config_and_tokenizer_from_elsewhere(tmp_path: Path, base: Path, ending: str):
    write(tmp_path, f"weights{ending}")
    with pytest.raises(CheckpointError, match=r"has no config.json beside it: .* add --config ID\|DIR --tokenizer"):
        locate(tmp_path / f"weights{ending}")
    found = locate(tmp_path / f"weights{ending}", config=base)
    assert (found.config, found.tokenizer, found.name) == (base, base, "weights")
    found = locate(tmp_path / f"weights{ending}", config=base / "config.json", tokenizer="some/tokenizer")
    assert (found.config, found.tokenizer) == (base, "some/tokenizer")
    (base / "tokenizer.json").unlink()
    assert locate(tmp_path / f"weights{ending}", config=base).tokenizer is None
    assert locate(tmp_path / f"weights{ending}", config="some/model").tokenizer == "some/model"


def test_a_folder_keeps_its_own_config_and_tokenizer(base: Path, tmp_path: Path):
    """Options are for what has none of its own."""
    other = write(tmp_path / "other", "config.json", "vocab.txt")
    assert locate(base, config=other, tokenizer=other).config == base
    assert locate(base, config=other, tokenizer=other).tokenizer == base
    bare = write(tmp_path / "bare", "model.safetensors")
    found = locate(bare, config=other)
    assert (found.kind, found.config, found.tokenizer) == ("directory", other, other)


def test_an_adapter_finds_its_base_as_written_beside_it_or_here(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    places = {
        "as written": (tmp_path / "x", base),
        "relative to the adapter": (tmp_path / "x", "../models/base"),
        "beside it, trained on another machine": (base.parent / "x", "/home/someone/checkpoints/base"),
        "beside it, trained on Windows": (base.parent / "x", "C:\\Users\\someone\\base"),
        "beside it, by a hub id's last part": (base.parent / "x", "some/base"),
    }
    for place, (folder, written) in places.items():
        found = locate(adapter(folder, written))
        assert found.kind == "adapter" and found.base is not None, place
        assert found.base.path is not None and found.base.path.resolve() == base, place
        assert found.files == (folder / "adapter_model.safetensors",)
        assert found.tokenizer == found.base.tokenizer and found.config == found.base.config
        shutil.rmtree(folder)
    monkeypatch.chdir(base.parent)
    found = locate(adapter(tmp_path / "far" / "x", "base"))
    assert found.base is not None and found.base.path == Path("base")


def test_an_adapter_s_own_tokenizer_goes_first(base: Path, tmp_path: Path):
    folder = adapter(tmp_path / "x", base, "tokenizer.json")
    assert locate(folder).tokenizer == folder


def test_an_adapter_whose_base_is_not_here(tmp_path: Path):
    assert locate(adapter(tmp_path / "x", "../gone/base")).base is None
    assert locate(adapter(tmp_path / "y", None)).base is None
    found = locate(adapter(tmp_path / "z", "some/base"))
    assert found.base == Source("some/base", "hub", None, (), "some/base", "some/base")


def test_an_adapter_never_stands_on_itself(tmp_path: Path):
    """A base written as `.`, or of the adapter folder's own name."""
    folder = adapter(tmp_path / "x", ".", "config.json")
    assert locate(folder).base is None
    adapter(folder, "gone/elsewhere/x", "config.json")
    assert locate(folder).base is None


def test_the_weights_of_an_adapter_name_the_adapter(base: Path, tmp_path: Path):
    folder = adapter(tmp_path / "x", base)
    assert locate(folder / "adapter_model.safetensors") == locate(folder)


def test_adapters_stand_on_the_base_given(base: Path, tmp_path: Path):
    """Also where they name one that is not here; not where the one they name has other weights."""
    same = write(tmp_path / "copy", "config.json", "model.safetensors", "tokenizer.json")
    other = write(write(tmp_path / "other", "config.json"), "model.safetensors", content="other weights")
    folders = [adapter(tmp_path / name, base) for name in ("a", "b")] + [adapter(tmp_path / "c", "../gone/base")]
    given, *adapters = settle([locate(each) for each in (same, *folders)])
    assert all(each.base == given and each.config == same and each.tokenizer == same for each in adapters)
    with pytest.raises(CheckpointError, match=r"a is an adapter of .*base, but .*other has other weights: give the"):
        settle([locate(other), locate(folders[0])])
    first, second = settle([locate(folder) for folder in folders[1:]])
    assert first.base == second.base
    stranger = adapter(tmp_path / "d", other)
    with pytest.raises(CheckpointError, match=r"d is an adapter of .*other, but .*a stands on .*base"):
        settle([locate(folders[0]), locate(stranger)])


def test_tuned_models_of_one_name_are_told_apart(tmp_path: Path):
    paths = [write(tmp_path / run / "last", "config.json", "model.safetensors") for run in ("a", "b")]
    assert names_of([locate(path) for path in paths]) == ["a/last", "b/last"]
    assert names_of([locate(paths[0])] * 2) == ["last", "last"]


def test_a_hub_id_is_looked_up_in_the_cache(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    cache: dict[str, Path] = {"some/model": base, "some/adapter": adapter(tmp_path / "x", base)}

    def cached(name: str, file: str) -> str | None:
        path = cache.get(name, tmp_path / "nothing") / file
        return str(path) if path.exists() else None

    monkeypatch.setattr(module, "try_to_load_from_cache", cached)
    found = locate("some/model")
    assert (found.kind, found.path, found.config, found.name) == ("hub", base, "some/model", "some/model")
    assert found.files == (base / "model.safetensors",)
    assert locate("another/model") == Source("another/model", "hub", None, (), "another/model", "another/model")
    assert locate("some/adapter").kind == "adapter"


def test_home_is_written_as_a_tilde(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/models/base").given == "~/models/base" == locate(base).given


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["notes.md"], "holds no config.json and no adapter_config.json"),
        (["config.json"], "it holds neither model.safetensors nor pytorch_model.bin"),
        (["config.json", "b.safetensors"], r"give the file itself, .*b.safetensors"),
        (["adapter_config.json"], "is an adapter without adapter_model.safetensors or adapter_model.bin"),
        (["adapter_config.json", "adapter_model.bin"], "names no peft_type: needed a PEFT adapter"),
    ],
)
def test_a_folder_that_is_no_checkpoint(tmp_path: Path, names: list[str], message: str):
    with pytest.raises(CheckpointError, match=message):
        locate(write(tmp_path / "x", *names))


def test_what_is_no_checkpoint_at_all(tmp_path: Path):
    write(tmp_path, "notes.md")
    with pytest.raises(CheckpointError, match=r"notes.md is a file that ends in none of \.safetensors, \.ckpt"):
        locate(tmp_path / "notes.md")
    for missing in ("./nowhere", "/nowhere/model", "a/b/c", "", ".", tmp_path / "nowhere", "two words"):
        with pytest.raises(CheckpointError, match=r"does not exist: needed|holds no config.json"):
            locate(missing)
    for option in ("config", "tokenizer"):
        with pytest.raises(CheckpointError, match="nowhere does not exist: needed a folder or a hub id"):
            locate(tmp_path, **{option: "./nowhere"})
