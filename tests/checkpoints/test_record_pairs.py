"""`keep` and `against`: one model's maps held against another's, without keeping a map."""

import pytest
import torch
from torch import Tensor

from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.record import record
from attnlens.core.errors import ShapeError, UnknownName
from attnlens.core.pairs import PAIRS, Logits
from tests.models import batch, build

NAMES = tuple(PAIRS)


def kept(model, inputs, **choice) -> list[Logits]:
    with torch.no_grad(), record(model, ("max_weight",), keep=True, **choice) as tape:
        model(**inputs)
    return tape.only().logits


def compared(model, inputs, against, names: tuple[str, ...] = NAMES, **choice):
    with torch.no_grad(), record(model, names, against=against, **choice) as tape:
        model(**inputs)
    return tape


def by_hand(p: Tensor, q: Tensor) -> dict[str, Tensor]:
    """Divergences of dense maps (…, K) in float64, term by term as textbooks write them."""
    p, q = p.double(), q.double()
    m = (p + q) / 2

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(a == 0, 0.0, a * (a / b).log()).sum(-1)  # NaN on padding rows

    return {
        "jsd": (kl(p, m) + kl(q, m)) / 2,
        "kl_forward": kl(p, q),
        "kl_backward": kl(q, p),
        "tv": (p - q).abs().sum(-1) / 2,
    }


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("name", "side"), [("bert", "right"), ("llama", "left"), ("gpt2", "right"), ("qwen3", "right")]
)
def test_a_model_against_itself_is_exactly_zero(name: str, side: str, exact: bool):
    model, inputs = build(name), batch(side)
    tape = compared(model, inputs, kept(model, inputs, exact=exact), exact=exact)
    padding = inputs["attention_mask"] == 0
    for statistic in NAMES:
        assert tape[statistic].shape == (3, 2, 4, 13)
        assert torch.equal(tape[statistic][:, 0, 0].isnan(), padding)
        assert (tape[statistic].nan_to_num() == 0).all(), statistic


@pytest.mark.parametrize("choice", [{}, {"layers": [1]}, {"heads": [3, 0]}, {"layers": [0], "heads": [2]}])
@pytest.mark.parametrize(("name", "side"), [("bert", "right"), ("llama", "left"), ("gpt2", "left")])
def test_a_changed_model_has_the_divergences_of_its_maps(name: str, side: str, choice: dict):
    base, tuned, inputs = build(name).double(), build(name, seed=1).double(), batch(side)
    tape = compared(tuned, inputs, kept(base, inputs, **choice), **choice)
    maps = [attention_maps(model, inputs, **choice) for model in (base, tuned)]
    tolerance = 1e-5 if name == "llama" else 1e-9  # Llama's rotary angles are float32 whatever the model is
    for statistic, want in by_hand(*maps).items():
        got = tape[statistic]
        assert got.isfinite().any() and (got.nan_to_num() > 1e-4).any(), "the models differ"
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance, equal_nan=True, msg=statistic)


def test_row_means_are_those_of_the_rows():
    base, tuned, inputs = build("llama"), build("llama", seed=1), batch("right")
    logits = kept(base, inputs)
    rows = torch.rand(3, 13, 2, generator=torch.Generator().manual_seed(3)).round()
    groups = torch.ones(3, 13, 2)
    full = compared(tuned, inputs, logits)
    means = compared(tuned, inputs, logits, (*NAMES, "mass"), rows=rows, groups=groups)
    keep = rows[..., 0].bool() & inputs["attention_mask"].bool()
    for statistic in NAMES:
        values = full[statistic].movedim(3, 1)  # (B, Q, L, H)
        want = torch.stack([values[b][keep[b]].mean(0) for b in range(3)])
        torch.testing.assert_close(means[statistic], want, atol=1e-6, rtol=1e-5)
        assert (means.count(statistic).reshape(3, -1) == keep.sum(1, keepdim=True)).all()
    assert means["mass"].shape == (3, 2, 4, 2)


def test_an_infinite_row_without_weight_leaves_the_mean_alone():
    """A key that only the base sees makes KL(base‖tuned) infinite in its row, not in the mean of the others."""
    model = build("bert")
    ids = batch("right")["input_ids"]
    seen = torch.ones(3, 1, 13, 13, dtype=torch.bool)
    logits = kept(model, {"input_ids": ids, "attention_mask": seen})
    hidden = seen.clone()
    hidden[:, :, 4, 7] = False
    rows = torch.ones(3, 13)
    inputs = {"input_ids": ids, "attention_mask": hidden}
    assert compared(model, inputs, logits, ("kl_forward",), rows=rows)["kl_forward"].isposinf().all()
    rows[:, 4] = 0
    assert compared(model, inputs, logits, ("kl_forward",), rows=rows)["kl_forward"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_logits_are_small_and_of_the_models_dtype(dtype: torch.dtype):
    """q and k of GPT-2 are views of one projection with v: the kept copies must not hold all three."""
    model, inputs = build("gpt2").to(dtype), batch("right")
    logits = kept(model, inputs)
    assert len(logits) == 2
    for site in logits:
        assert site.query.dtype == site.key.dtype == dtype
        for tensor in (site.query, site.key):
            assert tensor.shape == (3, 4, 13, 8)
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_kept_logits_carry_no_graph():
    encoder = build("t5").get_encoder()
    with record(encoder, keep=True) as tape:
        encoder(**batch("right")).last_hidden_state.sum().backward()
    for query, key, scores in tape.only().logits:
        assert scores.bias is not None
        assert not (query.requires_grad or key.requires_grad or scores.bias.requires_grad)


def test_selection_takes_the_logits_of_its_sites():
    model = build("t5")
    with torch.no_grad(), record(model, keep=True) as tape:
        model(**batch("right"), decoder_input_ids=torch.full((3, 5), 7))
    cross = tape.select(kind="cross").only()
    assert len(tape.only().logits) == 6
    assert [site.key.shape[2] for site in cross.logits] == [13, 13]
    assert [site.query.shape[2] for site in cross.logits] == [5, 5]


def test_bad_orders():
    model, inputs = build("bert"), batch("right")
    logits = kept(model, inputs)
    with pytest.raises(ShapeError, match=r"jsd compare two models: pass against=call\.logits"), record(model, ("jsd",)):
        pass
    with pytest.raises(UnknownName, match="did you mean 'jsd'"), record(model, ("jds",), against=logits):
        pass
    with pytest.raises(ShapeError, match="against holds the logits of 1 attentions; this model runs more"):
        compared(model, inputs, logits[:1])
    with pytest.raises(ShapeError, match="against holds the logits of 2 attentions; this model ran 1"):
        compared(model, inputs, logits, layers=[0])
    with pytest.raises(ShapeError, match="two maps must have one shape"):
        compared(model, {name: tensor[:, :8] for name, tensor in inputs.items()}, logits)
