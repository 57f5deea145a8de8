"""What a run shows of its stages and of the whole."""

from __future__ import annotations

import io
import re

from rich.console import Console

from flows import console
from flows.console import BarProgress, LineProgress


def text_of(screen: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_on_a_terminal_there_is_a_bar_for_the_stage_and_one_for_the_whole_and_stages_leave_a_line_each():
    screen = io.StringIO()
    bars = BarProgress(Console(file=screen, force_terminal=True, width=100))
    for stage, share in (("survey", 0.25), ("sample", 0.5)):
        bars.start(stage, total=4, done=1)
        bars.overall(share, seconds_left=None if stage == "survey" else 700)
        bars.advance("31.2 dB", jobs=3)
        bars.finish()
    drawn = text_of(screen)
    assert len(re.findall(r"(survey|sample)  4/4  \d+\.\d s  31\.2 dB\n", drawn)) == 2
    assert re.search(r"all stages .* 50% .* 12 min left", drawn)
    assert re.search(r"sample .* 4/4 .* 31\.2 dB", drawn)


def test_a_stage_alone_needs_no_bar_for_the_whole():
    screen = io.StringIO()
    bars = BarProgress(Console(file=screen, force_terminal=True, width=100))
    bars.start("verify", total=2, done=0)
    bars.advance()
    bars.finish()
    assert "all stages" not in text_of(screen)


def test_without_a_terminal_lines_say_how_far_the_whole_is_where_that_is_known(capsys, monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0)
    lines = LineProgress()
    lines.start("survey", total=3, done=1)
    lines.advance("31.2 dB")
    lines.overall(0.4321, seconds_left=20)
    lines.advance()
    lines.finish()
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "survey: 2/3  31.2 dB"
    assert second == "survey: 3/3  31.2 dB  (43% of all, 20 s left)"
    assert re.fullmatch(r"survey: 3/3  \d+\.\d s  31\.2 dB  \(43% of all, 20 s left\)", last)
