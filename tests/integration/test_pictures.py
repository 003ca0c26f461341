"""The pictures in benchmarks/results: of README width, labelled, with a legend, from the JSON."""

import json
import pathlib

import matplotlib
import pytest
from PIL import Image

from benchmarks import plots
from benchmarks.paper import pictures as paper
from benchmarks.redraw import redraw

matplotlib.use("Agg")
RESULTS = pathlib.Path(plots.__file__).parent / "results"
STUDY = {path: json.loads(path.read_text()).get("study") for path in RESULTS.glob("paper-*.json")}
CASES = [(path, suffix) for path in sorted(STUDY) for suffix in paper.pictures_of(STUDY[path])]
CASES += [
    (RESULTS / f"{name}-cpu.json", suffix)
    for name, pictures in plots.PICTURES.items()
    for suffix in pictures
]


def figure_of(path, suffix):
    results = json.loads(path.read_text())
    if "study" in results:
        return paper.pictures_of(results["study"])[suffix](results, path)
    return plots.PICTURES[results["benchmark"]][suffix](results["rows"])


@pytest.mark.parametrize("path, suffix", CASES, ids=lambda x: getattr(x, "stem", x or "main"))
def test_a_picture_fits_the_readme_and_is_labelled(path, suffix):
    figure = figure_of(path, suffix)
    assert figure.get_size_inches()[0] == 9
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert figure.get_suptitle() or all(axes.get_title() for axes in panels)
    assert panels[-1].get_xlabel()
    assert panels[0].get_ylabel() or panels[0].get_yticklabels()
    n_legends = len(figure.legends) + sum(axes.get_legend() is not None for axes in panels)
    assert n_legends == 1 or n_legends == len(panels) or (suffix == "" and "findings" in path.stem)
    sizes = [text.get_fontsize() for axes in panels for text in axes.get_xticklabels()]
    assert min(sizes) >= 9  # 12 pixels
    assert path.with_name(f"{path.stem}{suffix}.png").exists()


@pytest.mark.parametrize("path, suffix", CASES, ids=lambda x: getattr(x, "stem", x or "main"))
def test_curves_of_a_panel_differ_in_look(path, suffix):
    for axes in figure_of(path, suffix).axes:
        looks = {}
        for line in axes.lines:
            if not line.get_label().startswith("_") and len(line.get_xdata()) > 1:
                look = line.get_color(), line.get_linestyle(), line.get_marker()
                assert looks.setdefault(look, line.get_label()) == line.get_label()


def test_algorithms_are_in_percent_and_in_the_order_of_the_table():
    rows = json.loads((RESULTS / "algorithms-cpu.json").read_text())["rows"]
    [axes] = plots.PICTURES["algorithms"][""](rows).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    mean = {row["method"]: row["mean"] for row in rows if row["sparsity"] == 0.95}
    assert names == sorted(mean, key=mean.get, reverse=True)
    assert axes.yaxis_inverted()  # the first is at the top
    at_95 = axes.containers[2].lines[0]
    assert at_95.get_xdata() == pytest.approx([100 * mean[name] for name in names])


def test_redraw_writes_the_pictures_of_the_chosen_results(tmp_path):
    for name in ("paper-quality-cnn-cpu", "paper-lstm-cpu"):
        (tmp_path / f"{name}.json").write_bytes((RESULTS / f"{name}.json").read_bytes())
    [file] = redraw(tmp_path, ["paper-quality"])
    assert file == tmp_path / "paper-quality-cnn-cpu.png"
    with Image.open(file) as image:
        assert image.width == 1350
        assert image.convert("RGBA").getpixel((2, 2)) == (255, 255, 255, 255)
