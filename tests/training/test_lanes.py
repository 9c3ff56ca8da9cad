"""Several runs at once: none of them notices the others."""

import time

import pytest
import torch

from mad import training
from mad.config import by_shape
from mad.training import data
from mad.training import lanes as interleaving
from mad.training.lanes import interleave
from mad.training.prepare import build_task
from mad.training.trainer import Trainer

TINY = {
    "task": {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2},
    "arch": {"stack": "base_conv-attention", "dim": 16, "embed_dropout": 0.2},  # dropout draws random numbers
    "train": {"steps": 6, "batch_size": 8, "num_train": 32, "num_test": 16, "eval_every": 2},
    "device": "cpu",
}


def runs(number, **changes):
    return [TINY | {"seed": seed} | changes for seed in range(number)]


def outcome(record):
    return {k: v for k, v in record.to_dict().items() if k not in ("seconds", "setup_seconds", "started")}


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_lanes_change_no_record(lanes):
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_num_threads()
    few = TINY["train"] | {"num_train": 16, "steps": 40, "stop_at": None, "report": "lowest_perplexity"}  # it overfits
    given = runs(3, train=few, optim={"lr": 1e-2, "schedule": "constant"}) + runs(5)
    records = {record.run_id: outcome(record) for record in training.train_lanes(given, lanes)}
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == torch.get_num_threads()
    assert len(records) == 8
    early = [r["metrics"]["reported_step"] < r["steps"] for r in records.values()]
    assert any(early) and not all(early)
    for run in given:
        record = training.train(run)
        assert records[record.run_id] == outcome(record)


def test_how_many_pay_is_found_out_and_changes_no_record():
    told, given = [], [training.prepare(run) for run in runs(6, train=TINY["train"] | {"steps": 24})]
    ended = list(interleave(iter(given), training.Pace(3, tell=told.append)))
    assert told and told[0] == 2  # nothing to compare the first with
    assert {end.run.id: outcome(end.record) for end in ended} == {r.id: outcome(training.train(r)) for r in given}


def test_without_a_gpu_it_is_one_at_a_time_unless_told(monkeypatch):
    seen = []
    monkeypatch.setattr(interleaving, "interleave", lambda runs, lanes, *rest: seen.append(lanes) or iter(()))
    list(training.train_lanes(runs(2)))
    list(training.train_lanes(runs(2), 5))
    assert seen[0].lanes == seen[0].most == 1 and seen[1] == 5


def test_runs_are_interleaved_and_progress_comes_with_its_run():
    told = []
    list(training.train_lanes(runs(2), 2, lambda run, progress: told.append((run.seed, progress["step"]))))
    assert told == [(0, 2), (1, 2), (0, 4), (1, 4), (0, 6), (1, 6)]


def test_a_run_that_diverges_makes_room_and_one_that_fails_costs_itself_alone(monkeypatch):
    good, bad, last = (training.prepare(run) for run in runs(3))
    diverging = training.prepare(runs(1, optim={"lr": 1e18})[0])
    real = data.load

    def load(task, num, seed, *rest):
        if seed == bad.seed:
            raise OSError("no such corpus")
        return real(task, num, seed, *rest)

    monkeypatch.setattr(data, "load", load)
    ended = list(interleave(iter([good, bad, diverging, last]), 2))
    errors = {end.run.id: end.error for end in ended}
    assert [type(errors[run.id]) for run in (good, bad, diverging, last)] == [type(None), OSError] + 2 * [type(None)]
    assert {end.record.status for end in ended if end.record} == {"ok", "diverged"}
    through = []
    with pytest.raises(OSError, match="no such corpus"):
        through.extend(training.train_lanes([bad, good, last], 2))
    assert len(through) == 0 or {record.run_id for record in through} == {good.id, last.id}


def test_a_source_may_have_nothing_for_now():
    first, second = (training.prepare(run) for run in runs(2))
    given = iter([None, first, None, None, second])
    assert [end.run.seed for end in interleave(given, 2)] == [0, 1]


def test_a_run_that_takes_too_long_is_given_up(monkeypatch):
    slow, quick = (training.prepare(run) for run in runs(2))
    real = data.load

    def load(task, num, seed, *rest):
        time.sleep(0.3 if seed == slow.seed else 0)
        return real(task, num, seed, *rest)

    monkeypatch.setattr(data, "load", load)
    ended = {end.run.seed: end for end in interleave(iter([slow, quick]), 1, timeout=0.3)}
    assert isinstance(ended[0].error, TimeoutError) and ended[1].record is not None


