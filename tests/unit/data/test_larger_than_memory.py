"""Tables in storage: exact, each block read about once an epoch, within the memory budget."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from eagleray.data import Loader, open_dataset
from eagleray.data.stored import StoredPart
from eagleray.errors import DataError
from unit.data.conftest import make_spec, write

MIB = 1 << 20


def wide(num_rows=4000, num_columns=8, seed=0):
    rng = np.random.default_rng(seed)
    columns = {f"x{index}": rng.normal(size=num_rows) for index in range(num_columns)}
    columns["id"] = np.arange(num_rows, dtype=np.float64)
    columns["y"] = rng.integers(0, 2, num_rows)
    return pa.table(columns)


def stored(tmp_path, suffix="parquet", budget_mib=0.2, num_files=3, rows_per_block=100, **fields):
    """A table of 160 KB or so in blocks of 100 rows, too large for its budget."""
    table = wide()
    for index, rows in enumerate(np.array_split(np.arange(table.num_rows), num_files)):
        write(table.take(rows), tmp_path / f"d/part-{index}.{suffix}", rows_per_block)
    spec = make_spec(paths=tmp_path / "d", target="y", memory_budget_mib=budget_mib, **fields)
    dataset = open_dataset(spec)
    assert isinstance(dataset.train, StoredPart)
    return table, dataset


def epoch_of(loader, rank=0, world_size=1, epoch=0):
    shards, consumed = [], epoch * loader.num_samples
    while consumed < (epoch + 1) * loader.num_samples:
        shards.append(loader.shard(consumed, rank, world_size))
        consumed = shards[-1].consumed
    return shards


def ids(shards):
    return np.concatenate([shard.inputs[shard.weights > 0, 8] for shard in shards]).astype(int)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_an_epoch_is_each_sample_once_with_its_own_values(tmp_path, suffix):
    table, dataset = stored(tmp_path, suffix)
    parts = [dataset.train, dataset.validation, dataset.test]
    seen = []
    for part in parts:
        shards = epoch_of(Loader(part, global_batch_size=64, seed=1))
        seen.append(ids(shards))
        np.testing.assert_array_equal(
            np.concatenate([shard.targets for shard in shards]), table["y"].to_numpy()[seen[-1]]
        )
        np.testing.assert_allclose(
            np.concatenate([shard.inputs[:, 0] for shard in shards]),
            table["x0"].to_numpy()[seen[-1]],
            rtol=1e-6,
        )
    assert sorted(np.concatenate(seen)) == list(range(4000))


def test_it_is_split_and_scaled_as_in_memory(tmp_path):
    _, dataset = stored(tmp_path, normalize="standard")
    fields = {"target": "y", "normalize": "standard", "memory_budget_mib": 64}
    in_memory = open_dataset(make_spec(paths=tmp_path / "d", **fields))
    assert not isinstance(in_memory.train, StoredPart)
    assert in_memory.digest != dataset.digest  # another order: a cursor of one means nothing to the other
    np.testing.assert_allclose(
        dataset.signature.normalization.mean, in_memory.signature.normalization.mean, rtol=1e-6
    )
    for name in ("train", "validation", "test"):
        one, other = getattr(dataset, name), getattr(in_memory, name)
        positions = np.arange(one.num_samples)
        np.testing.assert_allclose(
            one.fetch(positions).inputs, other.fetch(positions).inputs, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(one.fetch(positions).targets, other.fetch(positions).targets)


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_each_row_group_is_read_once_an_epoch_by_each_rank(tmp_path, world_size):
    _, dataset = stored(tmp_path)
    table = dataset.train._table
    assert len(table.blocks) >= 40
    for rank in range(world_size):
        loader = Loader(dataset.train, global_batch_size=64, seed=1)
        dataset.train._kept.clear()
        dataset.train._num_kept = 0
        table.num_reads[:] = 0
        epoch_of(loader, rank, world_size)
        assert (table.num_reads <= 1).all(), table.num_reads
        assert table.num_reads.sum() >= 0.9 * len(table.blocks)
        epoch_of(loader, rank, world_size, epoch=1)
        assert table.num_reads.sum() <= 2 * len(table.blocks)


def test_evaluation_reads_each_block_once_over_all_ranks_or_nearly(tmp_path):
    _, dataset = stored(tmp_path)
    table, part = dataset.train._table, dataset.test
    table.num_reads[:] = 0
    for rank in range(3):
        list(Loader(part, global_batch_size=64, seed=1).once(rank, 3, 16))
    assert table.num_reads.sum() <= len(table.blocks) + 3


def test_shards_are_a_pure_function_also_out_of_order(tmp_path):
    _, dataset = stored(tmp_path)
    forwards = epoch_of(Loader(dataset.train, global_batch_size=64, seed=1))
    again = Loader(dataset.train, global_batch_size=64, seed=1)
    for index in (20, 3, 44, 0, 21):
        shard = again.shard(index * 64, 0, 1)
        np.testing.assert_array_equal(shard.inputs, forwards[index].inputs)
        halves = [again.shard(index * 64, rank, 2) for rank in range(2)]
        np.testing.assert_array_equal(
            np.concatenate([half.positions for half in halves]), forwards[index].positions
        )


def test_the_order_mixes_blocks(tmp_path):
    _, dataset = stored(tmp_path)
    first = ids(epoch_of(Loader(dataset.train, global_batch_size=64, seed=1))[:1])
    assert len(np.unique(first // 100)) >= 5
    other = ids(epoch_of(Loader(dataset.train, global_batch_size=64, seed=1), epoch=1)[:1])
    assert set(first) != set(other)


@pytest.mark.parametrize(
    "suffix", ["parquet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("arrow", "csv", "jsonl"))]
)
def test_memory_stays_within_the_budget(tmp_path, suffix):
    budget_mib, num_rows = 1, 14_000  # 0.6 MB decoded, 2.6 MB as lines
    path = write(wide(num_rows), tmp_path / f"t.{suffix}", rows_per_block=1000)
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        spec = make_spec(paths=path, target="y", memory_budget_mib=budget_mib, normalize="standard")
        dataset = open_dataset(spec)
        assert isinstance(dataset.train, StoredPart)
        loader = Loader(dataset.train, global_batch_size=512, seed=1)
        num_seen = sum(
            shard.global_size for shard in loader.iterate(0, 0, 1, stop_after=loader.steps_per_epoch)
        )
        for part in (dataset.validation, dataset.test):
            num_seen += sum(
                shard.global_size for shard in Loader(part, global_batch_size=512, seed=1).once(0, 1, 512)
            )
        python_peak, arrow_peak = tracemalloc.get_traced_memory()[1], pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    assert num_seen == num_rows
    # Both peaks need not come together: their sum is more than was ever held at once.
    assert python_peak + arrow_peak < budget_mib * MIB, (python_peak / MIB, arrow_peak / MIB)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_lines_are_indexed_once_and_read_in_blocks(tmp_path, suffix):
    table = wide(6000)
    path = write(table, tmp_path / f"t.{suffix}")
    dataset = open_dataset(make_spec(paths=path, target="y", memory_budget_mib=0.4))
    assert isinstance(dataset.train, StoredPart)
    stored_table = dataset.train._table
    assert len(stored_table.blocks) > 5
    assert stored_table.num_rows == 6000
    stored_table.num_reads[:] = 0
    seen = ids(epoch_of(Loader(dataset.train, global_batch_size=100, seed=1)))
    assert (stored_table.num_reads <= 1).all()
    np.testing.assert_array_equal(np.sort(seen), np.unique(seen))
    assert len(seen) == dataset.train.num_samples


def test_quoted_line_ends_do_not_cut_a_row(tmp_path):
    rows = [
        f'"text {index}\nwith ""lines""\n\n{"x" * (index % 97)}",{index},{index % 2}' for index in range(9000)
    ]
    (tmp_path / "t.csv").write_text("t,id,y\n" + "\n".join(rows) + "\n")
    spec = make_spec(paths=tmp_path / "t.csv", target="y", features=["id"], memory_budget_mib=0.1)
    dataset = open_dataset(spec)
    assert isinstance(dataset.train, StoredPart)
    assert len(dataset.train._table.blocks) > 5
    parts = [
        part.fetch(np.arange(part.num_samples)) for part in (dataset.train, dataset.validation, dataset.test)
    ]
    seen = np.concatenate([arrays.inputs[:, 0] for arrays in parts]).astype(int)
    assert sorted(seen) == list(range(9000))
    targets = np.concatenate([arrays.targets for arrays in parts])
    np.testing.assert_array_equal(targets, seen % 2)


def test_text_in_storage(tmp_path):
    texts = [f"sample {index} " * (index % 5) for index in range(3000)]
    write(pa.table({"t": texts}), tmp_path / "t.parquet", rows_per_block=100)
    fields = {"input_kind": "text", "features": ["t"], "sequence_length": 32}
    small = open_dataset(make_spec(paths=tmp_path / "t.parquet", memory_budget_mib=0.1, **fields))
    large = open_dataset(make_spec(paths=tmp_path / "t.parquet", **fields))
    assert isinstance(small.train, StoredPart)
    assert small.signature == large.signature
    positions = np.arange(small.train.num_samples)[::-1]
    one, other = small.train.fetch(positions), large.train.fetch(positions)
    np.testing.assert_array_equal(one.inputs, other.inputs)
    np.testing.assert_array_equal(one.targets, other.targets)


def test_a_block_that_cannot_fit_says_what_to_do(tmp_path):
    path = write(wide(), tmp_path / "t.parquet")
    with pytest.raises(DataError) as caught:
        open_dataset(make_spec(paths=path, target="y", memory_budget_mib=0.2))
    assert "block 0 (4000 rows)" in str(caught.value)
    needed = int(str(caught.value).split("raise it to ")[1].split(",")[0])
    assert open_dataset(make_spec(paths=path, target="y", memory_budget_mib=needed)).train.num_samples > 3000


def test_a_file_that_is_damaged_later_stops_the_iteration_by_name(tmp_path):
    _, dataset = stored(tmp_path)
    path = tmp_path / "d/part-1.parquet"
    path.write_bytes(path.read_bytes()[:4] + b"\0" * (path.stat().st_size - 4))
    shards = Loader(dataset.train, global_batch_size=64, seed=1).iterate(0, 0, 1)
    with pytest.raises(DataError, match=r"part-1\.parquet: cannot be read as parquet"):
        for _ in shards:
            pass


def test_values_that_are_not_finite_are_found_when_read(tmp_path):
    table = wide()
    values = table["x3"].to_numpy().copy()
    values[2345] = np.inf
    table = table.set_column(3, "x3", pa.array(values))
    path = write(table, tmp_path / "t.parquet", rows_per_block=100)
    dataset = open_dataset(make_spec(paths=path, target="y", memory_budget_mib=0.2))
    with pytest.raises(DataError, match=r"column 'x3'.*first: row 2345"):
        epoch_of(Loader(dataset.train, global_batch_size=64, seed=1))


def test_equal_copies_have_equal_digests_and_other_content_has_not(tmp_path):
    def digest(name, table, budget=0.2):
        path = write(table, tmp_path / name / "t.parquet", rows_per_block=100)
        return open_dataset(make_spec(paths=path, target="y", memory_budget_mib=budget)).digest

    one = digest("a", wide())
    assert digest("b", wide()) == one
    assert len({one, digest("c", wide(seed=1)), digest("d", wide(), budget=0.25)}) == 3
