"""`python -m mad.bench data`: every generator once, measured for real, beside what was published."""

import pytest

from mad import tasks
from mad.bench import data


def test_one_row_a_generator(capsys):
    data.main(["--task", "memorization", "--repeats", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "1,536" in line]
    assert len(rows) == 6 and all("1.0" in row for row in rows[:1])  # 1,536 sequences at 0.65 ms
    assert "vocab_size 8192" in rows[-1]


def test_generators_are_distinct_and_hold_every_published_one():
    generators = data.generators()
    assert len(generators) == len({str(generator) for generator in generators})
    assert len(generators) == 66 - 5 * 4 + len(data.MORE)  # five tasks with four training sizes besides the baseline's
    built = [tasks.build(name, **options) for name, options in generators]
    for name, options, _ in data.PUBLISHED_MS:
        assert sum(t.name == name and options.items() <= t.options.items() for t in built) == 1


def test_bad_arguments(capsys):
    for arguments, message in ((["--task", "recall"], "invalid choice: 'recall'"), (["--repeats", "0"], "at least 1")):
        with pytest.raises(SystemExit):
            data.main(arguments)
        assert message in capsys.readouterr().err
