"""Models that bypass the attention interface: their weights are reduced as they come, and let go of."""

import gc
from collections.abc import Callable

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from attnlens.checkpoints import session
from attnlens.checkpoints.causality import is_causal
from attnlens.checkpoints.hide import without_keys
from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.proof import prove
from attnlens.checkpoints.record import record
from attnlens.checkpoints.reduced import REASON, UNKNOWN
from attnlens.core.errors import ShapeError, UnsupportedModel
from attnlens.core.pairs import PAIRS
from attnlens.core.rows import STATISTICS
from tests.models import batch, build

KNOWN = tuple(name for name in STATISTICS if name not in UNKNOWN)
ROWWISE = tuple(name for name in KNOWN if STATISTICS[name].axes != "key")
TEXT = {"vocab_size": 100, "hidden_size": 32, "pad_token_id": 0}
OFF: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "bloom": lambda: tf.BloomConfig(n_layer=3, n_head=4, **TEXT),
    "deberta": lambda: tf.DebertaV2Config(
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        **TEXT,
    ),
}


def off(name: str) -> tf.PreTrainedModel:
    return build(name, config=OFF[name]())


def columns(mask: Tensor) -> Tensor:
    """Float groups: content behind the first token, two overlapping groups and a soft one."""
    groups = torch.zeros(*mask.shape, 4)
    groups[:, 1:, 0] = 1
    groups[:, 2:4, 1] = groups[:, 3:7, 2] = 1
    groups[:, 5, 3] = 0.5
    return groups * mask[..., None]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_both_routes_give_the_same_numbers(name: str, side: str, monkeypatch: pytest.MonkeyPatch):
    model, inputs = build(name), batch(side)
    settings = {"groups": columns(inputs["attention_mask"]), "columns": {"mass": (0, 2), "log_odds": (1, 2)}}
    rows = inputs["attention_mask"][..., None] * torch.rand(4)
    for names, more in ((KNOWN, {}), (ROWWISE, {"rows": rows, "together": ((1, 2),)}), (KNOWN, {"heads": [3, 1]})):
        tapes = []
        for route in (False, True):
            with monkeypatch.context() as patch, torch.no_grad():
                if route:
                    patch.setattr(session, "off_interface", lambda root: type(root).__name__)
                with record(model, names, **settings, **more) as tape:
                    model(**inputs)
            tapes.append(tape)
        for statistic in names:
            torch.testing.assert_close(tapes[0][statistic], tapes[1][statistic], equal_nan=True, rtol=1e-5, atol=1e-5)
        assert tapes[0].sites == tapes[1].sites or name == "bert", "causal as the interface says"
        if "rows" in more:
            assert all(torch.equal(tapes[0].count(each), tapes[1].count(each)) for each in names)


@pytest.mark.parametrize("name", OFF)
def test_they_prove_themselves_and_are_left_as_they_were(name: str):
    model, inputs = off(name), batch("left")
    before = (model.config._attn_implementation_internal, sum(len(m._forward_hooks) for m in model.modules()))
    assert prove(model).layers == 3
    with pytest.raises(ZeroDivisionError), torch.no_grad(), record(model):
        model(**inputs)
        _ = 1 / 0
    after = (model.config._attn_implementation_internal, sum(len(m._forward_hooks) for m in model.modules()))
    assert before[0] == after[0] and after[1] <= before[1] + 3, "the library's own hooks stay, ours do not"
    maps = attention_maps(model, inputs, layers=[1], heads=[2])
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[1][:, 2:3]
    real = inputs["attention_mask"].bool()[:, None].expand(maps[:, 0].shape[:3])
    assert torch.allclose(maps[:, 0][real], weights[real], atol=1e-6) and maps[:, 0][~real].isnan().all()


@pytest.mark.parametrize("name", OFF)
def test_the_output_is_the_models_own(name: str):
    model, inputs = off(name), batch("right")
    with torch.no_grad():
        plain, asked = model(**inputs), model(**inputs, output_attentions=True)
        with record(model) as tape:
            recorded, rows = model(**inputs), model(**inputs, return_dict=False)
            kept = model(**inputs, output_attentions=True)
    assert recorded.keys() == plain.keys() and torch.equal(recorded[0], plain[0]) and len(rows) == len(plain)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(kept.attentions, asked.attentions, strict=True))
    assert len(tape.calls) == 3 and all(len(call.sites) == 3 for call in tape.calls)


@pytest.mark.parametrize("name", OFF)
def test_no_map_outlives_its_layer(name: str):
    """Behind each layer, and behind the model, no weights (B, H, T, T) are left in memory but those of that layer."""
    model, inputs = off(name), batch("right")
    texts, length = inputs["input_ids"].shape
    size = texts * 4 * length * length * 4  # bytes
    found = []

    def count(module: nn.Module, args: object, output: object) -> None:
        gc.collect()
        maps = [each for each in gc.get_objects() if isinstance(each, Tensor) and each.shape[1:] == (4, length, length)]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in maps}
        found.append(sum(held >= size for held in storages.values()))

    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == 3)
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad(), record(model, ("entropy",)):
        model(**inputs)
    for hook in hooks:
        hook.remove()
    assert len(found) == 3 and max(found) <= 1, found


