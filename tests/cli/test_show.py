from __future__ import annotations

from kasatune.recipes.catalogue import built_in


def test_a_built_in_recipe_is_printed_as_it_is_written(kasatune):
    done = kasatune("show", "glue-minilm/rte")
    assert (done.status, done.err) == (0, "")
    assert done.out == built_in()["glue-minilm/rte"].read_text(encoding="utf-8")


def test_a_name_that_does_not_exist_gets_a_suggestion(kasatune):
    done = kasatune("show", "glue-minilm/rtee")
    assert done.status == 2
    assert "glue-minilm/rte" in done.err


def test_a_file_that_is_not_text_is_refused(kasatune, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe")
    for name in (path, tmp_path):
        done = kasatune("show", str(name))
        assert done.status == 2
        assert "cannot be read" in done.err
