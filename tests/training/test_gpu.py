"""On a GPU: captured and compiled steps give the records of the eager loop, and lanes change nothing at all."""

import json
import os
import subprocess
import sys

import pytest
import torch

from mad import training
from mad.training import Checkpoints

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # dynamo hides this one, which as an error it would not compile with
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


MODES = ("eager", "captured", "compiled")


def run(mode="captured", stack="hyena-swiglu-mh_attention-moe", seed=0, train=None, arch=None, **task):
    return {
        "task": {"name": "in_context_recall", "vocab_size": 16, "seq_len": 32} | task,
        "arch": {"stack": stack, "dim": 128} | (arch or {}),
        "train": {"epochs": 3, "num_train": 640, "num_test": 300, "stop_at": None} | (train or {}),
        "device": "cuda",
        "mode": mode,
        "seed": seed,
    }


def outcome(record):
    return record.status, record.steps, record.curve, record.metrics, record.cost


def close(record, other, tolerance):
    for mine, theirs in zip(record.curve, other.curve, strict=True):
        for key in ("train_loss", "loss"):
            assert mine[key] == pytest.approx(theirs[key], rel=tolerance), key


@pytest.mark.parametrize(
    "stack", ["hyena-swiglu-mh_attention-moe", "mh_hyena-mlp", "hyena_experts-swiglu", "based-mlp"]
)
def test_modes_give_equal_records(stack):
    eager, captured, compiled = (training.train(run(mode, stack)) for mode in MODES)
    close(captured, eager, 1e-4)
    close(compiled, eager, 1e-2)  # in bf16, with other roundings in between
    assert eager.setup_seconds == 0 < captured.setup_seconds < compiled.setup_seconds


def test_processes_that_compile_by_themselves_give_the_same_curve(tmp_path):
    """Each with caches of its own. With block sizes chosen by timing four of them had two curves or more."""
    task = {"name": "fuzzy_in_context_recall", "vocab_size": 16, "seq_len": 128}
    given = run("compiled", "hyena-swiglu-mh_attention-swiglu") | {"task": task}
    given["train"]["epochs"] = 20
    code = "import json, sys; from mad import training; print(training.train(json.loads(sys.argv[1])).curve)"
    processes = []
    for i in range(4):
        caches = {name: str(tmp_path / f"{name}{i}") for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        command = [sys.executable, "-c", code, json.dumps(given)]
        processes.append(subprocess.Popen(command, env=os.environ | caches, stdout=subprocess.PIPE, text=True))
    try:
        printed = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes)
    assert len({text.splitlines()[-1] for text in printed}) == 1


@pytest.mark.parametrize("mode", ["captured", "compiled"])
def test_lanes_change_no_record(mode):
    runs = [run(mode, seed=seed, arch={"embed_dropout": 0.2}) for seed in range(5)]
    runs += [run(mode, "attention-mlp", vocab_size=32), run(mode, train={"epochs": 5, "report": "lowest_perplexity"})]
    found = {record.run_id: outcome(record) for record in training.train_lanes(runs, 3)}
    for one in runs:
        alone = training.train(one)
        assert found[alone.run_id] == outcome(alone)


def test_the_model_of_the_lowest_perplexity_is_measured_again():
    few = {"epochs": 60, "num_train": 64, "batch_size": 32, "report": "lowest_perplexity"}  # it overfits
    records = [training.train(run(mode, train=few, arch={"init": "normal", "head_bias": True})) for mode in MODES[:2]]
    for record in records:
        place = min(range(len(record.curve)), key=lambda i: record.curve[i]["batch_perplexity"])
        assert record.metrics["batch_perplexity"] <= record.curve[place]["batch_perplexity"]  # the curve is thinned
        assert abs(record.metrics["valid_loss"] - record.metrics["loss"]) < 0.3 * record.metrics["loss"]
    assert records[0].metrics["loss"] == pytest.approx(records[1].metrics["loss"], rel=0.1)


def test_a_run_repeats_bit_for_bit():
    assert outcome(training.train(run("compiled"))) == outcome(training.train(run("compiled")))


def test_dropout_is_drawn_anew_in_a_replay():
    record = training.train(run(arch={"embed_dropout": 0.5}, train={"epochs": 2}))
    assert record.curve != training.train(run(train={"epochs": 2})).curve
    close(record, training.train(run("eager", arch={"embed_dropout": 0.5}, train={"epochs": 2})), 1e-3)


def test_mixtures_of_lengths_and_every_head():
    mqar = {"name": "mqar", "vocab_size": 64, "segments": [[8, 2, 256], [16, 4, 256]], "test_segments": [[12, 2, 200]]}
    for task in (mqar, {"name": "compression", "seq_len": 16}, {"name": "memorization", "vocab_size": 512}):
        given = run(stack="base_conv-attention") | {"task": task}
        if task is mqar:
            given["train"] = {"epochs": 3, "batch_size": 64, "stop_at": None}
        close(training.train(given), training.train(given | {"mode": "eager"}), 1e-4)


def test_interrupted_runs_go_on_to_the_same_curve(tmp_path):
    where = Checkpoints(tmp_path, minutes=0)

    def interrupt(progress):
        if progress["step"] == 10:
            raise KeyboardInterrupt

    given = run(arch={"embed_dropout": 0.2})
    with pytest.raises(KeyboardInterrupt):
        training.train(given, interrupt, where)
    assert list(tmp_path.glob("*.pt"))
    assert outcome(training.train(given, checkpoints=where)) == outcome(training.train(given))


def test_what_cannot_be_captured_says_so(tmp_path):
    plugin = tmp_path / "waits.py"
    plugin.write_text(
        "import layers\n"
        "@layers.register('waits', kind='channel')\n"
        "class Waits(layers.ChannelMixer):\n"
        "    def forward(self, x):\n"
        "        return x * (1 + 0 * x.sum().item()) if x.is_cuda else x\n"
        "    def flops(self, length):\n"
        "        return 0\n"
    )
    given = run(stack="base_conv-waits") | {"plugins": [str(plugin)]}
    assert training.train(given | {"mode": "eager"}).status == "ok"
    with pytest.raises(RuntimeError, match="cannot be captured as a CUDA graph.*mode=eager"):
        training.train(given)
