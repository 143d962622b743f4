"""Laws of METRICS 7.3 through whole real models; the table of all laws: tests/laws/__init__.py."""

import copy
import math
from pathlib import Path

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import Tensor

from attnlens.analysis.weights import head_changes
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.record import record
from attnlens.core.pairs import PAIRS
from attnlens.core.rows import dense_map
from tests.laws.models import NAMES, Real, layers_of, noisy, same


def test_queries_of_zero_make_every_head_uniform(real: Real):
    """I-1, I-3: log n_i, n_i keys, λ = 0, R̃ = 1; of a decoder mean H = log(T!)/T and R_j = (H_T − H_j)/(T − j)."""
    flat = copy.deepcopy(real.model)
    with torch.no_grad():
        for name, weight in flat.named_parameters():
            if "query" in name or "q_proj" in name:
                weight.zero_()
    names = ("entropy", "entropy_normalized", "effective_keys", "lift", "log_odds", "received", "received_mean")
    tape = real.tape(flat, names)
    for text, length in enumerate(real.real.sum(1).tolist()):
        count = torch.arange(1, length + 1) if real.causal else torch.full((length,), length)
        rows = {name: tape[name][text, :, :, :length] for name in names}
        assert (rows["entropy"] - count.double().log()).abs().max() < 1e-11
        assert (rows["effective_keys"] - count).abs().max() < 1e-10
        assert (rows["entropy_normalized"] - 1).nan_to_num().abs().max() < 1e-11
        assert (rows["received"] - 1).abs().max() < 1e-11
        assert (rows["lift"] - 1).nan_to_num().abs().max() < 1e-11 and rows["log_odds"].nan_to_num().abs().max() < 1e-11
        if real.causal:
            assert rows["entropy"].mean().item() == pytest.approx(math.lgamma(length + 1) / length, abs=1e-11)
            harmonic = torch.cat([torch.zeros(1), (1 / torch.arange(1, length + 1, dtype=torch.float64)).cumsum(0)])
            raw = (harmonic[-1] - harmonic[:-1]) / (length - torch.arange(length))
            assert (rows["received_mean"] - raw).abs().max() < 1e-11


def test_a_constant_on_each_row_of_logits_changes_nothing(real: Real):
    """I-6, planted as a float mask of another constant for every row and head of every layer."""
    length, heads = real.groups.shape[1], real.model.config.num_attention_heads
    visible = real.real[:, None, None].expand(-1, heads, length, length)
    visible = visible.tril() if real.causal else visible
    rows = 30 * torch.randn(3, heads, length, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = real.tape()
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: (
                args,
                kwargs | {"attention_mask": torch.where(visible, rows, torch.finfo(torch.float64).min)},
            ),
            with_kwargs=True,
        )
        for module in real.attentions()
    ]
    try:
        got = real.tape()
    finally:
        for hook in hooks:
            hook.remove()
    same(got, expected)


def mixing(real: Real, size: int, seed: int) -> Tensor:
    """What may stand between queries and keys: any invertible matrix, or with RoPE a turn and a scale in each plane."""
    generator = torch.Generator().manual_seed(seed)
    if not real.causal:
        square = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(square)[0] * (0.5 + torch.rand(size, generator=generator, dtype=torch.float64))
    angle, scale = (torch.rand(size // 2, generator=generator, dtype=torch.float64) * n for n in (6.28, 2.0))
    cosine, sine = torch.diag((scale + 0.3) * angle.cos()), torch.diag((scale + 0.3) * angle.sin())
    return torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)])


