"""A sweep's journal: read again as it was written, whatever a kill has cut off; what became of a trial."""

from pathlib import Path

from cluster.sweep.journal import SweepJournal

ROW = {"epoch": 1.0, "step": 4, "held_out/top1": 0.5}


def opened(path: Path) -> SweepJournal:
    journal = SweepJournal(path)
    journal.open()
    return journal


def test_events_that_follow_a_line_that_was_cut_off_are_read_again(tmp_path: Path) -> None:
    before = opened(tmp_path / "j")
    before.begin("0", 0, {"temperature": 1}, 0)
    before.file.write('{"event": "begin", "trial": "1')
    before.file.close()
    after = opened(tmp_path / "j")
    assert list(after.trials) == ["0"]
    after.report("0", ROW, stop="")
    after.begin("1", 1, {"temperature": 2}, 0)
    after.end("1", "finished", result={"top1": 0.5})
    after.file.close()
    assert opened(tmp_path / "j").trials == after.trials


def test_a_trial_that_failed_or_was_lost_has_no_score(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    trial = journal.begin("0", 0, {"temperature": 1}, 0)
    journal.report("0", ROW, stop="")
    for end in ("failed", "lost"):
        assert trial.score("held_out/top1", selects_best=False) == 0.5
        journal.end("0", end, "its node is gone")
        assert (trial.end, trial.reason) == (end, "its node is gone")
        assert trial.score("held_out/top1", selects_best=False) is None
        journal.retry("0")
        assert (trial.end, trial.reason) == (None, "")