@pytest.mark.parametrize("name", OFF)
def test_what_needs_queries_and_keys_has_no_data_and_says_why(name: str):
    model, inputs = off(name), batch("right")
    groups = columns(inputs["attention_mask"])
    with torch.no_grad():
        with record(model, ("entropy", "lse", "share_value"), groups=groups, keep=True) as base:
            model(**inputs)
        with record(model, ("entropy", *PAIRS), against=base.only().logits) as tuned:
            model(**inputs)
    assert base["lse"].isnan().all() and base["share_value"].isnan().all() and not base["entropy"].isnan().all()
    assert base.only().reasons == dict.fromkeys((*UNKNOWN, *PAIRS), REASON) and base.only().logits == []
    assert all(tuned[pair].shape == tuned["entropy"].shape and tuned[pair].isnan().all() for pair in PAIRS)
    assert tuned.only().reasons == dict.fromkeys(PAIRS, REASON)


def test_a_text_is_read_without_its_virtual_tokens():
    from peft import PromptTuningConfig, get_peft_model

    model = tf.BloomForCausalLM(OFF["bloom"]()).eval()
    wrapped = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    inputs = batch("right")
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        with record(wrapped, ("max_weight",)) as whole:
            wrapped(**inputs)
        with record(wrapped, ("entropy", "max_weight"), without_virtual=True) as text:
            wrapped(**inputs)
    assert whole["max_weight"].shape[-1] == length + 3 and text["max_weight"].shape[-1] == length
    assert torch.allclose(text["max_weight"][..., 0], torch.ones(())), "the first token sees itself alone"
    assert text["entropy"][0, 0, 0, 5] > 0


def test_wrong_numbers_are_refused():
    model, inputs = off("bloom"), batch("right")
    with torch.no_grad():
        with pytest.raises(ShapeError, match="heads must lie in 0 … 3"), record(model, heads=[4]):
            model(**inputs)
        with pytest.raises(ShapeError, match="layers must lie in 0 … 2"), record(model, layers=[5]):
            model(**inputs)
        with pytest.raises(ShapeError, match=r"groups must be \(3, 13\)"):
            with record(model, ("mass",), groups=torch.zeros(3, 4, dtype=torch.long)):
                model(**inputs)
    with pytest.raises(UnsupportedModel, match="keys cannot be hidden from it"):
        with without_keys(model, torch.zeros(3, 13, dtype=torch.bool)):
            pass


def test_weights_that_are_not_a_number_are_passed_on():
    model, inputs = off("bloom"), batch("right")
    with torch.no_grad():
        model.get_input_embeddings().weight[inputs["input_ids"][0, 3]] = torch.nan  # pyright: ignore[reportIndexIssue, reportArgumentType]
        with record(model) as tape:
            model(**inputs)
    assert tape["entropy"][0, :, :, 5].isnan().all() and len(tape.sites) == 3


def test_sparse_and_missing_weights_are_refused_with_the_reason():
    config = tf.LongformerConfig(
        **TEXT, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, attention_window=[4]
    )
    with pytest.raises(UnsupportedModel, match="sparse and pooled attention is not measured"):
        prove(tf.LongformerModel(config).eval())
    config = tf.SqueezeBertConfig(
        **TEXT, embedding_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    with pytest.raises(UnsupportedModel, match="and hands back no weights"):
        prove(tf.SqueezeBertModel(config).eval())


def test_whether_they_look_back_only():
    assert is_causal(off("bloom")) and not is_causal(off("deberta"))
    assert is_causal(build("llama")) and not is_causal(build("bert"))


def test_padding_that_a_model_lowers_by_ten_thousand_is_hidden_outright():
    """MarkupLM's own mask: its weights are 0 either way, but the keys a row sees are counted."""
    config = tf.MarkupLMConfig(**TEXT, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    model, inputs = tf.MarkupLMModel(config).eval(), batch("right")
    with torch.no_grad(), record(model, ("entropy", "effective_keys", "entropy_normalized", "received")) as tape:
        model(**inputs)
    keys = inputs["attention_mask"].sum(1)
    expected = tape["entropy"] / keys.log()[:, None, None, None]
    assert torch.allclose(tape["entropy_normalized"], expected, equal_nan=True)
    assert torch.equal(tape["received"][:, 0].isnan(), (inputs["attention_mask"] == 0)[:, None].expand(-1, 4, -1))


@pytest.mark.parametrize("name", OFF)
def test_it_nests(name: str):
    model, inputs = off(name), batch("right")
    with torch.no_grad():
        with record(model, ("entropy",)) as alone:
            model(**inputs)
        with record(model, ("entropy",)) as outer, record(model, ("entropy", "max_weight"), layers=[1]) as inner:
            output = model(**inputs)
    assert torch.equal(outer["entropy"].nan_to_num(), alone["entropy"].nan_to_num()) and len(inner.sites) == 1
    assert torch.equal(inner["entropy"][:, 0].nan_to_num(), alone["entropy"][:, 1].nan_to_num())
    assert "attentions" not in output


@pytest.mark.parametrize("route", ["interface", "weights"])
def test_a_thousand_blocks_leave_nothing_behind(route: str):
    model, inputs = build("bert") if route == "interface" else off("bloom"), batch("right", tokens=6)
    with torch.no_grad():
        for turn in range(1000):
            with record(model, ("max_weight",), layers=[0]):
                model(**inputs) if turn % 100 == 0 else model(input_ids=inputs["input_ids"][:, :2])
            if turn == 100:
                gc.collect()
                before = len(gc.get_objects())
    gc.collect()
    assert len(gc.get_objects()) - before < 200 and not any(module._forward_hooks for module in model.modules())
