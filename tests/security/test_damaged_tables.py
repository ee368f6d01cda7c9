"""A damaged predictions table is refused, or its rows are those that were written: never others."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from random_damage import DAMAGE

from semcorr.core.errors import UserError
from semcorr.core.parquet import read_parquet, write_parquet
from semcorr.engine.finished_run import read_evaluated_run
from semcorr.evaluation.pose import alignment as adaptive
from semcorr.metrics.predictions import OPTIONAL, SCHEMA, read_predictions, write_predictions

ROWS = 40


def predictions() -> pa.Table:
    draw = np.random.default_rng(0)
    values = {pa.int32(): np.arange(ROWS), pa.bool_(): draw.random(ROWS) > 0.5}
    names = [field.name for field in SCHEMA if field.type == pa.string()]
    texts = {name: [f"{name} {i // 4 % 7}" for i in range(ROWS)] for name in names}
    constant = {"protocol": ["semcorr"] * ROWS, "localise": ["argmax"] * ROWS}
    numbers = {field.name: values.get(field.type, draw.random(ROWS)) for field in SCHEMA if field.type != pa.string()}
    return pa.table(texts | constant | numbers, schema=SCHEMA)


def change_footer(content: bytearray, draw: random.Random) -> None:
    length = int.from_bytes(content[-8:-4], "little")
    content[len(content) - 9 - draw.randrange(length)] = draw.randrange(256)


@pytest.mark.parametrize("damage", [*DAMAGE, change_footer])
@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(10, 510), marks=pytest.mark.slow)])
def test_a_damaged_table_is_refused_or_what_was_written(tmp_path, damage, seeds):
    table, path = predictions(), tmp_path / "predictions.parquet"
    write_predictions(table, path)
    whole, refused = path.read_bytes(), 0

    for seed in seeds:
        content = bytearray(whole)
        damage(content, random.Random(seed))
        path.write_bytes(content)
        try:
            assert read_predictions(path).equals(table), seed
        except UserError as error:
            refused += 1
            assert "predictions.parquet" in str(error)  # noqa: PT017
            assert len(str(error).splitlines()) == 1  # noqa: PT017

    assert refused > len(seeds) / 2


def test_a_damaged_run_is_compared_with_none(tmp_path):
    (tmp_path / "metrics.json").write_text('{"protocol": "semcorr", "localise": "argmax"}')
    path = tmp_path / "predictions.parquet"
    write_predictions(predictions(), path)
    whole = path.read_bytes()
    assert len(read_evaluated_run(tmp_path).rows.pair) == ROWS

    path.write_bytes(whole[:100] + bytes(200) + whole[300:])

    with pytest.raises(UserError, match=r"holds no run on pairs: .*predictions\.parquet is damaged"):
        read_evaluated_run(tmp_path)


@pytest.mark.parametrize("name", ["predicted_x", "error", "pair", "ambiguous", "keypoint"])
def test_values_changed_with_the_pages_checksums_made_again_are_noticed(tmp_path, name):
    table, path = predictions(), tmp_path / "predictions.parquet"
    write_predictions(table, path)
    notes = pq.read_schema(path).metadata
    order = pa.array(range(ROWS)[::-1])

    changed = table.set_column(table.schema.names.index(name), name, table[name].take(order))
    pq.write_table(changed.replace_schema_metadata(notes), path, write_page_checksum=True)

    with pytest.raises(UserError, match=f"the checksum of column {name} does not fit its content"):
        read_predictions(path)


def test_a_column_that_may_be_absent_is_missed_where_it_was_written(tmp_path):
    path = tmp_path / "predictions.parquet"
    write_predictions(predictions(), path)
    notes = pq.read_schema(path).metadata

    for name in OPTIONAL:
        pq.write_table(predictions().drop_columns(name).replace_schema_metadata(notes), path)
        with pytest.raises(UserError, match=f"its column {name} is not there"):
            read_predictions(path)


def test_a_table_of_before_there_were_checksums_is_read(tmp_path):
    table, path = predictions(), tmp_path / "predictions.parquet"
    for columns in ([], list(OPTIONAL)):
        pq.write_table(table.drop_columns(columns), path)
        assert read_predictions(path).equals(table.drop_columns(columns))


def test_other_programs_read_the_table(tmp_path):
    write_predictions(predictions(), tmp_path / "predictions.parquet")

    found = pq.read_table(tmp_path / "predictions.parquet")

    assert found.replace_schema_metadata(None).equals(predictions())


def test_the_table_of_poses_and_an_empty_one_are_read_as_written(tmp_path: Path):
    values = {pa.float32(): [0.5, 1.5], pa.bool_(): [True, False], pa.string(): ["ä", ""]}
    columns = {field.name: values[field.type] for field in adaptive.SCHEMA}
    poses, path = pa.table(columns, schema=adaptive.SCHEMA), tmp_path / "poses.parquet"

    for table in (poses, poses.slice(0, 0), poses.slice(1), pa.concat_tables([poses] * 3)):
        write_parquet(table, path)
        assert read_parquet(path, adaptive.SCHEMA).equals(table)
