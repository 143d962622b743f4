"""`record` while things run: training, checkpointing, caches, compiled code, threads, processes; no trace is left."""

import gc
import os
import threading
import weakref
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attnlens.checkpoints import switch
from attnlens.checkpoints.record import record
from attnlens.core.errors import AttnlensError, EmptyTape, UnsupportedModel
from tests.models import CONFIGS, batch, build


def partition(inputs) -> torch.Tensor:
    groups = torch.randint(0, 3, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(2))
    return groups.masked_fill(inputs["attention_mask"] == 0, -1)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    """The gradients gathered so far, which are then cleared."""
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


def test_training_mode_records_before_dropout():
    """Statistics are of the softmax, the output of the dropped-out map: eager weights would sum to 0 … 2."""
    model = build("bert")
    model.train()
    inputs = batch("right")
    torch.manual_seed(0)
    plain = model(**inputs).last_hidden_state
    torch.manual_seed(0)
    with record(model, ("mass", "entropy"), groups=partition(inputs)) as tape:
        recorded = model(**inputs).last_hidden_state
        recorded.sum().backward()
    assert torch.equal(recorded, plain)
    assert (tape["mass"].sum(-1).nan_to_num(1.0) - 1).abs().max() < 1e-5
    assert not tape["entropy"].requires_grad


def test_gradients_are_those_of_the_plain_model():
    model, inputs = build("llama"), batch("right")
    model(**inputs).last_hidden_state.square().sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with record(model):
        model(**inputs).last_hidden_state.square().sum().backward()
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), plain, strict=True))


def test_several_forwards_are_read_call_by_call():
    model, inputs = build("bert"), batch("right")
    with torch.no_grad(), record(model) as tape:
        model(**inputs)
        model(**{name: tensor[:1] for name, tensor in inputs.items()})
    assert [call["entropy"].shape[0] for call in tape.calls] == [3, 1]
    with pytest.raises(AttnlensError, match="2 forward passes were recorded"):
        _ = tape["entropy"]


