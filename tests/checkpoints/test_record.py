"""`record`: same outputs, exact statistics, every trap of the interface, no trace left behind."""

import copy

import pytest
import torch
import transformers as tf
from torch import nn

from attnlens.checkpoints import switch
from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.record import record
from attnlens.core.errors import AttnlensError, ShapeError, UnknownName, UnsupportedModel
from attnlens.core.rows import STATISTICS, AttentionMap, Groups, row_statistics
from tests.models import BERT, CONFIGS, batch, build

NAMES = ("entropy", "entropy_normalized", "max_weight", "mass", "share", "log_odds", "received", "distance")


def eager_statistics(model, inputs, groups) -> dict[str, torch.Tensor]:
    """The same statistics from the model's own eager weights, in the dtype of the model, stacked (B, L, …)."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.stack(model(**inputs, output_attentions=True).attentions, 1)
    real = inputs["attention_mask"].bool()
    causal = bool(weights[-1, 0, 0, 0, 1:].sum() == 0)
    visible = real[:, None, None, :].expand(weights[:, 0].shape)
    if causal:
        visible = visible.tril()
    layers = [
        row_statistics(
            AttentionMap(
                layer.double().masked_fill(~visible, 0.0)
                / layer.double().masked_fill(~visible, 0.0).sum(-1, keepdim=True).clamp(min=1e-300),
                visible,
                real,
                None,
                Groups.of(groups),
            ),
            NAMES,
        )
        for layer in weights.unbind(1)
    ]
    return {name: torch.stack([layer[name] for layer in layers], 1) for name in NAMES}


def partition(inputs) -> torch.Tensor:
    groups = torch.randint(0, 3, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(2))
    return groups.masked_fill(inputs["attention_mask"] == 0, -1)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", CONFIGS)
def test_statistics_equal_eager_ones_and_outputs_are_kept(name: str, side: str):
    model, inputs = build(name), batch(side)
    groups, real = partition(inputs), inputs["attention_mask"].bool()
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
        with record(model, NAMES, groups=groups) as tape:
            tiled = model(**inputs).last_hidden_state
        with record(model, NAMES, groups=groups, exact=True) as exact:
            own = model(**inputs).last_hidden_state
    assert torch.equal(own, plain), "exact mode is bit for bit"
    assert (tiled - plain)[real].abs().max() <= 1e-5 * plain[real].abs().max()
    expected = eager_statistics(model, inputs, groups)
    for statistic in NAMES:
        for got in (tape[statistic], exact[statistic]):
            want = expected[statistic].clone()
            if statistic == "received":  # padding keys are seen by nobody
                assert got.isnan().any() == (~real).any()
            torch.testing.assert_close(got.double(), want, atol=2e-4, rtol=2e-4, equal_nan=True, msg=statistic)


@pytest.mark.parametrize("name", ["bert", "gpt2"])  # Llama's own eager softmax is float32 whatever the model is
def test_double_precision_models_are_exact_to_1e_11(name: str):
    model, inputs = build(name).double(), batch("right")
    groups = partition(inputs)
    with torch.no_grad(), record(model, NAMES, groups=groups) as tape:
        model(**inputs)
    expected = eager_statistics(model, inputs, groups)
    for statistic in NAMES:
        torch.testing.assert_close(tape[statistic], expected[statistic], atol=1e-11, rtol=1e-11, equal_nan=True)


def test_padding_and_batch_composition_change_nothing():
    """I-9: each text alone, without padding, has the rows it has in the batch."""
    model, inputs = build("bert"), batch("right")
    with torch.no_grad():
        with record(model) as tape:
            model(**inputs)
        for text, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            with record(model) as single:
                model(input_ids=inputs["input_ids"][text : text + 1, :length])
            torch.testing.assert_close(tape["entropy"][text, ..., :length], single["entropy"][0], atol=2e-5, rtol=2e-5)
            assert tape["entropy"][text, ..., length:].isnan().all()


def test_eager_models_keep_their_weights_and_their_mask():
    model, inputs = build("gpt2"), batch("left")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        plain = model(**inputs, output_attentions=True)
        with record(model) as tape:
            got = model(**inputs, output_attentions=True)
        unpadded = inputs["input_ids"]
        alone = model(input_ids=unpadded).last_hidden_state
        with record(model, exact=True):  # here transformers would skip the causal mask for us
            assert torch.equal(model(input_ids=unpadded).last_hidden_state, alone)
    assert all(torch.equal(a, b) for a, b in zip(got.attentions, plain.attentions, strict=True))
    assert tape["entropy"].shape == (3, 2, 4, 13)


def test_autocast_does_not_round_the_statistics():
    model, inputs = build("bert"), batch("right")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), record(model) as tape:
        model(**inputs)
    assert tape["entropy"].dtype == torch.float32
    high = copy.deepcopy(model).double()
    with torch.no_grad(), record(high) as exact:
        high(**inputs)
    assert (tape["entropy"] - exact["entropy"]).abs().nan_to_num().max() < 0.35  # q and k are bf16, the sums are not
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        record(model, ("mass",), groups=partition(inputs)) as sums,
    ):
        model(**inputs)
    assert (sums["mass"].sum(-1).nan_to_num(1.0) - 1).abs().max() < 1e-5


def test_user_masks_of_four_axes_bool_float_and_per_head():
    model = build("bert")
    ids = batch("right")["input_ids"]
    seen = torch.rand(3, 1, 13, 13, generator=torch.Generator().manual_seed(5)) < 0.7
    seen |= torch.eye(13, dtype=torch.bool)
    floor = torch.finfo(torch.float32).min
    additive = torch.where(seen, 0.0, floor)
    with torch.no_grad():
        with record(model, ("entropy", "entropy_normalized")) as of_bool:
            model(input_ids=ids, attention_mask=seen)
        with record(model, ("entropy", "entropy_normalized")) as of_float:
            model(input_ids=ids, attention_mask=additive)
        per_head = additive.expand(3, 4, 13, 13).clone()
        per_head[:, 2, :, 4] += 1.5
        with record(model) as edited:
            model(input_ids=ids, attention_mask=per_head)
    torch.testing.assert_close(of_bool["entropy_normalized"], of_float["entropy_normalized"])
    gap = (edited["entropy"] - of_bool["entropy"])[:, 0].abs().amax((0, 2))
    assert gap[2] > 1e-3
    assert gap[[0, 1, 3]].max() < 1e-5


def test_rows_average_what_the_tape_would_hold():
    model, inputs = build("bert"), batch("right")
    groups = partition(inputs)
    rows = (torch.rand(3, 13, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    with torch.no_grad():
        with record(model, NAMES, groups=groups) as full:
            model(**inputs)
        with record(model, NAMES, groups=groups, rows=rows) as means:
            model(**inputs)
    keep = rows.bool() & inputs["attention_mask"].bool()
    for name in ("entropy", "mass"):
        values = full[name].movedim(3, 1)  # (B, Q, L, H[, G])
        want = torch.stack([values[b][keep[b]].mean(0) for b in range(3)])
        torch.testing.assert_close(means[name], want, atol=1e-6, rtol=1e-5)
        assert (means.count(name).reshape(3, -1) == keep.sum(1, keepdim=True)).all()
    assert means["received"].shape == (3, 2, 4, 13)


def test_layers_and_heads_select():
    model, inputs = build("llama"), batch("left")
    with torch.no_grad():
        with record(model) as full:
            model(**inputs)
        with record(model, layers=[1], heads=[3, 0]) as some:
            output = model(**inputs).last_hidden_state
        plain = model(**inputs).last_hidden_state
    assert torch.equal(output, plain)
    assert some["entropy"].shape == (3, 1, 2, 13)
    torch.testing.assert_close(some["entropy"][:, 0], full["entropy"][:, 1, [3, 0]], equal_nan=True)
    with torch.no_grad(), pytest.raises(ShapeError, match="heads must lie in"), record(model, heads=[9]):
        model(**inputs)


@pytest.mark.parametrize(("name", "stack"), [("bert", "encoder"), ("gpt2", "decoder"), ("llama", "decoder")])
def test_sites_say_where_they_stand(name: str, stack: str):
    model = build(name)
    with torch.no_grad(), record(model) as tape:
        model(**batch("right"))
    assert [(site.stack, site.kind, site.number) for site in tape.sites] == [(stack, "self", 0), (stack, "self", 1)]
    assert all(dict(model.named_modules())[site.name] for site in tape.sites)
    assert tape.select(stack=stack)["entropy"].shape == tape["entropy"].shape
    with pytest.raises(AttnlensError, match="no attention with stack"):
        tape.select(kind="cross")


def test_attention_maps_are_the_eager_weights():
    model, inputs = build("qwen2"), batch("left")
    maps = attention_maps(model, inputs, layers=[1], heads=[1, 2])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = model(**inputs, output_attentions=True).attentions[1][:, [1, 2]]
    real = inputs["attention_mask"].bool()[:, None, :, None].expand_as(eager)
    assert maps.shape == (3, 1, 2, 13, 13)
    torch.testing.assert_close(maps[:, 0][real], eager[real], atol=1e-6, rtol=1e-5)
    assert maps[:, 0][~real].isnan().all()


def test_eager_weights_of_plain_transformers_would_be_empty():
    """The trap this project exists for: sdpa + output_attentions gives an empty tuple, and only a log line."""
    model = build("bert")
    with torch.no_grad():
        assert not model(**batch("right"), output_attentions=True).attentions


def test_what_is_no_model_is_refused():
    with pytest.raises(UnsupportedModel, match="holds no transformers model"), record(nn.Linear(2, 2)):
        pass


def test_exact_recording_refuses_kernels_whose_masks_differ():
    model = build("bert")
    model.config._attn_implementation_internal = "flash_attention_2"
    match = 'load the model with attn_implementation="sdpa"'
    with torch.no_grad(), pytest.raises(UnsupportedModel, match=match), record(model, exact=True):
        model(**batch("right"))


def test_a_neutral_name_survives_the_name_parsing_of_transformers():
    assert not any(word in switch.NAME for word in ("sdpa", "flash", "flex", "/", "|"))


def test_bad_arguments():
    model, inputs = build("bert"), batch("right")
    with torch.no_grad():
        with pytest.raises(UnknownName, match="did you mean 'entropy'"), record(model, ("entropi",)):
            pass
        with (
            pytest.raises(ShapeError, match=r"groups must be \(3, 13\)"),
            record(model, ("mass",), groups=torch.zeros(3, 4, dtype=torch.long)),
        ):
            model(**inputs)
        with pytest.raises(ShapeError, match=r"rows must be \(3, 13\)"), record(model, rows=torch.ones(3, 4)):
            model(**inputs)
        with (
            pytest.raises(ShapeError, match="rows of 0 and 1"),
            record(model, ("received",), rows=torch.full((3, 13), 0.5)),
        ):
            pass


def test_entropies_of_minilm_equal_float64_from_plain_hooks(minilm):
    """q and k taken by plain forward hooks on the projections of the real encoder, reduced in float64, to 1e-5."""
    model = tf.BertModel.from_pretrained(minilm).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(
        ["The Licensor shall indemnify the Licensee against all claims.", "It rains."],
        padding=True,
        return_tensors="pt",
    )
    caught: dict[str, list[torch.Tensor]] = {"query": [], "key": []}
    hooks = [
        getattr(layer.attention.self, name).register_forward_hook(
            lambda _, __, out, name=name: caught[name].append(out.double())
        )
        for layer in model.encoder.layer
        for name in caught
    ]
    groups = torch.zeros_like(inputs["input_ids"])
    groups[:, [0]], groups[:, 3:6] = 2, 1
    groups[inputs["attention_mask"] == 0] = -1
    names = ("entropy", "mass", "log_odds", "max_weight", "renyi2")
    with torch.no_grad(), record(model, names, groups=groups) as tape:
        model(**inputs)
    for hook in hooks:
        hook.remove()
    real = inputs["attention_mask"].bool()
    for layer, (q, k) in enumerate(zip(caught["query"], caught["key"], strict=True)):
        q, k = (t.view(2, -1, 12, 32).transpose(1, 2) for t in (q, k))
        logits = (q @ k.transpose(2, 3) / 32**0.5).masked_fill(~real[:, None, None], -torch.inf)
        p = logits.softmax(-1)
        rows = real[:, None].expand(2, 12, -1)
        salient, other = (groups == 1)[:, None, None], (groups == 0)[:, None, None]

        def mean_logit(side, logits=logits):
            return logits.masked_fill(~side, -torch.inf).logsumexp(-1) - side.sum(-1).log()

        want = {
            "entropy": torch.special.entr(p).sum(-1),
            "max_weight": p.amax(-1),
            "renyi2": -p.square().sum(-1).log(),
        }
        for name, value in want.items():
            assert (tape[name][:, layer].double() - value)[rows].abs().max() < 1e-5, name
        assert (tape["mass"][:, layer, ..., 1].double() - (p * salient).sum(-1))[rows].abs().max() < 1e-5
        odds = mean_logit(salient) - mean_logit(other)
        assert (tape["log_odds"][:, layer, ..., 1].double() - odds)[rows].abs().nan_to_num().max() < 1e-5


def test_a_planted_key_bias_moves_log_odds_by_itself_through_a_whole_model():
    """A float bias per head, planted by a pre-hook on one attention module, survives `record` (METRICS 3.3)."""
    model, inputs = build("bert"), batch("right")
    groups = partition(inputs)
    bias = torch.zeros(3, 4, 13, 13)
    bias[:, 2] = 0.9 * (groups == 1)[:, None].float()

    def plant(_, args, kwargs):
        mask = kwargs["attention_mask"]
        return args, kwargs | {"attention_mask": torch.where(mask, bias, torch.finfo(torch.float32).min)}

    with torch.no_grad():
        with record(model, ("log_odds",), groups=groups) as plain:
            model(**inputs)
        hook = model.encoder.layer[1].attention.self.register_forward_pre_hook(plant, with_kwargs=True)
        with record(model, ("log_odds",), groups=groups) as planted:
            model(**inputs)
        hook.remove()
    shift = (planted["log_odds"] - plain["log_odds"])[..., 1]
    assert (shift[:, 0].nan_to_num() == 0).all()
    assert (shift[:, 1, [0, 1, 3]].nan_to_num().abs() < 1e-5).all()
    assert ((shift[:, 1, 2] - 0.9).nan_to_num().abs() < 1e-5).all()


def test_every_statistic_of_the_registry_can_be_recorded():
    model, inputs = build("llama"), batch("right")
    with torch.inference_mode(), record(model, tuple(STATISTICS), groups=partition(inputs)) as tape:
        model(**inputs)
    axes = {"row": (3, 2, 4, 13), "group": (3, 2, 4, 13, 3), "key": (3, 2, 4, 13)}
    for name, statistic in STATISTICS.items():
        assert tape[name].shape == axes[statistic.axes], name


def test_peft_models_are_recorded_with_and_without_the_adapter():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("bert"), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    inputs = batch("right")
    base = build("bert")
    with torch.no_grad():
        with record(model) as tuned:
            model(**inputs)
        with model.disable_adapter(), record(model) as off:
            model(**inputs)
        with record(base) as plain:
            base(**inputs)
    torch.testing.assert_close(off["entropy"], plain["entropy"], equal_nan=True)
    assert (tuned["entropy"] - plain["entropy"]).abs().nan_to_num().max() > 1e-4
    assert BERT["num_hidden_layers"] == len(tuned.sites)


class Wrapper(nn.Module):
    """A root that hides the mask from its own signature."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, everything):
        return self.model(**everything)