def short_of_memory(monkeypatch, fits):
    """Runs begin where fits(run, number) with so many under way; returns a list of these numbers, as runs begin."""
    under_way, numbers = set(), []
    real = interleaving.under_way

    def where_it_fits(run, *rest):
        under_way.add(run.seed)
        numbers.append(len(under_way))
        try:
            if not fits(run, len(under_way)):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return (yield from real(run, *rest))
        finally:
            under_way.discard(run.seed)

    monkeypatch.setattr(interleaving, "under_way", where_it_fits)
    return numbers


def test_where_memory_is_short_runs_wait_for_one_another(monkeypatch):
    most = short_of_memory(monkeypatch, lambda run, number: number <= 2)
    records = list(training.train_lanes(runs(5), 4))
    assert len({record.run_id for record in records}) == 5
    assert most.count(3) == 1  # tried once, and never again


def test_a_run_too_large_beside_idle_trainers_has_the_memory_to_itself_once(monkeypatch):
    """It is begun again alone, when nothing else is held, and fails if that is not enough."""
    begun = []

    def none_fits(run, *rest):
        begun.append(run.seed)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(interleaving, "under_way", none_fits)
    (run,) = map(training.prepare, runs(1))
    told = []
    (ended,) = interleave(iter([run]), 4, on_begin=lambda run, begun: told.append(begun))
    assert isinstance(ended.error, torch.cuda.OutOfMemoryError) and begun == [0, 0]
    assert told == [True, False, True]


def test_shorter_sequences_may_fit_side_by_side_again(monkeypatch):
    most = short_of_memory(monkeypatch, lambda run, number: run.arch.max_length <= 16 or number == 1)
    long = [run | {"seed": 10 + run["seed"], "task": TINY["task"] | {"seq_len": 24}} for run in runs(2)]
    records = list(training.train_lanes([*runs(4), *long], 3))
    assert [record.config["task"]["seq_len"] for record in records[:2]] == [24, 24] and len(records) == 6
    assert max(most) == 3


def test_the_longest_come_first_and_equal_shapes_together():
    given = [training.prepare(run | {"optim": {"lr": lr}}) for lr in (1e-3, 2e-3) for run in runs(1)]
    more = [training.prepare(run | {"train": {**TINY["train"], "batch_size": 4}}) for run in runs(2)]
    long = training.prepare(TINY | {"task": TINY["task"] | {"seq_len": 24}})
    mixed = [given[0], more[0], given[1], more[1], long]
    ordered = sorted(mixed, key=by_shape)
    assert ordered[0] is long and [run.train.batch_size for run in ordered[1:]] in ([8, 8, 4, 4], [4, 4, 8, 8])


def test_no_lane_at_all():
    for lanes in (0, 2.5):
        with pytest.raises(ValueError, match=f"lanes must be a whole number of at least 1, got {lanes}"):
            training.train_lanes(runs(1), lanes)


def test_a_trainer_taken_over_does_what_a_new_one_does():
    first, second = (training.prepare(run) for run in runs(2))
    task = build_task(first)

    def examples(run, num=32):
        parts = [data.load(task, n, run.seed, split, "cpu") for n, split in ((num, "train"), (16, "test"))]
        return [[part.take(torch.arange(len(part))) for part in split] for split in parts]  # copies

    def losses(trainer, run):
        torch.manual_seed(run.seed)  # dropout
        trainer.update.stage([torch.arange(i, i + 8) for i in range(3)], [1e-2] * 3)
        for _ in range(3):
            trainer.update(0)
        trainer.evaluations["test"].queue()
        return trainer.update.loss.item(), trainer.evaluations["test"].counts.clone()

    def new(run, num=32):
        torch.manual_seed(run.seed)
        return Trainer(run, task, *examples(run, num))

    old = new(first)
    losses(old, first)
    before = [tensor.data_ptr() for tensor in old.update.optimiser.tensors()]
    other = new(first)
    losses(other, second)  # another dropout, hence other weights and moments
    old.load(other.state())  # in place: what is recorded would go on with the old moments otherwise
    after = [tensor.data_ptr() for tensor in old.update.optimiser.tensors()]
    assert before == after and losses(old, second)[0] == losses(other, second)[0]
    torch.manual_seed(second.seed)
    assert old.take_over(second, task, *examples(second))
    (loss, counts), (want_loss, want_counts) = losses(old, second), losses(new(second), second)
    assert loss == want_loss and torch.equal(counts, want_counts)
    assert not new(first, num=24).take_over(second, task, *examples(second))  # more data than there is room for
    wider = training.prepare(runs(1, arch={**TINY["arch"], "dim": 32})[0])
    assert not old.take_over(wider, task, *examples(wider))
