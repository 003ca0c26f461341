"""Readers of PTB, ImageNet and WMT, on tiny files of the same format."""

import numpy as np
import pytest

pytest.importorskip("flax")

from benchmarks.paper import loaders


def ptb(folder, **texts):
    parts = {"train": " a b a\n a <unk> b\n", "valid": " b a\n", "test": " a b c\n"} | texts
    for part, content in parts.items():
        (folder / f"ptb.{part}.txt").write_text(content)
    return folder


def test_ptb_words_are_numbered_by_frequency_and_lines_end(tmp_path):
    words = loaders.read_ptb(ptb(tmp_path))
    assert words.vocabulary == ("a", "<eos>", "b", "<unk>")
    assert words.train.tolist() == [0, 2, 0, 1, 0, 3, 2, 1]
    assert words.test.tolist() == [0, 2, 3, 1]  # c is unknown


def test_ptb_says_which_file_or_word_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ptb\.train\.txt"):
        loaders.read_ptb(tmp_path)
    with pytest.raises(ValueError, match=r"ptb\.test\.txt has 'c'"):
        loaders.read_ptb(ptb(tmp_path, train="a b\n"))


def test_windows_are_consecutive_within_their_stream():
    words = np.arange(22, dtype=np.int32)
    windows = list(loaders.windows(words, 2, 3))
    assert [w.tolist() for w in windows] == [
        [[0, 1, 2, 3], [11, 12, 13, 14]],
        [[3, 4, 5, 6], [14, 15, 16, 17]],
        [[6, 7, 8, 9], [17, 18, 19, 20]],
    ]


@pytest.fixture
def imagenet(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label, name in enumerate(("n02", "n01")):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.full((40 + i, 60, 3), 100 * label + 50, np.uint8)
            image.fromarray(pixels).save(tmp_path / name / f"{name}_{i}.PNG")
    (tmp_path / "n01" / "readme.txt").write_text("not an image")
    (tmp_path / "words.txt").write_text("neither")
    return tmp_path


def test_image_classes_are_folders_in_the_order_of_their_names(imagenet):
    images = loaders.list_images(imagenet)
    assert images.classes == ("n01", "n02")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [path.parent.name for path in images.files] == ["n01"] * 3 + ["n02"] * 3


def test_image_batches_hold_each_image_once_with_its_label(imagenet):
    images = loaders.list_images(imagenet)
    batches = list(loaders.image_batches(images, 2, 24, np.random.default_rng(0)))
    assert [pixels.shape for pixels, _ in batches] == [(2, 24, 24, 3)] * 3
    assert sorted(np.concatenate([labels for _, labels in batches])) == [0, 0, 0, 1, 1, 1]
    for pixels, labels in batches:
        value = {0: 150, 1: 50}
        for image, label in zip(pixels, labels, strict=True):
            np.testing.assert_allclose(image, value[int(label)] / 127.5 - 1, atol=1e-6)


def test_a_test_image_is_its_middle(imagenet):
    image = loaders.read_image(imagenet / "n01" / "n01_0.PNG", 8)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.float32
    assert -1 <= image.min() <= image.max() <= 1


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        loaders.list_images(tmp_path)


def wmt(folder, english, german):
    paths = folder / "train.en", folder / "train.de"
    for path, lines in zip(paths, (english, german), strict=True):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def test_pairs_are_numbered_and_long_or_empty_ones_left_out(tmp_path):
    paths = wmt(tmp_path, ["a b", "b", "", "a a a a"], ["x", "y ß", "z", "x"])
    corpus = loaders.read_pair(*paths, n_words=6, longest=3)
    assert corpus.vocabularies[0] == ("<pad>", "<s>", "</s>", "<unk>", "b", "a")
    assert corpus.source == [[5, 4], [4]]
    assert corpus.target == [[4], [5, loaders.UNKNOWN]]


def test_files_of_different_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 lines and .* has 1"):
        loaders.read_pair(*wmt(tmp_path, ["a", "b"], ["x"]))


def test_batches_of_pairs_have_few_lengths_and_begin_and_end(tmp_path):
    lines = [" ".join("ab"[j % 2] for j in range(1 + i % 7)) for i in range(60)]
    corpus = loaders.read_pair(*wmt(tmp_path, lines, lines))
    batches = list(loaders.pair_batches(corpus, 4, np.random.default_rng(0), bucket=4))
    assert {s.shape for s, _ in batches} == {(4, 4), (4, 8)}
    for source, target in batches:
        assert target.shape == (4, source.shape[1] + 2)
        for s, t in zip(source, target, strict=True):
            words = s[s != loaders.PAD]
            assert t[t != loaders.PAD].tolist() == [loaders.BEGIN, *words, loaders.END]