def test_padding_is_seen_through_wrappers_and_positional_calls():
    from peft import LoraConfig, get_peft_model

    model, inputs = build("bert"), batch("right")
    padding = ~inputs["attention_mask"].bool()
    root = Wrapper(model)
    with torch.no_grad():
        with record(root) as wrapped:
            root(inputs)
        adapted = get_peft_model(build("bert"), LoraConfig(r=2, target_modules=["query"]))
        with record(adapted) as positional:
            adapted(inputs["input_ids"], inputs["attention_mask"])
    assert torch.equal(wrapped["entropy"][:, 0, 0].isnan(), padding)
    assert torch.equal(positional["entropy"][:, 0, 0].isnan(), padding)


def test_rows_may_differ_by_group():
    model, inputs = build("bert"), batch("right")
    groups = partition(inputs)
    rows = (torch.rand(3, 13, 3, generator=torch.Generator().manual_seed(4)) < 0.5).float()
    with torch.no_grad():
        with record(model, ("mass", "entropy"), groups=groups, rows=rows) as together:
            model(**inputs)
        for column in range(3):
            with record(model, ("mass", "entropy"), groups=groups, rows=rows[..., column]) as alone:
                model(**inputs)
            torch.testing.assert_close(together["mass"][..., column], alone["mass"][..., column])
            if column == 0:
                torch.testing.assert_close(together["entropy"], alone["entropy"])


def test_columns_are_chosen_for_each_statistic():
    """As they stand in the whole, with rows for all and with rows for each column."""
    model, inputs = build("bert"), batch()
    groups = torch.rand(*inputs["input_ids"].shape, 4, generator=torch.Generator().manual_seed(0)).round()
    groups[..., 0] = 1
    columns = {"share": (3, 1), "mass": (0,)}
    names = ("share", "mass", "lift", "entropy")
    shared = inputs["attention_mask"].float()
    for rows in (None, shared, shared[..., None] * torch.tensor([1.0, 1, 1, 0.5])):
        with torch.no_grad():
            with record(model, names, groups=groups, rows=rows) as whole:
                model(**inputs)
            with record(model, names, groups=groups, rows=rows, columns=columns) as tape:
                model(**inputs)
        for name in names:
            expected = whole[name][..., list(columns[name])] if name in columns else whole[name]
            torch.testing.assert_close(tape[name], expected, atol=1e-6, rtol=0, equal_nan=True)


def test_layers_that_do_not_exist_are_refused():
    model = build("bert")
    with (
        torch.no_grad(),
        pytest.raises(ShapeError, match="layers must lie in 0 … 1; got \\[5\\]"),
        record(model, layers=[5]),
    ):
        model(**batch("right"))
