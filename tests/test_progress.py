import pytest

from megatron_ultralong.progress import Progress, duration, seconds_of, track


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (8.2, "8 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (360000, "100 h 00 min"),
    ],
)
def test_duration_reads_as_people_say_it(seconds, text):
    assert duration(seconds) == text


def test_track_yields_everything_and_ends_with_a_line(capsys):
    assert list(track([1, 2, 3], "counting", "things")) == [1, 2, 3]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("counting: 3 of 3 things (100 %), ") and line.endswith(" in all")


def test_a_stream_of_unknown_length_shows_no_share(capsys):
    assert list(track(iter("ab"), "reading", "documents")) == ["a", "b"]
    assert capsys.readouterr().err.startswith("reading: 2 documents, ")


def test_lines_come_only_so_often(capsys):
    with Progress("busy", 1000, "steps", every=3600) as progress:
        for _ in range(1000):
            progress.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_line_on_the_way_says_what_is_left(capsys):
    with Progress("busy", 1_000_000, "steps", every=0) as progress:
        progress.advance(250_000)
    first, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("busy: 250,000 of 1,000,000 steps (25 %), ") and first.endswith(" left")


def test_a_failure_is_not_reported_as_the_end(capsys):
    with pytest.raises(RuntimeError), Progress("busy", 10, "steps"):
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_a_limit_is_read_as_slurm_writes_it():
    assert [seconds_of(text) for text in ("00:00:01", "01:30:00", "100:00:00", "2-03:00:05")] == [
        1,
        5400,
        360000,
        183605,
    ]
    for text in ("", "90", "10:00", "00:60:00", "1:2:3", "-1:00:00"):
        with pytest.raises(ValueError, match="no time"):
            seconds_of(text)