def test_a_basis_that_attention_cannot_see_changes_nothing(real: Real):
    """I-7: queries and keys of a head in another basis; of MiniLM another key bias too."""
    turned = copy.deepcopy(real.model)
    heads = real.model.config.num_attention_heads
    key_heads = real.model.config.num_key_value_heads if real.causal else heads
    size = real.model.config.hidden_size // heads
    with torch.no_grad():
        for number, (module, old) in enumerate(zip(real.attentions(turned), real.attentions(), strict=True)):
            query, key = (module.q_proj, module.k_proj) if real.causal else (module.query, module.key)
            for head in range(heads):
                mix = mixing(real, size, 100 * number + head // (heads // key_heads))
                rows = slice(head * size, (head + 1) * size)
                for tensor in (query.weight, query.bias):
                    if tensor is not None:
                        tensor[rows] = torch.linalg.inv(mix).T @ tensor[rows]
            for head in range(key_heads):
                rows = slice(head * size, (head + 1) * size)
                key.weight[rows] = mixing(real, size, 100 * number + head) @ key.weight[rows]
            if key.bias is not None:
                key.bias.copy_(torch.linspace(-3, 3, len(key.bias)))
            before = old.q_proj if real.causal else old.query
            assert (query.weight - before.weight).norm() > 0.5 * before.weight.norm()
    same(real.tape(turned), real.tape())
    sides = [Checkpoint(model, real.tokenizer, name, {}) for model, name in ((real.model, "a"), (turned, "b"))]
    changes = head_changes(*sides)
    assert changes["relative"].max() < 1e-10


def test_permuted_heads_permute_the_tables_and_nothing_else(real: Real):
    """I-8: key heads in another order, each with its query heads."""
    permuted = copy.deepcopy(real.model)
    heads = real.model.config.num_attention_heads
    key_heads = real.model.config.num_key_value_heads if real.causal else heads
    size, per = real.model.config.hidden_size // heads, heads // key_heads
    key_order = torch.randperm(key_heads, generator=torch.Generator().manual_seed(0))
    order = (key_order[:, None] * per + torch.arange(per)).flatten()

    def places(of: Tensor) -> Tensor:
        return (of[:, None] * size + torch.arange(size)).flatten()

    with torch.no_grad():
        for layer in layers_of(permuted):
            inner = layer.self_attn if real.causal else layer.attention.self
            out = inner.o_proj if real.causal else layer.attention.output.dense
            parts = ("q_proj", "k_proj", "v_proj") if real.causal else ("query", "key", "value")
            for part, of in zip(parts, (order, key_order, key_order), strict=True):
                for tensor in getattr(inner, part).parameters():
                    tensor.copy_(tensor[places(of)].clone())
            out.weight.copy_(out.weight[:, places(order)].clone())
    got, expected = real.tape(permuted), real.tape()
    same({name: got[name] for name in NAMES}, {name: expected[name][:, :, order] for name in NAMES})
    for name in NAMES:
        torch.testing.assert_close(
            got[name].nanmean(2), expected[name].nanmean(2), atol=1e-9, rtol=1e-9, equal_nan=True
        )
    with torch.no_grad():
        states = [model(**real.inputs).last_hidden_state[real.real] for model in (permuted, real.model)]
    assert (states[0] - states[1]).abs().max() < 1e-9


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_company_change_nothing(real: Real, side: str):
    """I-9: padded columns get exactly 0; padded rows look somewhere in plain transformers and are no data here."""
    lengths = real.real.sum(1).tolist()
    mask = real.inputs["attention_mask"]
    ids, groups, places = real.inputs["input_ids"], real.groups, (mask.cumsum(1) - 1).clamp(min=0)
    if side == "left":
        ids, mask, groups, places = (
            torch.stack([row.roll(len(row) - n) for row, n in zip(each, lengths, strict=True)])
            for each in (ids, mask, groups, places)
        )
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    with torch.no_grad(), record(real.model, NAMES, groups=groups) as batch:
        real.model(**inputs)
    for text, length in enumerate(lengths):
        part = slice(-length, None) if side == "left" else slice(0, length)
        alone = {"input_ids": ids[text : text + 1, part], "position_ids": places[text : text + 1, part]}
        with torch.no_grad(), record(real.model, NAMES, groups=groups[text : text + 1, part]) as single:
            real.model(**alone)
        same({name: batch[name][text, :, :, part] for name in NAMES}, {name: single[name][0] for name in NAMES})
    padding = mask == 0
    maps = attention_maps(real.model, inputs)
    shown = maps.permute(0, 3, 1, 2, 4)  # (B, Q, L, H, K)
    assert shown[padding].isnan().all() and not shown[~padding].isnan().any()
    to_padding = maps.permute(0, 4, 1, 2, 3)[padding]
    assert (to_padding.nan_to_num() == 0).all()
    assert torch.equal(batch["entropy"][:, 0, 0].isnan(), padding)
    if side == "right":
        plain = copy.deepcopy(real.model)
        plain.set_attn_implementation("eager")
        with torch.no_grad():
            weights = plain(**inputs, output_attentions=True).attentions[0]
        spread = torch.special.entr(weights).sum(-1).permute(0, 2, 1)[padding]
        assert spread.mean() > 0.3, "rows of padding have an entropy of their own"


def test_masses_and_received_attention_add_up(real: Real):
    """I-10, I-11, I-13: every row gives 1 in all, and the keys of a text receive as many as it has rows."""
    tape = real.tape(names=("mass", "received_mean"))
    masses = tape["mass"].sum(-1)
    assert (masses - 1).nan_to_num().abs().max() < 1e-12
    assert torch.equal(masses[:, 0, 0].isnan(), ~real.real)
    for text, length in enumerate(real.real.sum(1).tolist()):
        seen = length - torch.arange(length) if real.causal else torch.full((length,), length)
        total = (tape["received_mean"][text, :, :, :length] * seen).sum(-1)
        assert (total - length).abs().max() < 1e-11
    rows = attention_maps(real.model, real.inputs).double().sum(-1).permute(0, 3, 1, 2)[real.real]
    assert (rows - 1).abs().max() < 1e-6  # maps are float32


def test_a_sharper_first_layer_has_less_entropy_everywhere(real: Real):
    """I-15: queries times τ are logits times τ."""
    ladder = []
    for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
        model = copy.deepcopy(real.model)
        first = real.attentions(model)[0]
        first = first.q_proj if real.causal else first.query
        with torch.no_grad():
            for tensor in first.parameters():
                tensor.mul_(factor)
        ladder.append(real.tape(model, ("entropy",), layers=[0])["entropy"])
    steps = torch.stack(ladder).diff(dim=0)
    assert (steps.nan_to_num(0.0) <= 0).all()
    assert (steps[~steps.isnan()] < 0).double().mean() > 0.9, "a row of one key alone stays at 0"


def test_entropy_is_above_what_the_logits_allow(real: Real):
    """I-16: Zhai's certificate, by row, of every map of the model, and of its divergences from a changed one."""
    tape = real.tape(names=("entropy",), keep=True)
    kept = tape.only().logits
    for layer, (query, key, scores) in enumerate(kept):
        attention = dense_map(query, key, scores)
        n = attention.keys
        logits = torch.where(attention.visible, attention.logs, 0.0)
        centred = torch.where(attention.visible, logits - (logits.sum(-1) / n)[..., None], 0.0)
        sigma = centred.norm(dim=-1)
        beta = (-sigma * (n / (n - 1)).sqrt()).exp()
        least = ((n - 1) * beta).log1p() + sigma * (n * (n - 1)).sqrt() * beta / (1 + (n - 1) * beta)
        slack = (tape["entropy"][:, layer] - least)[(n > 1) & ~tape["entropy"][:, layer].isnan()]
        assert slack.min() > -1e-11
    changed = noisy(real.model)
    entropies = [real.tape(model, ("entropy",))["entropy"] for model in (real.model, changed)]
    names = tuple(PAIRS)
    with torch.no_grad(), record(changed, names, against=kept) as pairs:
        changed(**real.inputs)
    rows = real.real[:, None, None].expand(pairs["jsd"].shape)
    jsd, tv, gap = (each[rows] for each in (pairs["jsd"], pairs["tv"], (entropies[1] - entropies[0]).abs()))
    n = torch.arange(rows.shape[-1]) + 1 if real.causal else real.real.sum(1)[:, None, None, None]
    n = n.expand(rows.shape)[rows].double()
    assert (jsd - tv**2 / 2).min() > -1e-12 and (tv * math.log(2) - jsd).min() > -1e-12 and jsd.max() > 1e-6
    bound = tv * (n - 1).clamp(min=1).log() + torch.special.entr(tv) + torch.special.entr(1 - tv)
    assert (bound - gap).min() > -1e-11


def test_eager_and_sdpa_and_tiles_and_maps_agree(real: Real):
    """I-20: hidden states under both implementations and under `record`; statistics with and without a map."""
    eager = copy.deepcopy(real.model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        plain, other = (model(**real.inputs).last_hidden_state for model in (real.model, eager))
        with record(real.model, ("entropy",)) as tape:
            recorded = real.model(**real.inputs).last_hidden_state
    # Llama's own eager softmax runs in float32 whatever the dtype.
    assert (plain - other)[real.real].abs().max() < (1e-5 if real.causal else 1e-9)
    assert (plain - recorded)[real.real].abs().max() < 1e-9
    maps = attention_maps(real.model, real.inputs).double()
    expected = torch.special.entr(maps).sum(-1)
    torch.testing.assert_close(tape["entropy"], expected, atol=2e-6, rtol=0, equal_nan=True)


def test_windows_and_repeated_keys_of_a_real_decoder(shared: Path):
    """I-19: Mistral's window over the story model's weights, and its shared keys written out."""
    folder = shared / "models" / "stories260K"
    plain = tf.AutoModel.from_pretrained(folder).double().eval()
    config = plain.config.to_dict() | {"sliding_window": None}
    ids = torch.randint(3, 500, (2, 20), generator=torch.Generator().manual_seed(0))

    def tape(model, names=("entropy", "received", "renyi2")):
        with torch.no_grad(), record(model, names) as found:
            model(input_ids=ids)
        return {name: found[name] for name in names}

    def windowed(width: int):
        kind = tf.MistralConfig(**{k: v for k, v in config.items() if k != "model_type"} | {"sliding_window": width})
        model = tf.MistralModel(kind).double().eval()
        model.load_state_dict(plain.state_dict())
        return model

    expected = tape(plain)
    for width in (20, 64):
        same(tape(windowed(width)), expected, tuple(expected), atol=1e-12)
    short = windowed(6)
    maps = attention_maps(short, {"input_ids": ids})
    near = torch.ones(20, 20, dtype=torch.bool).tril().triu(-5)
    assert (maps[..., ~near] == 0).all() and (maps[..., near] > 0).all()
    assert tape(short, ("effective_keys",))["effective_keys"].max() <= 6 + 1e-9
    heads, shared_by = config["num_attention_heads"], config["num_attention_heads"] // config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    whole = tf.LlamaModel(tf.LlamaConfig(**config | {"num_key_value_heads": heads})).double().eval()
    state = plain.state_dict()
    for name in [name for name in state if "k_proj" in name or "v_proj" in name]:
        state[name] = state[name].unflatten(0, (-1, size)).repeat_interleave(shared_by, 0).flatten(0, 1)
    whole.load_state_dict(state)
    same(tape(whole), expected, tuple(expected), atol=1e-12)


def test_merged_and_unmerged_adapters_are_what_they_were(real: Real):
    """I-21: the trained adapter beside its weights, in them, and beside them again; B = 0 is exactly the base."""
    targets = ["q_proj", "k_proj"] if real.causal else ["query", "key"]
    wrapped = get_peft_model(copy.deepcopy(real.model), LoraConfig(r=3, target_modules=targets)).double().eval()  # pyright: ignore[reportArgumentType]
    same(real.tape(wrapped), real.tape(), atol=0)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    beside = real.tape(wrapped)
    assert (beside["entropy"] - real.tape()["entropy"]).nan_to_num().abs().max() > 1e-2
    wrapped.merge_adapter()
    same(real.tape(wrapped), beside)
    wrapped.unmerge_adapter()
    same(real.tape(wrapped), beside)
