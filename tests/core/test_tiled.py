"""The tiled statistics: the laws of softmax, digits that survive, the size of tiles. Their values: test_matrix.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from attnlens.core import tiles
from attnlens.core.errors import ShapeError
from attnlens.core.lean import LEAN
from attnlens.core.rows import STATISTICS, Groups, dense_map, row_statistics
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted, attend
from tests.core.problems import ALL, CASES, K, problem
from tests.reference import statistics


@pytest.mark.parametrize("names", [ALL, tuple(sorted(LEAN))], ids=["tiled", "lean"])
@pytest.mark.parametrize("queries", [4, 14])
@pytest.mark.parametrize("case", ["causal", "causal sinks"])
def test_queries_stand_at_the_end_of_the_keys(case: str, queries: int, names: tuple[str, ...]):
    """Of 14 queries over 11 keys, the first three see nothing, or the null key alone."""
    slow, (q, k, v), scores, wanted = problem(CASES[case], queries=queries)
    expected, (output, got) = statistics(slow), attend(q, k, v, scores, replace(wanted, statistics=names))
    for name, values in (got | {"output": output}).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-11, rtol=1e-11, err_msg=name)


def test_log_odds_survives_masses_that_float32_cannot_hold():
    """The weak side lies 400 nats below: its probability is 0 in float32, its log-odds is not −inf."""
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([0.0, 0.0, 400.0, 400.0]).view(1, 1, 4, 1)
    wanted = Wanted(("log_odds",), Groups.of(torch.tensor([[1, 1, 0, 0]])))
    assert attend(q, k, None, Scores(1.0), wanted)[1]["log_odds"][0, 0, 0, 1].item() == pytest.approx(-400.0, abs=1e-3)


@pytest.mark.parametrize("first", [name for name in ALL if name not in {"entropy_content", "log_odds"}])
@pytest.mark.parametrize("last", ["entropy_content", "log_odds", "lse"])
@pytest.mark.parametrize("depth", [0.0, 60.0], ids=["content strong", "content weak"])
def test_statistics_do_not_depend_on_which_others_are_asked_for(first: str, last: str, depth: float):
    _, (q, k, _), scores, wanted = problem(CASES["mask"])
    assert wanted.groups is not None
    scores = replace(scores, bias=depth * wanted.groups.weights[..., 2].to(q)[:, None, None])
    together = attend(q, k, None, scores, replace(wanted, statistics=(first, last)))[1]
    for name in (first, last):
        alone = attend(q, k, None, scores, replace(wanted, statistics=(name,)))[1]
        atol = 1e-14 + depth * 4e-16  # one way works in bits, the other in nats
        torch.testing.assert_close(together[name], alone[name], atol=atol, rtol=4e-16, equal_nan=True)


@pytest.mark.parametrize("names", [("mass",), ("mass", "received")], ids=["lean", "tiled"])
def test_chosen_columns_of_the_mass_are_in_their_order(names: tuple[str, ...]):
    _, (q, k, _), scores, wanted = problem(CASES["causal sinks"])
    every, chosen = (
        attend(q, k, None, scores, replace(wanted, statistics=names, columns=columns))[1]["mass"]
        for columns in ({}, {"mass": (2, 0)})
    )
    torch.testing.assert_close(chosen, every[..., [2, 0]], equal_nan=True)


@pytest.mark.parametrize("case", ["mask", "causal sinks"])
def test_chosen_columns_are_those_of_the_whole(case: str):
    _, (q, k, v), scores, wanted = problem(CASES[case])
    columns = {name: (2, 1) for name in ALL if STATISTICS[name].axes == "group"} | {"mass": (1,)}
    got = attend(q, k, v, scores, replace(wanted, columns=columns))[1]
    whole = attend(q, k, v, scores, wanted)[1]
    for name in ALL:
        expected = whole[name][..., list(columns[name])] if name in columns else whole[name]
        torch.testing.assert_close(got[name], expected, atol=1e-14, rtol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("depth", [5.0, 13.0, 15.0, 60.0, 400.0])
def test_content_far_below_the_sinks_keeps_its_numbers(depth: float):
    """Where the sinks take nearly all, shares within the content come from a softmax of its own: float32 against 64."""
    slow, (q, k, v), _, wanted = problem({})
    assert wanted.groups is not None
    sinks = depth * wanted.groups.weights[..., 2].double()[:, None, None]
    single = replace(wanted, norms=None if wanted.norms is None else wanted.norms.float())
    got = attend(q.float(), k.float(), v.float(), Scores(0.4, bias=sinks.float()), single)[1]
    expected = statistics(replace(slow, add=np.broadcast_to(sinks.numpy(), (*slow.q.shape[:3], K))))
    error = 8 * torch.finfo(torch.float32).eps * max(depth, 10.0)  # of float32 logits so far apart (METRICS 7.3)
    for name in ("share", "share_value", "log_odds", "entropy_content", "entropy_between"):
        np.testing.assert_allclose(got[name], expected[name], atol=error, rtol=error, err_msg=name)


@pytest.mark.parametrize("depth", [0.0, 60.0])
@pytest.mark.parametrize("nested", [True, False], ids=["within the content", "partly outside"])
def test_columns_within_and_partly_outside_the_content(depth: float, nested: bool):
    """Against the dense definitions, where content has most of the attention and where sinks have nearly all."""
    _, (q, k, v), _, wanted = problem({})
    assert wanted.groups is not None and wanted.norms is not None
    content = 1 - wanted.groups.weights[..., 2:]
    columns = (torch.rand(*content.shape[:2], 3, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    groups = Groups.of(torch.cat([content, columns * content if nested else columns], -1))
    scores = Scores(0.4, bias=depth * (1 - content[..., 0].double())[:, None, None])
    grouped = (*(name for name in ALL if STATISTICS[name].axes == "group"), "entropy_content")
    got = attend(q, k, v, scores, Wanted(grouped, groups, wanted.queries, wanted.norms))[1]
    dense = dense_map(q, k, scores, groups=groups, queries=wanted.queries, norms=wanted.norms)
    for name, expected in row_statistics(dense, grouped).items():
        torch.testing.assert_close(got[name], expected, atol=1e-11, rtol=1e-11, equal_nan=True, msg=name)


def test_a_mask_of_keys_alone_is_read_as_one_of_rows():
    _, (q, k, _), _, wanted = problem({})
    keys = torch.rand(q.shape[0], 1, 1, K, generator=torch.Generator().manual_seed(0)) < 0.6
    short = attend(q, k, None, Scores(0.4, mask=keys), wanted)[1]
    whole = attend(q, k, None, Scores(0.4, mask=keys.expand(-1, -1, q.shape[2], -1)), wanted)[1]
    for name in ALL:
        torch.testing.assert_close(short[name], whole[name], atol=1e-12, rtol=0, equal_nan=True, msg=name)


def test_uniform_causal_mean_entropy():
    """I-3: mean H = log(T!)/T."""
    q = torch.zeros(1, 1, 50, 4, dtype=torch.float64)
    got = attend(q, q, None, Scores(1.0, causal=True), Wanted(("entropy", "received")))[1]
    assert got["entropy"].mean().item() == pytest.approx(math.lgamma(51) / 50, abs=1e-12)
    assert (got["received"] - 1).abs().max() < 1e-12


def test_planted_bonus_on_salient_logits_moves_log_odds_by_itself():
    """I-15: β on every salient logit gives Δλ = β in every row; I-14: a sink edit leaves share and λ alone."""
    _, (q, k, v), _, wanted = problem({})
    groups = wanted.groups
    assert groups is not None
    plain = attend(q, k, v, Scores(0.4), wanted)[1]
    bonus = 0.7 * groups.weights[..., 1].double()[:, None, None]
    moved = attend(q, k, v, Scores(0.4, bias=bonus), wanted)[1]
    shift = (moved["log_odds"] - plain["log_odds"])[..., 1]
    assert (shift - 0.7).abs().nan_to_num().max() < 1e-12
    sink = 2.0 * groups.weights[..., 2].double()[:, None, None]
    drained = attend(q, k, v, Scores(0.4, bias=sink), wanted)[1]
    for name in ("share", "log_odds", "entropy_content"):
        torch.testing.assert_close(drained[name], plain[name], atol=1e-12, rtol=0, equal_nan=True)
    assert (drained["mass"][..., 1] < plain["mass"][..., 1] + 1e-15).logical_or(plain["mass"][..., 1].isnan()).all()


def test_heads_are_independent_and_permute():
    _, (q, k, v), scores, wanted = problem({"causal": True}, heads_kv=4)
    order = [2, 0, 3, 1]
    straight = attend(q, k, v, scores, wanted)[1]
    assert wanted.norms is not None
    wanted = replace(wanted, norms=wanted.norms[:, order])
    turned = attend(q[:, order], k[:, order], v[:, order], scores, wanted)[1]
    for name in ALL:
        torch.testing.assert_close(turned[name], straight[name][:, order], atol=1e-14, rtol=1e-13, equal_nan=True)


def test_hidden_keys_get_nothing_however_low_the_visible_logits_lie():
    _, (q, k, _), _, wanted = problem({})
    hidden = torch.zeros(1, 1, 1, K, dtype=torch.bool)
    hidden[..., :3] = True
    low = attend(q, k, None, Scores(0.4, mask=~hidden, bias=torch.full((1, 1, 1, 1), -4000.0)), wanted)[1]
    plain = attend(q, k, None, Scores(0.4, mask=~hidden), wanted)[1]
    torch.testing.assert_close(low["entropy"], plain["entropy"], atol=1e-9, rtol=0, equal_nan=True)
    assert (low["received"][..., :3].isnan()).all()


def test_input_is_untouched():
    _, tensors, scores, wanted = problem(CASES["everything"])
    before = [tensor.clone() for tensor in tensors]
    attend(*tensors, scores, wanted)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_statistics_stay_within_the_registry_bounds():
    _, (q, k, v), scores, wanted = problem({}, spread=30.0)
    got = attend(q, k, v, scores, wanted)[1]
    for name, record in STATISTICS.items():
        values = got[name][~got[name].isnan()]
        assert values.min() >= record.low - 1e-9, name
        assert values.max() <= record.high(K) + 1e-9, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k: attend(q, k[:, :, :, :3], None, Scores(1.0), Wanted(("entropy",))), "must share B and D"),
        (
            lambda q, k: attend(q[:, :3], k, None, Scores(1.0), Wanted(("entropy",))),
            "multiple of key heads; got 3 and 2",
        ),
        (lambda q, k: attend(q, k, None, Scores(1.0, mask=torch.ones(1, 1, 3, 3)), Wanted(())), "mask must broadcast"),
        (lambda q, k: attend(q, k, None, Scores(1.0), Wanted(("share",))), "need groups"),
        (lambda q, k: attend(q, k, None, Scores(1.0), Wanted(("entropy_between",))), "need groups"),
        (
            lambda q, k: attend(
                q, k, None, Scores(1.0), Wanted(("share_value",), Groups.of(torch.zeros(2, 11, dtype=torch.long)))
            ),
            "needs norms of the transformed values",
        ),
    ],
)
def test_errors(call, message: str):
    _, (q, k, _), _, _ = problem({})
    with pytest.raises(ShapeError, match=message):
        call(q, k)


@pytest.mark.parametrize(("heads", "kv", "tokens"), [(12, 12, 512), (32, 8, 8192), (16, 1, 131072)])
@pytest.mark.parametrize("causal", [True, False])
def test_no_tile_is_larger_than_a_tile(heads: int, kv: int, tokens: int, causal: bool):
    """Memory is O(T·tile): only so few rows of one key head that it multiplies well may exceed a TILE a thread."""
    query, key = (
        torch.empty(1, heads, 1, 1).expand(1, heads, tokens, 1),
        torch.empty(1, kv, 1, 1).expand(1, kv, tokens, 1),
    )
    cut = tiles.Tiles(query, key[0], None, None, kv, Scores(1.0, causal=causal), torch.float32)
    boxes = list(cut.boxes())
    sizes = [
        (b.texts.stop - b.texts.start) * (b.heads.stop - b.heads.start) * (b.queries.stop - b.queries.start) * b.keys
        for b in boxes
    ]
    rows = max(tiles.FEWEST, heads // kv)
    assert max(sizes) <= max(tiles.TILE * torch.get_num_threads(), rows * tokens)
    assert sum((b.heads.stop - b.heads.start) * (b.queries.stop - b.queries.start) for b in boxes) == heads * tokens
