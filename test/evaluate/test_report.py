"""The page and its figures: whole, self-contained, and safe against what is written into it."""

import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate import figures, plan_figures
from qvla_ros.evaluate.figure_style import new_figure
from qvla_ros.evaluate.report import Report

NAMES = ("dx", "dy", "gripper")


class Page(HTMLParser):
    """Collects the tags and the text, and the addresses that would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.fetched.append(value)

    def handle_data(self, data):
        self.words.append(data)


def every_figure():
    random = np.random.default_rng(0)
    times = np.arange(30) * 0.05
    trace = random.uniform(-1, 1, (30, 3))
    held = trace.copy()
    held[:4] = np.nan
    scores = 10.0 ** random.normal(-6, 1, 100)
    return {
        "traces": figures.plot_action_traces(times, {"packed": held, "float": trace}, NAMES),
        "errors": figures.plot_error_by_dimension(NAMES, {"ours": [1, 2, 3], "RTN": [2, 3, 4]}),
        "latency": figures.plot_latency({"packed": scores.tolist(), "none": []}),
        "one latency": figures.plot_latency({"packed": [5.0, 5.0]}),
        "no latency": figures.plot_latency({}),
        "drift": figures.plot_drift({"bag": [(0.0, 0.1), (1.0, 0.2)]}),
        "steps": figures.plot_executed_steps([0, 5, 3]),
        "layers": plan_figures.plot_bits_per_layer(
            ["a", "b", "c"],
            ["vision", "vision", "language"],
            {0: [0, 1, 0], 4: [9, 9, 0], 8: [1, 0, 9]},
        ),
        "histogram": plan_figures.plot_bit_histogram({"all": {2: 0.5, 4: 0.5}, "part": {4: 1.0}}),
        "distribution": plan_figures.plot_score_distribution({4: scores, 8: np.zeros(3)}),
        "no scores": plan_figures.plot_score_distribution({4: np.zeros(3)}),
        "scatter": plan_figures.plot_score_scatter({4: (scores, scores * 2), 8: (scores, scores)}),
        "worst": plan_figures.plot_worst_layers(["a", "b", "c"], [1.0, 3.0, 2.0], "score", 2),
    }


def test_a_page_with_every_figure_is_one_file_that_fetches_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = every_figure()
    report = Report("Title", "what, where")
    report.add_heading("Figures")
    for name, figure in drawn.items():
        report.add_figure(figure, name)
    path = tmp_path / "new folder" / "report.html"
    report.write(path)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("svg") == len(drawn)
    assert page.fetched == []
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_text_from_outside_is_never_markup():
    report = Report("<b>", "<i>")
    report.add_heading("<script>")
    report.add_text("a < b & c")
    report.add_tiles({"<x>": "<y>"})
    report.add_table(("<h>",), [("<c>",)], "<caption>")
    page = Page(report.to_html())
    assert not {"b", "i", "script", "x", "y", "h", "c"} & set(page.tags)
    assert "a < b & c" in page.words


def test_columns_of_numbers_are_set_to_the_right_and_columns_of_words_are_not():
    report = Report("t")
    report.add_table(("name", "L1", "note"), [("4 bits ours", 0.5, "x"), ("RTN", "–", "1")])
    text = report.to_html()
    assert "<th>name</th><th class=number>L1</th><th>note</th>" in text
    assert "<td>RTN</td><td class=number>–</td><td>1</td>" in text


def test_an_empty_table_is_a_header():
    report = Report("t")
    report.add_table(("name", "L1"), [])
    assert "<th>name</th><th>L1</th>" in report.to_html()


def test_a_row_that_does_not_fit_the_header_is_refused():
    with pytest.raises(ValueError, match="2 columns, a row has 1"):
        Report("t").add_table(("a", "b"), [("x",)])


def test_the_same_content_gives_the_same_bytes():
    pytest.importorskip("matplotlib")

    def page() -> str:
        report = Report("t")
        report.add_figure(figures.plot_executed_steps([1, 2]))
        return report.to_html()

    assert page() == page()


def test_a_failed_write_leaves_the_old_page_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    Report("old").write(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Report("new").write(path)
    assert "old" in path.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_drawing_changes_no_global_setting():
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    figures.plot_executed_steps([1, 2])
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"qvla_ros\[report\]"):
        figures.plot_executed_steps([1])


def test_an_empty_figure_has_the_size_that_was_asked_for():
    pytest.importorskip("matplotlib")
    assert tuple(new_figure(4.0, 3.0).get_size_inches()) == (4.0, 3.0)