def test_cached_decoding_knows_which_queries_are_padding():
    """Two chunks with a cache and left padding give the rows of one pass."""
    model, inputs = build("llama"), batch("left")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        with record(model, ("entropy", "distance")) as whole:
            model(**inputs)
        with record(model, ("entropy", "distance")) as chunks:
            first = model(input_ids=ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
            model(input_ids=ids[:, 4:], attention_mask=mask, past_key_values=first.past_key_values)
    for name in ("entropy", "distance"):
        joined = torch.cat([call[name] for call in chunks.calls], -1)
        torch.testing.assert_close(joined, whole[name], atol=2e-4, rtol=2e-4, equal_nan=True)


def state(model: nn.Module) -> tuple:
    """Everything `record` touches."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    slots = [name for m in model.modules() for name in m.__dict__ if "attnlens" in name]
    return model.config._attn_implementation, hooks, slots, sorted(ALL_ATTENTION_FUNCTIONS), dict(switch._switched)


def test_nothing_stays_behind_also_after_an_exception():
    model, inputs = build("bert"), batch("right")
    with torch.no_grad():
        model(**inputs, output_hidden_states=True)  # transformers installs its own capture hooks lazily, once
    before = state(model)
    with torch.no_grad():
        with record(model) as tape:
            model(**inputs)
        assert state(model) == before
        with pytest.raises(RuntimeError, match="planned"), record(model):
            model(**inputs)
            raise RuntimeError("planned")
        assert state(model) == before
        with pytest.raises(EmptyTape), record(model):
            pass
        with pytest.raises(IndexError), record(model):
            model(input_ids=torch.full((1, 3), 1000))
        assert state(model) == before
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None, "the tape must not keep the model alive"
    assert tape["entropy"].shape == (3, 2, 4, 13)


def test_models_of_one_config_switch_together_and_records_nest():
    config = CONFIGS["bert"]()
    first, second, inputs = build("bert", config=config), build("bert", config=config, seed=1), batch("right")
    with torch.no_grad():
        plain = second(**inputs).last_hidden_state
        with record(first) as outer, record(first, ("max_weight",)) as inner:
            assert torch.equal(second(**inputs).last_hidden_state, plain), "a model without tape runs as it did"
            with record(second):
                second(**inputs)
            first(**inputs)
            assert config._attn_implementation == switch.NAME
    assert config._attn_implementation == "sdpa"
    assert outer["entropy"].shape == inner["max_weight"].shape


def test_two_threads_on_two_models_equal_two_serial_runs():
    models, inputs = [build("bert", seed=seed) for seed in (0, 1)], batch("right")

    def run(model) -> torch.Tensor:
        with torch.no_grad(), record(model) as tape:
            model(**inputs)
        return tape["entropy"]

    serial, parallel = [run(model) for model in models], [None, None]
    threads = [
        threading.Thread(target=lambda i=i: parallel.__setitem__(i, [run(models[i]) for _ in range(5)][-1]))
        for i in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(parallel, serial, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_a_second_thread_on_the_same_model_is_refused():
    model, inputs, errors = build("bert"), batch("right"), []

    def call() -> None:
        for action in (lambda: model(**inputs), lambda: record(model).__enter__()):
            try:
                action()
            except AttnlensError as error:
                errors.append(str(error))

    with torch.no_grad(), record(model):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        model(**inputs)
    assert len(errors) == 2
    assert "another thread" in errors[0]


def test_dropout_under_no_grad_keeps_the_models_own_output():
    model, inputs = build("bert"), batch("right")
    model.train()
    with torch.no_grad():
        torch.manual_seed(0)
        plain = model(**inputs).last_hidden_state
        torch.manual_seed(0)
        with record(model):
            assert torch.equal(model(**inputs).last_hidden_state, plain)


def test_every_step_of_generation_is_a_call():
    """Row by row what one pass over the finished text gives: each step reads the cache of those before it."""
    model = tf.LlamaForCausalLM(CONFIGS["llama"]()).eval()
    ids = batch("right")["input_ids"][2:]
    with torch.no_grad(), record(model, ("entropy", "distance")) as steps:
        written = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.no_grad(), record(model, ("entropy", "distance")) as whole:
        model(written)
    assert len(steps.calls) == 4
    for name in ("entropy", "distance"):
        joined = torch.cat([call[name] for call in steps.calls], -1)
        torch.testing.assert_close(joined, whole[name][..., :-1], atol=1e-5, rtol=1e-5)


def test_static_caches_are_refused():
    model = build("llama")
    cache = tf.StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad(), pytest.raises(UnsupportedModel, match="record with a DynamicCache or none"), record(model):
        model(input_ids=batch("right")["input_ids"], past_key_values=cache)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [True, False])
def test_checkpointed_blocks_are_recorded_once_and_keep_the_plain_gradients(
    padded: bool, implementation: str, inside: bool
):
    """Activation checkpointing runs attention again in the backward pass, inside the block or after it."""
    model, inputs = build("llama"), batch("left")
    if not padded:
        inputs = {"input_ids": inputs["input_ids"]}
    model.set_attn_implementation(implementation)
    with torch.no_grad(), record(model) as alone:
        model(**inputs)
    model.train()
    model.activation_checkpointing_enable()
    for _ in range(2):
        model(**inputs).last_hidden_state.square().mean().backward()
    plain = gradients(model)
    with record(model) as tape:
        for _ in range(2):
            loss = model(**inputs).last_hidden_state.square().mean()
            if inside:
                loss.backward()
    if not inside:
        loss.backward()
        loss = model(**inputs).last_hidden_state.square().mean()
        loss.backward()
    assert [len(call.sites) for call in tape.calls] == [2, 2]
    assert all(torch.equal(got, want) for got, want in zip(gradients(model), plain, strict=True))
    for call in tape.calls:
        torch.testing.assert_close(call["entropy"], alone["entropy"], atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("grad", [False, True])
def test_compiled_models_are_recorded_exactly_and_stay_compiled(grad: bool):
    """Code under torch.compile(fullgraph=True) runs uncompiled inside the block, and its graph is good afterwards."""
    model, inputs, counter = build("llama"), batch("right"), CompileCounter()
    with torch.no_grad(), record(model) as plain:
        model(**inputs)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.set_grad_enabled(grad):
        before = compiled(**inputs).last_hidden_state
        graphs = counter.frame_count
        assert graphs > 0
        with record(compiled) as tape:
            during = compiled(**inputs).last_hidden_state
        after = compiled(**inputs).last_hidden_state
    assert counter.frame_count == graphs, "nothing was compiled again"
    assert torch.equal(before, after)
    torch.testing.assert_close(during, before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tape["entropy"], plain["entropy"], atol=1e-5, rtol=1e-5, equal_nan=True)


def test_compiled_parts_and_functions_are_recorded_too():
    model, inputs = build("llama"), batch("right")
    with torch.no_grad(), record(model) as plain:
        model(**inputs)
    for layer in model.layers:  # pyright: ignore[reportGeneralTypeIssues]
        layer.compile(fullgraph=True, backend="eager")
    call = torch.compile(lambda: model(**inputs).last_hidden_state, fullgraph=True, backend="eager")
    with torch.no_grad(), record(model) as tape:
        call()
    assert torch.equal(tape["entropy"].nan_to_num(), plain["entropy"].nan_to_num())


def test_the_compiler_is_given_back_when_the_last_block_ends():
    """Blocks of two threads end in any order: the first to end must not bring the second's stance back for good."""
    counter = CompileCounter()
    doubled = torch.compile(lambda x: 2 * x, backend=counter)
    blocks, inputs = [record(build("bert", seed=seed)) for seed in (0, 1)], batch("right")
    with torch.no_grad():
        for block in blocks:
            block.__enter__()
            block.model(**inputs)
        for block in blocks:
            doubled(torch.ones(2))
            assert counter.frame_count == 0
            block.__exit__(None, None, None)
    doubled(torch.ones(2))
    assert counter.frame_count == 1


def _rank(rank: int, folder: str) -> None:
    """One of two processes. Its model is gone and the other one done before the group is: else it may wait for ever."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    _half(rank, folder)
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _half(rank: int, folder: str) -> None:
    """Half of the batch, forward and backward under DistributedDataParallel."""
    model = nn.parallel.DistributedDataParallel(build("llama"))
    inputs = {name: tensor[2 * rank : 2 * rank + 2] for name, tensor in batch("left", texts=4).items()}
    with record(model, ("entropy", "mass"), groups=partition(inputs)) as tape:
        model(**inputs).last_hidden_state.square().mean().backward()
    found = {"entropy": tape["entropy"], "mass": tape["mass"], "gradients": gradients(model.module)}
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_processes_record_what_one_does(tmp_path: Path):
    processes = torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2, join=False, daemon=True)
    assert any(processes.join(timeout=60) for _ in range(2)), "a process waits for the other"  # each call awaits one
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model, inputs = build("llama"), batch("left", texts=4)
    for rank, half in enumerate(halves):
        mine = {name: tensor[2 * rank : 2 * rank + 2] for name, tensor in inputs.items()}
        with record(model, ("entropy", "mass"), groups=partition(mine)) as tape:
            (model(**mine).last_hidden_state.square().mean() / 2).backward()
        for name in ("entropy", "mass"):
            torch.testing.assert_close(half[name], tape[name], atol=1e-6, rtol=1e-6, equal_nan=True)
    for got, want in zip(halves[0]["gradients"], gradients(model), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
